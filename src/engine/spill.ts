// Owns: traffic between a program's pages and the tiers below the device (a PageStore: memory, disk). Pages that can be
// found by their content are copied down, a few between steps or when they are about to be written over; where a prompt
// begins with pages that the device has not, they are fetched into the device's cache before it is admitted, if that is
// expected to be quicker than computing them. Knows nothing of files or threads, and nothing of how a sequence runs:
// what it brings is an ordinary cached page.
//
//   named ──unsaved──► put ──► memory, disk          between two steps; at the latest when the page is taken
//   sought ─► get ─► arrived ──► written, named      between two steps; the sequence waits in line meanwhile, others run
import type { Program } from "../device/device.js";
import type { Holdings } from "./holdings.js";
import type { Sequence } from "./sequence.js";
import type { EngineStats } from "./types.js";

export type Tier = "memory" | "disk";

/** Keeps pages beyond this process. A page is asked for by its key (pageKey): equal keys are equal bytes. */
export interface PageStore {
  /** Where the page is, as far as is known here; undefined: nowhere. */
  find(key: string): Tier | undefined;
  /** It has room for more pages on their way down: what is put otherwise is dropped. */
  readonly takes: boolean;
  /** Takes the bytes over. */
  put(key: string, bytes: Uint8Array): void;
  /** In the order of the keys; undefined: gone, damaged, or not there in time. */
  get(keys: readonly string[], patienceMs: number): Promise<readonly (Uint8Array | undefined)[]>;
  readonly stats: Record<Tier, { readonly pages: number; readonly bytes: number }> & { readonly damaged: number };
}

export interface SpillOptions {
  /** Milliseconds. */
  readonly now: () => number;
  /** Results of the steps that run: should one fail, what it computed is not what its name says. */
  readonly inFlight: () => readonly Promise<unknown>[];
  /** There is something to do between steps. */
  readonly wake: () => void;
  /** Milliseconds that computing so many tokens takes; undefined: not known yet. */
  readonly promptMs: (tokens: number) => number | undefined;
}

/** The page's group, then its name. */
export function pageKey(group: number, name: string): string {
  return String.fromCharCode(group) + name;
}

interface Page {
  readonly group: number;
  readonly name: string;
  readonly key: string;
}

/** Pages that have come and are to be written, the prefix's last first. */
interface Arrival {
  readonly pages: { readonly page: Page; readonly bytes: Uint8Array }[];
  readonly done: () => void;
}

/** Of the engine's time, what copying pages down may take while requests run; and the most at once, in milliseconds. */
const saveShare = 0.02;
const saveMs = 4;
/** Milliseconds between two steps for writing pages that have come. */
const installMs = 8;
/** Pages that are fetched at once: what comes first is written while the rest is read. */
const segmentPages = 16;
/** How long a fetch is waited for where nobody knows what computing would take, and at the least, in milliseconds. */
const patienceMs = 10_000;
const leastPatienceMs = 250;
/** How much the latest fetch counts; and how much each one that was not tried takes off what it is thought to cost, so
 *  that it is tried again. */
const rate = 0.3;
const hope = 0.95;

export class Spill {
  /** Can be found, and is in no tier yet; oldest first. */
  private readonly unsaved = new Map<string, Page & { readonly id: number }>();
  /** On their way down. */
  private saving = 0;
  private credit = 0;
  private creditedAt: number;
  private readonly fetches = new Map<string, Promise<void>>();
  private arrivals: Arrival[] = [];
  /** Measured, milliseconds a byte, from asking to having written it. */
  private readonly cost: Partial<Record<Tier, number>> = {};
  private readonly hits = { memory: 0, disk: 0 };
  private readonly misses = { memory: 0, disk: 0 };
  private skipped = 0;
  private stopped = false;

  constructor(
    private readonly program: Pick<Program, "caches" | "readPages" | "writePages">,
    private readonly holdings: Holdings,
    private readonly store: PageStore,
    private readonly options: SpillOptions,
  ) {
    this.creditedAt = options.now();
    holdings.onNamed = (group, id, name) => {
      const key = pageKey(group, name);
      if (store.find(key) === undefined) this.unsaved.set(key, { group, name, key, id });
    };
    holdings.pools.forEach((pool, group) => {
      pool.onForgotten = (id, name) => {
        const key = pageKey(group, name);
        if (this.unsaved.get(key)?.id === id) this.save(key);
      };
    });
  }

