// Owns: `millrace serve` as a function: models by name → a server that has them. Without names it serves the store's models
// as they are asked for; named ones are loaded at once and stay.
import { totalmem } from "node:os";
import { UserError } from "../base/errors.js";
import { physicalCores } from "../host/load.js";
import { type PullReport, Store } from "../store/store.js";
import { type ListenOptions, listen, type RunningServer } from "./app.js";
import { checkBinding } from "./auth.js";
import { ServedModels } from "./models.js";
import { type LoadSettings, type LocalModel, NamedModels, StoredModels } from "./source.js";

export interface ServeModel {
  /** A catalogue name, a path, or hf:owner/repo[/file]. */
  readonly model: string;
  /** What clients call it; by default its own name. */
  readonly id?: string;
  /** LoRA adapters: GGUF files or PEFT folders. Clients ask for one by its name, as for a model. */
  readonly adapters?: readonly { readonly name: string; readonly path: string }[];
  /** A smaller model with the same vocabulary that guesses; by default the package's. */
  readonly draft?: string;
}

export interface ServeOptions extends ListenOptions, LoadSettings {
  /** Loaded at once and kept, and the only ones; none: those of the store, as they are asked for. */
  readonly models: readonly ServeModel[];
  /** Of the machine, for all models together; by default one a physical core. */
  readonly threads?: number;
  /** For all models together; by default nine tenths of the machine's memory. */
  readonly memoryBytes?: number;
  /** Of those that are loaded on demand, how many at once; by default as many as fit. */
  readonly maxLoaded?: number;
  /** Requests that may wait for a model to be loaded; more are a 503. Default 512. */
  readonly maxQueued?: number;
  /** How long a model stays that nobody asks anything; default 5 minutes. Infinity: for ever. */
  readonly keepAliveMs?: number;
  /** Hears of downloads. */
  readonly report?: PullReport;
  /** Gives up starting. */
  readonly signal?: AbortSignal;
}

export interface ModelServer extends RunningServer {
  /** Of the loaded models, in order: what clients call them, and what they can do. */
  readonly models: readonly { readonly id: string; readonly contextLength: number; readonly device: string }[];
}

/** Resolves once the server takes requests. Throws UserError where a model cannot be loaded or the address be used. */
export async function serve(options: ServeOptions): Promise<ModelServer> {
  // Said before minutes of loading, not after.
  checkBinding(options.host ?? "127.0.0.1", options.apiKeys ?? [], options.keys);
  const named = await namedModels(options);
  const store = named.length > 0 ? null : new Store();
  const source = store === null ? new NamedModels(named, options) : new StoredModels(store, options);
  const models = new ServedModels<LocalModel>(source, {
    memoryBytes: options.memoryBytes ?? Math.floor(machineMemory() * 0.9),
    threads: options.threads ?? physicalCores(),
    maxLoaded: options.maxLoaded ?? Number.POSITIVE_INFINITY,
    maxQueued: options.maxQueued ?? 512,
    keepAliveMs: options.keepAliveMs ?? 5 * 60_000,
  });
  try {
    for (const { id } of named) (await models.acquire(id, { signal: options.signal })).release();
    const server = await listen(models, store, options);
    const about = models.loaded.map(({ served: { id, session } }) => ({
      id,
      contextLength: session.limits.contextLength,
      device: session.limits.device,
    }));
    const close = async () => {
      await server.close();
      await models.close();
    };
    return { ...server, models: about, close };
  } catch (error) {
    await models.close();
    throw error;
  }
}

async function namedModels({ models, report, signal }: ServeOptions): Promise<LocalModel[]> {
  const named: LocalModel[] = [];
  for (const { model, id, adapters, draft } of models) {
    const resolved = await new Store().resolve(model, { signal, report });
    const created = Math.floor(Date.now() / 1000);
    const { name, path, package: own } = resolved;
    const guesses = draft === undefined ? undefined : (await new Store().resolve(draft, { signal, report })).path;
    named.push({ id: id ?? name, path, created, pinned: true, package: own, adapters, draft: guesses });
  }
  const names = named.flatMap(({ id, adapters = [] }) => [id, ...adapters.map(({ name }) => name)]);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) {
    throw new UserError(`"${twice}" would be the name of two models or adapters here; names must differ.`);
  }
  return named;
}

function machineMemory(): number {
  const bound = process.constrainedMemory?.() ?? 0;
  return bound > 0 ? Math.min(bound, totalmem()) : totalmem();
}
