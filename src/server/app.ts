// Owns: a server around models: the routes, the socket, and an orderly end. serve.ts says which models there are and loads
// them; tests give it their own.
import { setMaxListeners } from "node:events";
import type { IncomingMessage } from "node:http";
import { Server as SecureServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { join } from "node:path";
import type { FastifyInstance } from "fastify";
import { UserError } from "../base/errors.js";
import { version } from "../host/version.js";
import { dataFolder } from "../store/folder.js";
import type { Store } from "../store/store.js";
import { anthropicRoutes } from "./anthropic.js";
import { auditTo } from "./audit.js";
import { checkBinding } from "./auth.js";
import { batchRoutes } from "./batches.js";
import { Budgets } from "./budgets.js";
import { debugRoutes } from "./debug.js";
import { docsRoutes } from "./docs.js";
import { healthRoutes } from "./health.js";
import { createHttp } from "./http.js";
import { type ApiKey, plainKey } from "./keys.js";
import { Metrics } from "./metrics.js";
import type { ServedModels } from "./models.js";
import { ollamaRoutes } from "./ollama.js";
import { openaiRoutes } from "./openai.js";
import { Records } from "./records.js";
import { responseRoutes } from "./responses.js";
import type { LocalModel } from "./source.js";
import { tgiRoutes } from "./tgi.js";
import { tokenRoutes } from "./tokens.js";
import { traceTo } from "./traces.js";

export interface ListenOptions {
  /** Loopback by default; another address needs an API key. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port?: number;
  /** Callers give one of them as Authorization: Bearer KEY. None: no key is asked for. */
  readonly apiKeys?: readonly string[];
  /** Further keys, with what each may do. */
  readonly keys?: readonly ApiKey[];
  /** PEM texts: the server speaks HTTPS. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** Origins of web pages that may call ("*": any); none unless said. */
  readonly corsOrigins?: readonly string[];
  /** Where callers with a key may have packages pulled from and pushed to, beside the hub and Ollama's registry (outbound.ts). */
  readonly pullHosts?: readonly string[];
  /** Where it is kept what keys with a budget have spent; by default in the data folder. */
  readonly usageFolder?: string;
  /** Where responses, files and batches are kept; by default the data folder. */
  readonly recordsFolder?: string;
  /** A file that each request is written to, a line of JSON each. */
  readonly auditLog?: string;
  /** Traces go to an OpenTelemetry collector: this address, or true: as its own variables say. */
  readonly traces?: string | true;
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
  keys: [],
  corsOrigins: [],
  pullHosts: [],
  maxBodyBytes: 8 << 20,
  keepAliveMs: 10_000,
  slowReaderMs: 30_000,
  drainMs: 30_000,
} as const satisfies Required<Omit<ListenOptions, "tls" | "auditLog" | "traces" | "usageFolder" | "recordsFolder">>;

export interface RunningServer {
  /** "http://127.0.0.1:11434" */
  readonly url: string;
  readonly port: number;
  /** All there are: "POST /v1/chat/completions". */
  readonly routes: readonly string[];
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
  checkBinding(settings.host, settings.apiKeys, settings.keys);
  const keys = [...settings.apiKeys.map(plainKey), ...settings.keys];
  const app = createHttp({ ...settings, keys });
  if (settings.auditLog !== undefined) auditTo(app, settings.auditLog);
  if (settings.traces !== undefined) {
    await traceTo(app, settings.traces === true ? undefined : settings.traces, version());
  }
  const routes = docsRoutes(app);
  const silent = silentConnections(app);
  const draining = new AbortController();
  const closing = new AbortController();
  // Each open request listens.
  setMaxListeners(0, closing.signal);
  const open = refuseWhileDraining(app, draining.signal);
  const metrics = new Metrics(models);
  healthRoutes(app, models, metrics, draining.signal);
  debugRoutes(app, models);
  const budgets = new Budgets(settings.usageFolder ?? join(dataFolder(), "usage"));
  app.addHook("onClose", async () => budgets.flush());
  const serving = { models, times: settings, closing: closing.signal, metrics, budgets };
  openaiRoutes(app, serving);
  const records = new Records(settings.recordsFolder ?? dataFolder());
  // Hooks of the end run last one first: what writes ends before the database does.
  app.addHook("onClose", async () => records.close());
  responseRoutes(app, serving, records, draining.signal);
  batchRoutes(app, serving, { records, keys, draining: draining.signal, maxBodyBytes: settings.maxBodyBytes });
  anthropicRoutes(app, serving);
  tgiRoutes(app, serving);
  tokenRoutes(app, serving);
  const guarded = settings.apiKeys.length + settings.keys.length > 0;
  const { corsOrigins } = settings;
  ollamaRoutes(app, { ...serving, store, corsOrigins, pullHosts: guarded ? settings.pullHosts : null });
  try {
    await app.listen({ host: settings.host, port: settings.port });
  } catch (error) {
    throw listenError(error, settings);
  }
  records.start();
  const { port } = app.server.address() as AddressInfo;
  const name = settings.host.includes(":") ? `[${settings.host}]` : settings.host;
  let closed: Promise<void> | undefined;
  return {
    url: `${settings.tls === undefined ? "http" : "https"}://${name}:${port}`,
    port,
    routes: routes.map(({ method, url }) => `${method} ${url}`),
    close: () => (closed ??= close(app, { silent, open, draining, closing }, settings.drainMs)),
  };
}

/** Connections that have asked nothing yet: Node does not count them as idle. */
function silentConnections(app: FastifyInstance): ReadonlySet<Socket> {
  const silent = new Set<Socket>();
  // Under TLS the socket that a request has is the secured one.
  const event = app.server instanceof SecureServer ? "secureConnection" : "connection";
  app.server.on(event, (socket: Socket) => {
    silent.add(socket);
    socket.once("close", () => silent.delete(socket));
  });
  app.server.on("request", ({ socket }: IncomingMessage) => silent.delete(socket));
  return silent;
}

interface Ending {
  readonly silent: ReadonlySet<Socket>;
  readonly open: OpenRequests;
  readonly draining: AbortController;
  readonly closing: AbortController;
}

const aborted = (signal: AbortSignal) =>
  new Promise<void>((done) => signal.addEventListener("abort", () => done(), { once: true }));

/** Requests that were let in and have not ended. */
class OpenRequests {
  private count = 0;
  private whenEmpty: () => void = () => {};

  enter(): void {
    this.count += 1;
  }

  leave(): void {
    this.count -= 1;
    if (this.count === 0) this.whenEmpty();
  }

  empty(): Promise<void> {
    return this.count === 0 ? Promise.resolve() : new Promise((resolve) => (this.whenEmpty = resolve));
  }
}

async function close(app: FastifyInstance, { silent, open, draining, closing }: Ending, drainMs: number) {
  draining.abort();
  const deadline = setTimeout(() => closing.abort(shuttingDown()), drainMs);
  // Still listening: who comes now is told to come back, not cut off.
  await Promise.race([open.empty(), aborted(closing.signal)]);
  // A connection that was busy when the server closed is idle once its answer has ended.
  const sweep = setInterval(() => {
    app.server.closeIdleConnections();
    for (const socket of silent) socket.destroy();
  }, 50);
  await app.close();
  clearInterval(sweep);
  clearTimeout(deadline);
}

/** What a balancer or a monitor asks is answered to the end. */
const watching = new Set(["/health", "/ping", "/ready", "/metrics", "/debug", "/debug/timeline"]);

function refuseWhileDraining(app: FastifyInstance, draining: AbortSignal): OpenRequests {
  const open = new OpenRequests();
  app.addHook("onRequest", async (request, reply) => {
    if (!draining.aborted) {
      open.enter();
      reply.raw.once("close", () => open.leave());
      return;
    }
    reply.header("connection", "close");
    if (!watching.has(request.routeOptions.url ?? "")) throw shuttingDown();
  });
  return open;
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