  stats(): NonNullable<EngineStats["tiers"]> {
    const { memory, disk, damaged } = this.store.stats;
    const of = (tier: Tier) => ({ hits: this.hits[tier], misses: this.misses[tier] });
    return { memory: { ...of("memory"), ...memory }, disk: { ...of("disk"), ...disk }, skipped: this.skipped, damaged };
  }

  /** Between two steps. idle: nothing else is to be done. True: there is more to do at once. */
  work(idle: boolean): boolean {
    this.install();
    const { now } = this.options;
    const from = now();
    this.credit = Math.min(saveMs, this.credit + (from - this.creditedAt) * saveShare);
    this.creditedAt = from;
    if (idle) this.credit = saveMs;
    while (this.credit > 0 && this.unsaved.size > 0 && this.saving < 4 && this.store.takes) {
      const before = now();
      this.save(this.unsaved.keys().next().value!);
      this.credit -= Math.max(now() - before, 0.01);
    }
    return this.arrivals.length > 0 || (this.unsaved.size > 0 && this.saving < 4 && this.store.takes);
  }

  /**
   * Called when the sequence is first in line with nothing computed. True: it has to wait, `fetching`, for pages that are
   * worth fetching.
   */
  seek(sequence: Sequence): boolean {
    const { names, tokens, length } = sequence;
    const { holdings, store } = this;
    if (this.stopped || !names.lasting) return false;
    const most = Math.floor((length - 1) / holdings.pageTokens);
    const here = (g: number, name: string) => holdings.pools[g].find(name) !== undefined;
    const from = holdings.reach(names, tokens, most, here);
    if (from === most) return false;
    const to = holdings.reach(names, tokens, most, (g, n) => here(g, n) || store.find(pageKey(g, n)) !== undefined);
    if (to <= from) {
      this.count(sequence, from, to, most);
      return false;
    }
    const { missing, present } = this.pagesOf(sequence, to);
    const underWay = missing.map(({ key }) => this.fetches.get(key)).find((fetch) => fetch !== undefined);
    if (underWay) {
      // Another's prompt begins alike: what is left after it is looked for again.
      sequence.fetching = true;
      void underWay.then(() => {
        sequence.sought = false;
        this.release(sequence);
      });
      return true;
    }
    this.count(sequence, from, to, most);
    const expected = this.options.promptMs((to - from) * holdings.pageTokens);
    if (!this.fits(missing, present) || !this.isWorth(missing, expected)) {
      this.skipped += missing.length;
      return false;
    }
    // What is here already is not what goes to make room.
    for (const { group, name } of present.reverse()) holdings.pools[group].touch(holdings.pools[group].find(name)!);
    sequence.fetching = true;
    const fetch = this.fetch(missing, Math.max(leastPatienceMs, expected ?? patienceMs)).then(() => {
      for (const { key } of missing) this.fetches.delete(key);
      this.release(sequence);
    });
    for (const { key } of missing) this.fetches.set(key, fetch);
    return true;
  }

  /** The device has failed: nothing of what it holds is to be kept. */
  forget(): void {
    this.unsaved.clear();
    for (const { done } of this.arrivals.splice(0)) done();
  }

  /** Copies down what has not been, for so long at most. No step may run any more. */
  async flush(ms: number, pause: () => Promise<void>): Promise<void> {
    this.stopped = true;
    for (const { done } of this.arrivals.splice(0)) done();
    const end = this.options.now() + ms;
    while ((this.unsaved.size > 0 || this.saving > 0) && this.options.now() < end) {
      if (this.unsaved.size > 0 && this.saving < 4 && this.store.takes) this.save(this.unsaved.keys().next().value!);
      else await pause();
    }
  }

  private save(key: string): void {
    const { group, id } = this.unsaved.get(key)!;
    this.unsaved.delete(key);
    if (!this.store.takes || this.store.find(key) !== undefined) return;
    this.saving++;
    void Promise.all([this.program.readPages(group, Int32Array.of(id)), ...this.options.inFlight()])
      .then(
        ([bytes]) => this.store.put(key, bytes),
        () => {}, // a device that fails says so to its requests
      )
      .then(() => {
        this.saving--;
        this.options.wake();
      });
  }

