// Owns: the models of one server: which of them are loaded, for how long, and with what share of memory and threads.
// A model is loaded when it is first asked for, one at a time, and unloaded after its keep-alive or when another needs
// its place: the least recently used first, never while it answers. Knows no file and no process: a ModelSource says
// what there is and loads it.
//
//   named ──acquire──► loading ──► loaded: leases > 0 (answers) ⇄ idle (its keep-alive runs)
//                                     └── evicted: takes no new leases, ends with its last one
import { createHash } from "node:crypto";
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { Session } from "../session/session.js";
import type { Package } from "../store/package.js";
import type { ModelParameters } from "../store/parameters.js";
import type { QueueLimit } from "./limits.js";
import { shareThreads } from "./share.js";

export interface ServedModel {
  /** What clients call it. */
  readonly id: string;
  /** Unix seconds: when it was loaded. */
  readonly created: number;
  readonly session: Session;
  readonly queue: QueueLimit;
  /** Changes when the same request may give other tokens: another file, device or version. */
  readonly fingerprint: string;
  readonly defaults?: ModelDefaults;
}

/** What a package says of its conversations. */
export interface ModelDefaults {
  /** Where a conversation has no system message. */
  readonly system?: string;
  /** Before every conversation. */
  readonly messages?: Package["messages"];
  readonly parameters?: ModelParameters;
}

/** A model that can be loaded. */
export interface Servable {
  readonly id: string;
  /** Unix seconds: when it came to be here. */
  readonly created: number;
  /** Changes when the model of this id is another one: what is loaded is then loaded anew. */
  readonly version?: string;
  /** Never unloaded to make room, nor after a time. */
  readonly pinned?: boolean;
  /** Loaded with it; each is asked for by its own name, as a model is. */
  readonly adapters?: readonly { readonly name: string }[];
}

export interface LoadGrant {
  /** What of the machine's memory is not promised to other models. */
  readonly memoryBytes: number;
  /** The most that it will ever have. */
  readonly threads: number | undefined;
  /** Undefined: what the model has and memory allows. */
  readonly contextLength: number | undefined;
  readonly signal: AbortSignal;
}

export interface Loaded {
  readonly served: ServedModel;
  /** The most that it takes of the machine's memory; 0 where it lives in a device's own. */
  readonly hostBytes: number;
  /** From its next step on. */
  grantThreads(threads: number): void;
  close(): Promise<void>;
}

export interface ModelSource<M extends Servable = Servable> {
  /** null: there is none of this name. */
  find(name: string): M | null;
  list(): readonly M[];
  /** Throws UserError; code "out_of_memory" where the grant is too small. */
  load(model: M, grant: LoadGrant): Promise<Loaded>;
}

export interface ModelSettings {
  /** Of all models together; default nine tenths of the machine's. */
  readonly memoryBytes: number;
  /** Shared by the models that are answering. Undefined: one model's default, never shrunk. */
  readonly threads: number | undefined;
  readonly maxLoaded: number;
  /** Requests that may wait for a model to be loaded. */
  readonly maxQueued: number;
  /** How long an idle model stays where a request does not say. */
  readonly keepAliveMs: number;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
}

export interface AcquireOptions {
  /** How long the model stays when it is idle again: 0 not at all, Infinity for ever; undefined: as before. */
  readonly keepAliveMs?: number;
  /** The context that the request needs; a model that was loaded with less is loaded again. */
  readonly contextLength?: number;
  readonly signal?: AbortSignal;
}

export interface Lease {
  readonly model: ServedModel;
  /** How long the caller waited for the model. */
  readonly loadMs: number;
  /** Once; further calls do nothing. */
  release(): void;
}

/** A model that is loaded or on its way. */
interface Resident<M> {
  readonly model: M;
  readonly loading: Promise<Loaded>;
  loaded?: Loaded;
  leases: number;
  usedAt: number;
  /** Counts all models' uses: the smallest was used longest ago. */
  use: number;
  keepAliveMs: number;
  /** Since 1970; while it answers, what it would be if that ended now. */
  expiresAt: number;
  timer?: NodeJS.Timeout;
  /** Set by eviction. */
  gone?: Promise<void>;
  whenIdle?: () => void;
}

export interface ResidentReport<M> {
  readonly model: M;
  readonly served: ServedModel;
  readonly expiresAt: number;
  readonly leases: number;
}

/** Undefined: the name means the model itself. */
export function adapterOf(model: Servable, name: string): string | undefined {
  if (name === model.id) return undefined;
  return model.adapters?.find((one) => one.name === name)?.name;
}

const withAdapter = (served: ServedModel, adapter: string): ServedModel => {
  return { ...served, id: adapter, session: served.session.withAdapter(adapter) };
};

/** What setTimeout takes. */
const longestTimer = 2 ** 31 - 1;

/** That a model is larger than what there is, is no fault of who asks for it; that a context is, may be. */
function misfit(error: UserError): UserError {
  const { message, code, param } = error;
  return param === null ? new UserError(message, { status: 500, code, cause: error }) : error;
}

