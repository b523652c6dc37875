// Owns: which pages each sequence holds, over all page groups: growing (with copy on write), giving back what lies behind a
// window, sharing between choices, and finding a prefix that is in the cache.
//
//   full group    pages 0 … n−1 of the sequence
//   window group  pages first … n−1: those behind the window have been given back
//   state group   one page, the state after `computed` tokens; snapshots at page boundaries are pages of their own
import { check } from "../base/errors.js";
import type { PageGroup, Program } from "../device/device.js";
import type { PageNames } from "./names.js";
import { PagePool } from "./pages.js";

/** One sequence's pages of one group. */
export interface Held {
  /** Index within the sequence of ids[0]; 0 in state groups. */
  first: number;
  readonly ids: number[];
}

/** A snapshot of a state is called as the last full page before it, in its own group's pool. */
export class Holdings {
  readonly pools: readonly PagePool[];
  readonly groups: readonly PageGroup[];
  /** Tokens a page, the same in every paged group; state groups are snapshot at multiples of it. */
  readonly pageTokens: number;
  readonly hasStates: boolean;
  /** Hears of pages that can be found from now on, and that other processes could use. */
  onNamed: (group: number, page: number, name: string) => void = () => {};

  constructor(private readonly program: Pick<Program, "caches" | "copyPages">) {
    this.groups = program.caches;
    this.pools = this.groups.map((group) => new PagePool(group.numPages));
    const sizes = new Set(this.groups.filter((group) => group.kind === "paged").map((group) => group.pageTokens));
    check(sizes.size <= 1, "page groups of one program have pages of the same number of tokens");
    this.pageTokens = sizes.values().next().value ?? 64;
    this.hasStates = this.groups.some((group) => group.kind === "state");
  }

  none(): Held[] {
    return this.groups.map(() => ({ first: 0, ids: [] }));
  }

  /** Pages of the group that a sequence of `length` tokens holds at most, when steps bring it `chunk` at a time. */
  need(g: number, length: number, chunk: number): number {
    const { kind, window } = this.groups[g];
    if (kind === "state") return 1;
    const all = Math.ceil(length / this.pageTokens);
    return window === undefined ? all : Math.min(all, Math.ceil((window + chunk) / this.pageTokens) + 1);
  }

  /** The longest sequence that the group holds alone, its chunks as short as they must be. */
  capacity(g: number): number {
    const { kind, window, numPages } = this.groups[g];
    if (kind === "state") return numPages > 0 ? Number.MAX_SAFE_INTEGER : 0;
    if (window !== undefined && numPages >= Math.ceil(window / this.pageTokens) + 1) return Number.MAX_SAFE_INTEGER;
    return numPages * this.pageTokens;
  }

  /**
   * Makes the pages ready to be written from `computed` to `end`: takes new ones, copies shared ones. All or nothing:
   * false where a pool has too few.
   */
  grow(held: readonly Held[], computed: number, end: number): boolean {
    for (let g = 0; g < held.length; g++) {
      if (this.wanted(g, held[g], computed, end) > this.pools[g].available) return false;
    }
    for (let g = 0; g < held.length; g++) {
      const { ids, first } = held[g];
      const from = this.groups[g].kind === "state" ? 0 : Math.floor(computed / this.pageTokens) - first;
      for (let i = from; i < ids.length; i++) if (this.pools[g].shared(ids[i])) this.unshare(g, ids, i);
      for (let more = this.pagesTo(g, held[g], end) - ids.length; more > 0; more--) ids.push(this.pools[g].take());
    }
    return true;
  }

  /** Gives back pages that no position from `computed` on reads. */
  trim(held: readonly Held[], computed: number): void {
    for (let g = 0; g < held.length; g++) {
      const { window } = this.groups[g];
      if (window === undefined) continue;
      const first = this.firstSeen(window, computed);
      while (held[g].first < first && held[g].ids.length > 0) {
        this.pools[g].release(held[g].ids.shift()!);
        held[g].first++;
      }
    }
  }

  /** Last page first, so that a prefix outlives what follows it. */
  release(held: readonly Held[]): void {
    for (let g = 0; g < held.length; g++) {
      const { ids } = held[g];
      while (ids.length > 0) this.pools[g].release(ids.pop()!);
      held[g].first = 0;
    }
  }

  /** The same pages once more. The next write through either holding copies what it touches. */
  share(held: readonly Held[]): Held[] {
    return held.map(({ first, ids }, g) => {
      for (const id of ids) this.pools[g].retain(id);
      return { first, ids: [...ids] };
    });
  }

