// Owns: a server around models: the routes, the socket, and an orderly end. serve.ts says which models there are and loads
// them; tests give it their own.
import type { IncomingMessage } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { FastifyInstance } from "fastify";
import { UserError } from "../base/errors.js";
import type { Store } from "../store/store.js";
import { anthropicRoutes } from "./anthropic.js";
import { checkBinding } from "./auth.js";
import { healthRoutes } from "./health.js";
import { createHttp } from "./http.js";
import { Metrics } from "./metrics.js";
import type { ServedModels } from "./models.js";
import { ollamaRoutes } from "./ollama.js";
import { openaiRoutes } from "./openai.js";
import type { LocalModel } from "./source.js";
import { tgiRoutes } from "./tgi.js";

export interface ListenOptions {
  /** Loopback by default; another address needs an API key. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port?: number;
  /** Callers give one of them as Authorization: Bearer KEY. None: no key is asked for. */
  readonly apiKeys?: readonly string[];
  /** Of a request's body; a larger one is a 413. */
  readonly maxBodyBytes?: number;
  /** A stream that has been silent for so long gets a comment. */
  readonly keepAliveMs?: number;
  /** A reader whose full socket takes nothing for so long is cut off. */
  readonly slowReaderMs?: number;
  /** How long close() lets open requests go on. */
  readonly drainMs?: number;
}

export const listenDefaults = {
  host: "127.0.0.1",
  port: 11434,
  apiKeys: [],
  maxBodyBytes: 8 << 20,
  keepAliveMs: 10_000,
  slowReaderMs: 30_000,
  drainMs: 30_000,
} as const satisfies Required<ListenOptions>;

export interface RunningServer {
  /** "http://127.0.0.1:11434" */
  readonly url: string;
  readonly port: number;
  /** Takes no new requests, lets open ones end for drainMs, then ends them with an error. */
  close(): Promise<void>;
}

/** store: null where the models are all that there will be. */
export async function listen(
  models: ServedModels<LocalModel>,
  store: Store | null,
  options: ListenOptions = {},
): Promise<RunningServer> {
  const settings = { ...listenDefaults, ...withoutUndefined(options) };
  checkBinding(settings.host, settings.apiKeys);
  const app = createHttp(settings);
  const silent = silentConnections(app);
  const draining = new AbortController();
  const closing = new AbortController();
  refuseWhileDraining(app, draining.signal);
  const metrics = new Metrics(models);
  healthRoutes(app, models, metrics, draining.signal);
  const serving = { models, times: settings, closing: closing.signal, metrics };
  openaiRoutes(app, serving);
  anthropicRoutes(app, serving);
  tgiRoutes(app, serving);
  ollamaRoutes(app, { ...serving, store });
  try {
    await app.listen({ host: settings.host, port: settings.port });
  } catch (error) {
    throw listenError(error, settings);
  }
  const { port } = app.server.address() as AddressInfo;
  const name = settings.host.includes(":") ? `[${settings.host}]` : settings.host;
  let closed: Promise<void> | undefined;
  return {
    url: `http://${name}:${port}`,
    port,
    close: () => (closed ??= close(app, silent, draining, closing, settings.drainMs)),
  };
}

/** Connections that have asked nothing yet: Node does not count them as idle. */
function silentConnections(app: FastifyInstance): ReadonlySet<Socket> {
  const silent = new Set<Socket>();
  app.server.on("connection", (socket: Socket) => {
    silent.add(socket);
    socket.once("close", () => silent.delete(socket));
  });
  app.server.on("request", ({ socket }: IncomingMessage) => silent.delete(socket));
  return silent;
}

async function close(
  app: FastifyInstance,
  silent: ReadonlySet<Socket>,
  draining: AbortController,
  closing: AbortController,
  drainMs: number,
) {
  draining.abort();
  const deadline = setTimeout(() => closing.abort(shuttingDown()), drainMs);
  // A connection that was busy when the server closed is idle once its answer has ended.
  const sweep = setInterval(() => {
    app.server.closeIdleConnections();
    for (const socket of silent) socket.destroy();
  }, 50);
  await app.close();
  clearInterval(sweep);
  clearTimeout(deadline);
}

function refuseWhileDraining(app: FastifyInstance, draining: AbortSignal): void {
  app.addHook("onRequest", async (_request, reply) => {
    if (!draining.aborted) return;
    reply.header("connection", "close");
    throw shuttingDown();
  });
}

const shuttingDown = () =>
  new UserError("The server is shutting down.", { status: 503, code: "shutting_down", retryAfter: 10 });

function listenError(error: unknown, { host, port }: { host: string; port: number }): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  const because: Record<string, string> = {
    EADDRINUSE: `port ${port} is taken; give another (--port), or 0 for any free one`,
    EADDRNOTAVAIL: `this machine has no address ${host}`,
    ENOTFOUND: `the name ${host} is not known`,
    EACCES: `port ${port} needs rights that this user does not have; give one above 1023`,
  };
  if (code === undefined || !(code in because)) return error;
  return new UserError(`Cannot listen on ${host}:${port}: ${because[code]}.`, { code: "cannot_listen", cause: error });
}

function withoutUndefined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;
}
