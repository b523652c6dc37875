// Owns: which models a server has and how one comes up: those of the store, or the ones that were named; each in an engine
// process of its own, so that a crash in native code ends one model's open requests and nothing else.
import type { LoadSpec } from "../host/load.js";
import { openSession } from "../host/open.js";
import { processCarrier } from "../host/process.js";
import { packageAdapters } from "../store/apply.js";
import { type Package, type Store, shortName } from "../store/store.js";
import { QueueLimit } from "./limits.js";
import { fingerprint, type Loaded, type LoadGrant, type ModelSource, type Servable } from "./models.js";

/** A model on this machine. */
export interface LocalModel extends Servable {
  /** Of a .gguf file, or of a folder. */
  readonly path: string;
  /** undefined: a path. */
  readonly package?: Package;
  /** LoRA adapters besides the package's own: GGUF files or PEFT folders. */
  readonly adapters?: readonly { readonly name: string; readonly path: string }[];
  /** The path of a model that guesses, in place of the package's. */
  readonly draft?: string;
}

export interface LoadSettings {
  readonly device?: string;
  /** Of a model whose caller does not say. */
  readonly contextLength?: number;
  readonly kvDtype?: LoadSpec["kvDtype"];
  readonly deterministic?: boolean;
  readonly lookup?: boolean;
  readonly maxSequences?: number;
  /** Choices that may wait for one model beyond those that run; more are a 429. Default 256. */
  readonly maxWaiting?: number;
  /** Tiers below the device's pages; undefined: none. */
  readonly pageCache?: LoadSpec["pageCache"];
  /** Tokens, of prompts and the longest answers they ask for, that a model's open requests may come to; more are a 429. */
  readonly maxQueuedTokens?: number;
  readonly onLoadProgress?: (model: string, done: number, total: number) => void;
  /** Called with the id of a model's engine process each time that one starts. */
  readonly onEngineStart?: (model: string, pid: number) => void;
}

/** Names that mean the same model: Ollama's clients add the tag. */
const untagged = (name: string) => name.replace(/:latest$/, "");

export class NamedModels implements ModelSource<LocalModel> {
  constructor(
    private readonly models: readonly LocalModel[],
    private readonly settings: LoadSettings,
  ) {}

  find(name: string): LocalModel | null {
    const called = (wanted: string) =>
      this.models.find(({ id }) => id === wanted) ??
      this.models.find(({ adapters }) => adapters?.some((one) => one.name === wanted));
    return called(name) ?? called(untagged(name)) ?? null;
  }

  list(): readonly LocalModel[] {
    return this.models;
  }

  load(model: LocalModel, grant: LoadGrant): Promise<Loaded> {
    return loadLocal(model, grant, this.settings);
  }
}

export class StoredModels implements ModelSource<LocalModel> {
  constructor(
    private readonly store: Store,
    private readonly settings: LoadSettings,
  ) {}

  /** A name only: what a caller sends is never a path. */
  find(name: string): LocalModel | null {
    const stored = this.store.package(name);
    return stored === null ? null : localModel(stored);
  }

  list(): readonly LocalModel[] {
    return this.store.list().map(localModel);
  }

  load(model: LocalModel, grant: LoadGrant): Promise<Loaded> {
    return loadLocal(model, grant, this.settings);
  }
}

function localModel(one: Package): LocalModel {
  const { name, path, modifiedAt, digest } = one;
  const created = Math.floor(Date.parse(modifiedAt) / 1000);
  return { id: shortName(name), path, created, version: digest, package: one };
}

async function loadLocal(model: LocalModel, grant: LoadGrant, settings: LoadSettings): Promise<Loaded> {
  const { id, path } = model;
  const { device, kvDtype, deterministic, lookup, maxSequences, maxWaiting = 256, maxQueuedTokens } = settings;
  const pageCache = settings.pageCache && { ...settings.pageCache, name: id };
  const { threads, memoryBytes, signal, contextLength = settings.contextLength } = grant;
  // num_ctx, of a request or a package, may be more than the model was made for, as in Ollama; --ctx may not.
  const clampContext = grant.contextLength !== undefined;
  const own = packageAdapters(model.package);
  const adapters = [...own, ...(model.adapters ?? [])];
  const { session, engine, label, fileBytes } = await openSession({
    spec: {
      ...{ path, adapters, device, threads, contextLength, clampContext, kvDtype, deterministic, lookup },
      ...{ maxSequences, memoryBytes },
      pageCache,
      draft: model.draft ?? (lookup === false ? undefined : model.package?.draft),
    },
    carrier: () => processCarrier((pid) => settings.onEngineStart?.(id, pid)),
    template: model.package?.template,
    adapter: own[0]?.name,
    onProgress: (done, total) => settings.onLoadProgress?.(id, done, total),
    signal,
  });
  const { limits } = session;
  const { weights, workspace, cache, tier = 0 } = limits.memory;
  return {
    served: {
      id,
      created: Math.floor(Date.now() / 1000),
      session,
      queue: new QueueLimit(limits.maxSequences, maxWaiting, maxQueuedTokens),
      fingerprint: fingerprint(label, fileBytes, limits.device, kvDtype ?? "default"),
      defaults: model.package,
    },
    hostBytes: tier + (limits.ownMemory ? 0 : weights + workspace + cache),
    grantThreads: (count) => engine.grant(count),
    close: () => engine.close(),
  };
}