  /** Of the first group's pages that the device has not: which tier has them. */
  private count({ names, tokens }: Sequence, from: number, to: number, most: number): void {
    for (let i = from; i < most; i++) {
      const tier = i < to ? this.store.find(pageKey(0, names.at(i, tokens))) : undefined;
      if (tier === "memory") this.hits.memory++;
      else this.misses.memory++;
      if (tier === "disk") this.hits.disk++;
      else if (tier === undefined) this.misses.disk++;
    }
  }

  /** What a prefix of so many pages takes: pages that are to be fetched, and those in the device's cache, in order. */
  private pagesOf({ names, tokens }: Sequence, to: number): { missing: Page[]; present: Page[] } {
    const missing: Page[] = [];
    const present: Page[] = [];
    for (let i = 0; i < to; i++) {
      const name = names.at(i, tokens);
      for (let group = 0; group < this.holdings.groups.length; group++) {
        if (i < this.holdings.firstOf(group, to)) continue;
        const list = this.holdings.pools[group].find(name) === undefined ? missing : present;
        list.push({ group, name, key: pageKey(group, name) });
      }
    }
    return { missing, present };
  }

  /** Nobody who runs loses a page to it, nor does it itself. */
  private fits(missing: readonly Page[], present: readonly Page[]): boolean {
    return this.holdings.pools.every((pool, g) => {
      const count = (pages: readonly Page[]) => pages.reduce((sum, { group }) => sum + (group === g ? 1 : 0), 0);
      return count(missing) + count(present) <= pool.available;
    });
  }

  private isWorth(missing: readonly Page[], computeMs: number | undefined): boolean {
    let ms = 0;
    for (const { group, key } of missing) {
      const tier = this.store.find(key)!;
      // What has not been measured is found out by doing it.
      ms += this.program.caches[group].pageBytes * (this.cost[tier] ?? 0);
    }
    if (computeMs === undefined || ms < computeMs) return true;
    for (const tier of ["memory", "disk"] as const) if (this.cost[tier] !== undefined) this.cost[tier] *= hope;
    return false;
  }

  /** One segment is read while the one before it is written. */
  private async fetch(missing: readonly Page[], patience: number): Promise<void> {
    const end = this.options.now() + patience;
    const ask = (at: number) => {
      const segment = missing.slice(at, at + segmentPages);
      const tier = segment.some(({ key }) => this.store.find(key) === "disk") ? "disk" : "memory";
      const keys = segment.map(({ key }) => key);
      const found = segment.length > 0 && this.store.get(keys, Math.max(0, end - this.options.now()));
      return { segment, tier, found } as const;
    };
    let next = ask(0);
    for (let at = segmentPages; next.segment.length > 0; at += segmentPages) {
      const { segment, tier, found } = next;
      const before = this.options.now();
      const bytes = await found;
      if (this.stopped || !bytes) return;
      next = ask(at);
      const pages = segment.flatMap((page, i) => (bytes[i] ? [{ page, bytes: bytes[i] }] : []));
      const isWhole = pages.length === segment.length;
      await new Promise<void>((done) => {
        this.arrivals.push({ pages, done });
        this.options.wake();
      });
      const now = this.options.now();
      if (isWhole || now >= end) this.measured(tier, segment, now - before);
      if (!isWhole) return; // what follows a gap is of no use
    }
  }

  private measured(tier: Tier, segment: readonly Page[], ms: number): void {
    const bytes = segment.reduce((sum, { group }) => sum + this.program.caches[group].pageBytes, 0);
    const before = this.cost[tier] ?? ms / bytes;
    this.cost[tier] = before + rate * (ms / bytes - before);
  }

  /** Writes what has come, for a while. The last page of a prefix first, so that a page outlives what follows it. */
  private install(): void {
    const { now } = this.options;
    const until = now() + installMs;
    while (this.arrivals.length > 0 && now() < until) {
      const { pages, done } = this.arrivals[0];
      const next = pages.pop();
      if (next) this.write(next.page, next.bytes);
      if (pages.length > 0) continue;
      this.arrivals.shift();
      done();
    }
  }

  private write({ group, name }: Page, bytes: Uint8Array): void {
    const pool = this.holdings.pools[group];
    if (pool.find(name) !== undefined || bytes.length !== this.program.caches[group].pageBytes) return;
    const id = pool.take();
    if (id < 0) return; // taken meanwhile: it is computed
    this.program.writePages(group, Int32Array.of(id), bytes);
    pool.name(id, name);
    pool.release(id);
  }

  private release(sequence: Sequence): void {
    sequence.fetching = false;
    this.options.wake();
  }
}