  /**
   * Finds the longest prefix of at most `most` whole pages that a sequence can begin with, and holds it (held must be
   * empty): all its pages in full groups, those within the window in window groups, a snapshot in state groups.
   * Returns its length in pages.
   */
  adopt(held: readonly Held[], names: PageNames, tokens: Int32Array, most: number): number {
    const pages = this.reach(names, tokens, most, (g, name) => this.pools[g].find(name) !== undefined);
    if (pages === 0) return 0;
    for (let g = 0; g < held.length; g++) {
      const first = this.firstOf(g, pages);
      held[g].first = this.groups[g].kind === "state" ? 0 : first;
      for (let i = first; i < pages; i++) {
        const id = this.pools[g].find(names.at(i, tokens))!;
        this.pools[g].retain(id);
        held[g].ids.push(id);
      }
    }
    return pages;
  }

  /** The longest prefix, in pages, that a sequence could begin with if all that `has` knows were in the cache. */
  reach(names: PageNames, tokens: Int32Array, most: number, has: (group: number, name: string) => boolean): number {
    const found = this.groups.map((group) => (group.kind === "state" ? [] : new Int32Array(most)));
    let longest = most;
    for (let g = 0; g < found.length; g++) {
      const { kind, window } = this.groups[g];
      if (kind === "state") continue;
      let run = 0; // pages that are there without a gap, up to here
      for (let i = 0; i < longest; i++) {
        run = has(g, names.at(i, tokens)) ? run + 1 : 0;
        found[g][i] = run;
        if (run === 0 && window === undefined) longest = i;
      }
    }
    const startsAt = (pages: number) =>
      this.groups.every(({ kind }, g) =>
        kind === "state" ? has(g, names.at(pages - 1, tokens)) : found[g][pages - 1] >= pages - this.firstOf(g, pages),
      );
    let pages = longest;
    while (pages > 0 && !startsAt(pages)) pages--;
    return pages;
  }

  /** Of a prefix of so many pages, the first that is needed to go on; in state groups the snapshot's. */
  firstOf(g: number, pages: number): number {
    const { kind, window } = this.groups[g];
    if (kind === "state") return pages - 1;
    return window === undefined ? 0 : this.firstSeen(window, pages * this.pageTokens);
  }

  /** Pages from..to of the sequence are full and final: they can be found from now on. */
  name(held: readonly Held[], names: PageNames, tokens: Int32Array, from: number, to: number): void {
    for (let g = 0; g < held.length; g++) {
      if (this.groups[g].kind === "state") continue;
      for (let i = Math.max(from, held[g].first); i < to; i++) {
        const page = held[g].ids[i - held[g].first];
        const name = names.at(i, tokens);
        if (this.pools[g].name(page, name) && names.lasting) this.onNamed(g, page, name);
      }
    }
  }

  /** Keeps a copy of the states as they are after `pages` whole pages, where a page for it can be had. */
  snapshot(held: readonly Held[], names: PageNames, tokens: Int32Array, pages: number): void {
    for (let g = 0; g < held.length; g++) {
      if (this.groups[g].kind !== "state") continue;
      const name = names.at(pages - 1, tokens);
      if (this.pools[g].find(name) !== undefined || this.pools[g].available === 0) continue;
      const copy = this.pools[g].take();
      this.program.copyPages(g, Int32Array.of(held[g].ids[0]), Int32Array.of(copy));
      this.pools[g].name(copy, name);
      this.pools[g].release(copy);
    }
  }

  forgetAll(): void {
    for (const pool of this.pools) pool.forgetAll();
  }

  /** Every page is used, cached or free, and the sequences account for every reference of a used one. */
  check(live: Iterable<readonly Held[]>): void {
    const holders = this.pools.map(() => new Set<number>());
    for (const held of live) {
      for (const [g, { ids }] of held.entries()) for (const id of ids) holders[g].add(id);
    }
    this.pools.forEach((pool, g) => {
      pool.check();
      const used = pool.numPages - pool.available;
      check(holders[g].size === used, `group ${g}: ${used} pages are used, sequences hold ${holders[g].size}`);
    });
  }

  /** What grow() would take of the group. */
  wanted(g: number, held: Held, computed: number, end: number): number {
    const from = this.groups[g].kind === "state" ? 0 : Math.floor(computed / this.pageTokens) - held.first;
    let count = this.pagesTo(g, held, end) - held.ids.length;
    for (let i = Math.max(0, from); i < held.ids.length; i++) if (this.pools[g].shared(held.ids[i])) count++;
    return Math.max(0, count);
  }

  private pagesTo(g: number, held: Held, end: number): number {
    return this.groups[g].kind === "state" ? 1 : Math.ceil(end / this.pageTokens) - held.first;
  }

  private unshare(g: number, ids: number[], i: number): void {
    const copy = this.pools[g].take();
    this.program.copyPages(g, Int32Array.of(ids[i]), Int32Array.of(copy));
    this.pools[g].release(ids[i]);
    ids[i] = copy;
  }

  /** The first page that a token at `position` sees. */
  private firstSeen(window: number, position: number): number {
    return Math.floor(Math.max(0, position - window + 1) / this.pageTokens);
  }
}