export class ServedModels<M extends Servable = Servable> {
  private readonly residents = new Map<string, Resident<M>>();
  /** Evicted, but still answering or closing. */
  private readonly leaving = new Set<Resident<M>>();
  private turns: Promise<unknown> = Promise.resolve();
  private queued = 0;
  /** What the latest load took. */
  private loadSeconds = 5;
  private uses = 0;
  private readonly closing = new AbortController();
  private readonly now: () => number;

  constructor(
    readonly source: ModelSource<M>,
    private readonly settings: ModelSettings,
  ) {
    this.now = settings.now ?? Date.now;
  }

  /** Those that can be asked for, loaded or not. */
  get all(): readonly M[] {
    return this.source.list();
  }

  /** Those that are loaded, in the order of loading. */
  get loaded(): readonly ResidentReport<M>[] {
    return [...this.residents.values()].flatMap(({ model, loaded, expiresAt, leases }) =>
      loaded === undefined ? [] : [{ model, served: loaded.served, expiresAt, leases }],
    );
  }

  /** Throws UserError 404 where there is none of this name. */
  find(name: string): M {
    const model = this.source.find(name);
    if (model !== null) return model;
    const known = this.all.map(({ id }) => `"${id}"`).join(", ");
    throw new UserError(
      known === ""
        ? `There is no model "${name}" here; pull it first: millrace pull ${name}`
        : `There is no model "${name}" here; this server has ${known}.`,
      { status: 404, code: "model_not_found", param: "model" },
    );
  }

  /** Resolves when the model is loaded and cannot go before the lease is released. */
  async acquire(name: string, options: AcquireOptions = {}): Promise<Lease> {
    const from = performance.now();
    const model = this.find(name);
    const adapter = adapterOf(model, name);
    this.closing.signal.throwIfAborted();
    const resident = this.residentFor(model, options);
    if (options.keepAliveMs !== undefined && !model.pinned) resident.keepAliveMs = options.keepAliveMs;
    this.lease(resident, 1);
    try {
      const loaded = resident.loaded ?? (await this.queue(resident.loading, options.signal));
      let held = true;
      return {
        model: adapter === undefined ? loaded.served : withAdapter(loaded.served, adapter),
        loadMs: performance.now() - from,
        release: () => {
          if (held) this.lease(resident, -1);
          held = false;
        },
      };
    } catch (error) {
      this.lease(resident, -1);
      throw error;
    }
  }

  /** Unloads it once it has answered what it is answering; false: it was not loaded. */
  async unload(name: string): Promise<boolean> {
    const resident = this.residents.get(this.source.find(name)?.id ?? name);
    if (resident === undefined) return false;
    await this.evict(resident);
    return true;
  }

  /** Ends loading and waiting; open answers are the server's to end beforehand. */
  async close(): Promise<void> {
    this.closing.abort(new UserError("The server is shutting down.", { status: 503, code: "shutting_down" }));
    const all = [...this.residents.values(), ...this.leaving];
    this.residents.clear();
    await Promise.all(
      all.map(async (resident) => {
        clearTimeout(resident.timer);
        const loaded = await resident.loading.catch(() => undefined);
        await loaded?.close();
      }),
    );
  }

  private residentFor(model: M, { contextLength }: AcquireOptions): Resident<M> {
    const here = this.residents.get(model.id);
    if (here === undefined) return this.begin(model, contextLength);
    if (here.model.version !== model.version) return this.begin(model, contextLength, this.evict(here));
    const limits = here.loaded?.served.session.limits;
    if (limits === undefined || contextLength === undefined) return here;
    // More than it was made for is as much as it was made for.
    const wanted = Math.min(contextLength, limits.trainedContextLength);
    return wanted > limits.contextLength ? this.begin(model, wanted, this.evict(here)) : here;
  }

  /** Loads go one after another: each is granted what the ones before it left. */
  private begin(model: M, contextLength: number | undefined, after?: Promise<void>): Resident<M> {
    const turn = this.turns.then(() => after);
    const resident: Resident<M> = {
      model,
      loading: turn.then(() => this.load(resident, contextLength)),
      leases: 0,
      usedAt: this.now(),
      use: ++this.uses,
      keepAliveMs: model.pinned ? Number.POSITIVE_INFINITY : this.settings.keepAliveMs,
      expiresAt: Number.POSITIVE_INFINITY,
    };
    this.turns = resident.loading.catch(() => {});
    this.residents.set(model.id, resident);
    return resident;
  }

  private async load(resident: Resident<M>, contextLength: number | undefined): Promise<Loaded> {
    const { signal } = this.closing;
    const { threads, maxLoaded } = this.settings;
    const { model } = resident;
    const from = performance.now();
    try {
      // What is going anyway is not in the way of a longer context.
      await Promise.all([...this.leaving].filter(({ leases }) => leases === 0).map(({ gone }) => gone));
      while (this.others(resident).length >= maxLoaded && (await this.makeRoom(resident)));
      for (;;) {
        signal.throwIfAborted();
        const memoryBytes = this.settings.memoryBytes - this.promisedBytes();
        try {
          resident.loaded = await this.source.load(model, { memoryBytes, threads, contextLength, signal });
          break;
        } catch (error) {
          const isFull = error instanceof UserError && error.code === "out_of_memory";
          if (!isFull) throw error;
          if (!(await this.makeRoom(resident))) throw misfit(error);
        }
      }
    } catch (error) {
      if (this.residents.get(model.id) === resident) this.residents.delete(model.id);
      throw error;
    }
    this.loadSeconds = Math.max(1, Math.ceil((performance.now() - from) / 1000));
    this.settle(resident);
    return resident.loaded;
  }

