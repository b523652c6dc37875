// Owns: the page pools of one rank: values as f32, rounded to the cache's dtype when they are stored. A page comes into
// being when it is first touched, so a large pool costs nothing before it is used.
//
//   page of a paged group:  | cache 0: pageTokens × (k row, v row) | cache 1: ... |
//   page of a state group:  | state of cache 0 | state of cache 1 | ...
import type { Cache, Plan } from "../../plan/plan.js";
import type { GroupShape } from "../budget.js";
import type { KvDType } from "../device.js";
import { roundKv } from "../kv.js";

export class Pages {
  private readonly pools: (Float32Array | undefined)[][];
  /** Where each cache starts in a page of its group, in values. */
  private readonly offsets: number[] = [];

  constructor(
    private readonly plan: Plan,
    private readonly groups: readonly GroupShape[],
    counts: readonly number[],
    private readonly dtype: KvDType,
  ) {
    this.pools = counts.map(() => []);
    const filled = groups.map(() => 0);
    for (const cache of plan.caches) {
      this.offsets.push(filled[cache.group]);
      filled[cache.group] += this.values(cache);
    }
  }

  page(group: number, page: number): Float32Array {
    return (this.pools[group][page] ??= new Float32Array(this.groups[group].pageBytes / 4));
  }

  copy(group: number, from: number, to: number): void {
    this.page(group, to).set(this.page(group, from));
  }

  /** Views of the rows of one position of a cache. */
  rows(index: number, page: number, within: number): { k: Float32Array; v: Float32Array } {
    const cache = this.plan.caches[index] as Extract<Cache, { kind: "paged" }>;
    const [kWidth, vWidth] = [cache.numKvHeads * cache.headDim, cache.numKvHeads * cache.vHeadDim];
    const start = this.offsets[index] + within * (kWidth + vWidth);
    const values = this.page(cache.group, page);
    return { k: values.subarray(start, start + kWidth), v: values.subarray(start + kWidth, start + kWidth + vWidth) };
  }

  store(index: number, page: number, within: number, k: Float32Array, v: Float32Array): void {
    const rows = this.rows(index, page, within);
    const { numKvHeads } = this.plan.caches[index] as Extract<Cache, { kind: "paged" }>;
    rows.k.set(k);
    rows.v.set(v);
    for (const row of [rows.k, rows.v]) roundKv(this.dtype, row, row.length / numKvHeads);
  }

  state(index: number, page: number): Float32Array {
    const cache = this.plan.caches[index];
    return this.page(cache.group, page).subarray(this.offsets[index], this.offsets[index] + this.values(cache));
  }

  clear(): void {
    for (const pool of this.pools) pool.length = 0;
  }

  /** Values that a page holds of this cache. */
  private values(cache: Cache): number {
    if (cache.kind === "state") return cache.shape.reduce((a, b) => a * b, 1);
    return this.groups[cache.group].pageTokens * cache.numKvHeads * (cache.headDim + cache.vHeadDim);
  }
}
