// Owns: `millrace serve` as a function: models by name → loaded, each in a process of its own → a server around them. A
// crash in native code ends one model's open requests; its process starts again with the next one.
import { UserError } from "../base/errors.js";
import type { EngineClient } from "../engine/client.js";
import type { LoadSpec } from "../host/load.js";
import { openSession } from "../host/open.js";
import { processCarrier } from "../host/process.js";
import { type PullReport, Store } from "../store/store.js";
import { type ListenOptions, listen, type RunningServer } from "./app.js";
import { checkBinding } from "./auth.js";
import { QueueLimit } from "./limits.js";
import { fingerprint, type ServedModel } from "./models.js";

export interface ServeModel {
  /** A catalogue name, a path, or hf:owner/repo[/file]. */
  readonly model: string;
  /** What clients call it; by default its own name. */
  readonly id?: string;
}

export interface ServeOptions extends ListenOptions {
  readonly models: readonly ServeModel[];
  /** These five hold for each of the models; defaults as LoadSpec has them. */
  readonly device?: string;
  readonly threads?: number;
  readonly contextLength?: number;
  readonly kvDtype?: LoadSpec["kvDtype"];
  readonly maxSequences?: number;
  /** Choices that may wait for one model beyond those that run; more are a 429. Default 256. */
  readonly maxWaiting?: number;
  /** Hears of downloads. */
  readonly report?: PullReport;
  readonly onLoadProgress?: (model: string, done: number, total: number) => void;
  /** Called with the id of a model's engine process each time that one starts. */
  readonly onEngineStart?: (model: string, pid: number) => void;
  /** Gives up starting. */
  readonly signal?: AbortSignal;
}

export interface ModelServer extends RunningServer {
  /** Of the models, in order: what clients call them, and what they can do. */
  readonly models: readonly { readonly id: string; readonly contextLength: number; readonly device: string }[];
}

interface Loaded {
  readonly served: ServedModel;
  readonly engine: EngineClient;
}

/** Resolves once the server takes requests. Throws UserError where a model cannot be loaded or the address be used. */
export async function serve(options: ServeOptions): Promise<ModelServer> {
  if (options.models.length === 0) throw new UserError("There is no model to serve; name at least one.");
  // Said before minutes of loading, not after.
  checkBinding(options.host ?? "127.0.0.1", options.apiKeys ?? []);
  const loaded: Loaded[] = [];
  try {
    for (const model of options.models) loaded.push(await load(model, options));
    const server = await listen(
      loaded.map(({ served }) => served),
      options,
    );
    const models = loaded.map(({ served }) => ({
      id: served.id,
      contextLength: served.session.limits.contextLength,
      device: served.session.limits.device,
    }));
    const close = async () => {
      await server.close();
      await closeAll(loaded);
    };
    return { url: server.url, port: server.port, models, close };
  } catch (error) {
    await closeAll(loaded);
    throw error;
  }
}

async function load({ model, id }: ServeModel, options: ServeOptions): Promise<Loaded> {
  const { device, threads, contextLength, kvDtype, maxSequences, signal, report } = options;
  const { name, path } = await new Store().resolve(model, { signal, report });
  const servedId = id ?? name;
  const { session, engine, label, fileBytes } = await openSession({
    spec: { path, device, threads, contextLength, kvDtype, maxSequences },
    carrier: () => processCarrier((pid) => options.onEngineStart?.(servedId, pid)),
    onProgress: (done, total) => options.onLoadProgress?.(servedId, done, total),
    signal,
  });
  const served = {
    id: servedId,
    created: Math.floor(Date.now() / 1000),
    session,
    queue: new QueueLimit(session.limits.maxSequences, options.maxWaiting ?? 256),
    fingerprint: fingerprint(label, fileBytes, session.limits.device, kvDtype ?? "default"),
  };
  return { served, engine };
}

async function closeAll(loaded: readonly Loaded[]): Promise<void> {
  await Promise.all(loaded.map(({ engine }) => engine.close()));
}