  private others(resident: Resident<M>): Resident<M>[] {
    return [...this.residents.values()].filter((one) => one !== resident && one.loaded !== undefined);
  }

  private promisedBytes(): number {
    const all = [...this.residents.values(), ...this.leaving];
    return all.reduce((sum, { loaded }) => sum + (loaded?.hostBytes ?? 0), 0);
  }

  /** Evicts one model, an idle one where there is any; false: there is none that may go. */
  private async makeRoom(resident: Resident<M>): Promise<boolean> {
    // What is on its way out makes room by itself.
    const [leaving] = this.leaving;
    if (leaving !== undefined) {
      await orAborted(leaving.gone!, this.closing.signal);
      return true;
    }
    const candidates = this.others(resident).filter(({ model }) => !model.pinned);
    candidates.sort((a, b) => Math.sign(a.leases) - Math.sign(b.leases) || a.use - b.use);
    if (candidates.length === 0) return false;
    log.info(`unloading ${candidates[0].model.id}: ${resident.model.id} needs its place`);
    await orAborted(this.evict(candidates[0]), this.closing.signal);
    return true;
  }

  /** Requests for it from here on load it anew. Resolves when it has answered and is gone. */
  private evict(resident: Resident<M>): Promise<void> {
    if (resident.gone !== undefined) return resident.gone;
    if (this.residents.get(resident.model.id) === resident) this.residents.delete(resident.model.id);
    this.leaving.add(resident);
    clearTimeout(resident.timer);
    const idle = resident.leases === 0 ? Promise.resolve() : new Promise<void>((done) => (resident.whenIdle = done));
    resident.gone = (async () => {
      const loaded = await resident.loading.catch(() => undefined);
      await idle;
      await loaded?.close();
      this.leaving.delete(resident);
      this.grant();
    })();
    return resident.gone;
  }

  private lease(resident: Resident<M>, change: 1 | -1): void {
    resident.leases += change;
    resident.usedAt = this.now();
    resident.use = ++this.uses;
    if (resident.leases === 0) resident.whenIdle?.();
    this.settle(resident);
  }

  /** After any change of who holds it: when it goes, and who has which threads. */
  private settle(resident: Resident<M>): void {
    if (resident.loaded === undefined || resident.gone !== undefined) return;
    clearTimeout(resident.timer);
    resident.expiresAt = resident.usedAt + resident.keepAliveMs;
    if (resident.leases === 0) {
      if (resident.keepAliveMs <= 0) void this.evict(resident);
      else if (Number.isFinite(resident.keepAliveMs)) this.expireLater(resident);
    }
    this.grant();
  }

  private expireLater(resident: Resident<M>): void {
    const wait = Math.min(longestTimer, Math.max(0, resident.expiresAt - this.now()));
    resident.timer = setTimeout(() => {
      if (this.now() < resident.expiresAt) this.expireLater(resident);
      else void this.evict(resident);
    }, wait);
    resident.timer.unref();
  }

  private grant(): void {
    const { threads } = this.settings;
    if (threads === undefined) return;
    const loaded = [...this.residents.values(), ...this.leaving].filter((one) => one.loaded !== undefined);
    const active = loaded.filter(({ leases }) => leases > 0);
    const shares = shareThreads(threads, active.length);
    for (const resident of loaded) {
      const place = active.indexOf(resident);
      resident.loaded!.grantThreads(place < 0 ? threads : shares[place]);
    }
  }

  private async queue(loading: Promise<Loaded>, signal: AbortSignal | undefined): Promise<Loaded> {
    if (this.queued >= this.settings.maxQueued) {
      throw new UserError(
        `The server is busy: ${this.queued} requests wait for models to be loaded. Try again later.`,
        {
          status: 503,
          code: "queue_full",
          retryAfter: this.loadSeconds,
        },
      );
    }
    this.queued += 1;
    try {
      return await orAborted(loading, this.closing.signal, signal);
    } finally {
      this.queued -= 1;
    }
  }
}

/** The promise's outcome, or the first signal's reason. */
async function orAborted<T>(promise: Promise<T>, ...signals: (AbortSignal | undefined)[]): Promise<T> {
  const signal = AbortSignal.any(signals.filter((one) => one !== undefined));
  signal.throwIfAborted();
  let stop: () => void = () => {};
  const ended = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
  });
  try {
    return await Promise.race([promise, ended]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

export function fingerprint(...parts: readonly (string | number)[]): string {
  return `fp_${createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 12)}`;
}
