// Owns: a Program that computes nothing and checks everything. A page holds the ids of the tokens written there, a state
// page a hash of its sequence; a drawn token is a hash of what attention would have seen through the page tables. So a
// wrong page, a wrong prefix hit or a wrong resume shows as another token than the same request gives alone.
import { check, InternalError } from "../../base/errors.js";
import type { HostTensor } from "../../plan/op.js";
import { type Batch, SlotInt, type Step, type StepResult, slotInts } from "../batch.js";
import { checkPageIds } from "../check.js";
import type { Limits, MemoryReport, PageGroup, Program } from "../device.js";
import { awaitMasks } from "../masks.js";
import { checkNullBatch } from "./check.js";

/** What goes wrong with step k (0: the first). "throw": run() itself; "reject": its result. */
export type Fault = (step: number) => "throw" | "reject" | undefined;

export interface NullOptions {
  readonly groups: readonly PageGroup[];
  readonly vocabSize: number;
  readonly limits: Limits;
  readonly fault?: Fault;
  /** Called before a step's result is given: a delay, where there is to be one. */
  readonly beforeResult?: () => Promise<void>;
}

interface SlotState {
  seed: number;
  lastToken: number;
  /** Drawn by steps that were launched: what later batches may refer to. */
  launched: boolean;
}

/** [hash, tokens] of a sequence in a state page. */
const stateInts = 2;

export class NullProgram implements Program {
  readonly memory: MemoryReport;
  readonly caches: readonly PageGroup[];
  readonly vocabSize: number;
  /** Of every group: what each page holds. −1: never written. */
  private readonly pages: Int32Array[][];
  private readonly slots = new Map<number, SlotState>();
  private readonly limits: Limits;
  /** Ends when everything that was asked for is done. */
  private tail: Promise<unknown> = Promise.resolve();
  private inFlight = 0;
  private steps = 0;
  private closed = false;

  constructor(private readonly options: NullOptions) {
    this.caches = options.groups;
    this.vocabSize = options.vocabSize;
    this.limits = options.limits;
    this.pages = options.groups.map(({ kind, pageTokens, numPages }) =>
      Array.from({ length: numPages }, () => new Int32Array(kind === "state" ? stateInts : pageTokens).fill(-1)),
    );
    const cache = options.groups.reduce((sum, { pageBytes, numPages }) => sum + pageBytes * numPages, 0);
    const pagesPerGroup = options.groups.map(({ numPages }) => numPages);
    this.memory = { weights: 0, workspace: 0, cache, pagesPerGroup, maxContext: options.limits.contextLength };
  }

  run(batch: Batch): Step {
    check(!this.closed, "the program is closed");
    check(this.inFlight < this.limits.depth, `${this.inFlight} steps are in flight, the limit is ${this.limits.depth}`);
    const fault = this.options.fault?.(this.steps++);
    if (fault === "throw") throw new InternalError("the null device was told to throw");
    for (const slot of batch.updates.slots) this.launch(slot).launched = false;
    checkNullBatch(batch, this.limits, this.caches, this.vocabSize, (slot) => this.launch(slot).launched);
    for (let s = 0; s < batch.slots.length; s++) {
      if (drawnRows(batch, s).length > 0) this.launch(batch.slots[s]).launched = true;
    }
    this.inFlight++;
    const masks = awaitMasks(batch, this.vocabSize);
    // later, so that arrays which the engine reuses too early show
    const result = this.enqueue(async () => {
      try {
        await this.options.beforeResult?.();
        if (fault === "reject") throw new InternalError("the null device was told to fail");
        return this.compute(batch, batch.maskedRows.length > 0 ? await masks.given : undefined);
      } finally {
        this.inFlight--;
      }
    });
    return { result, setMasks: masks.set };
  }

  copyPages(group: number, from: Int32Array, to: Int32Array): void {
    check(from.length === to.length, "as many pages are copied from as to");
    checkPageIds(this.caches, group, from);
    checkPageIds(this.caches, group, to);
    this.enqueue(async () => {
      for (let i = 0; i < from.length; i++) this.pages[group][to[i]].set(this.pages[group][from[i]]);
    });
  }

  readPages(group: number, ids: Int32Array): Promise<Uint8Array> {
    checkPageIds(this.caches, group, ids);
    return this.enqueue(async () => {
      const values = Int32Array.from([...ids].flatMap((id) => [...this.pages[group][id]]));
      return new Uint8Array(values.buffer);
    });
  }

  writePages(group: number, ids: Int32Array, bytes: Uint8Array): void {
    checkPageIds(this.caches, group, ids, bytes.length);
    const values = new Int32Array(bytes.slice().buffer);
    this.enqueue(async () => {
      const size = values.length / ids.length;
      ids.forEach((id, i) => {
        this.pages[group][id].set(values.subarray(i * size, (i + 1) * size));
      });
    });
  }

  async loadAdapter(slot: number): Promise<void> {
    check(slot >= 0 && slot < this.limits.adapterSlots, `there is no adapter slot ${slot}`);
  }

  async swapWeights(): Promise<void> {}

  async sleep(): Promise<void> {}

  async wake(): Promise<void> {}

  dump(tensor: string): Promise<HostTensor> {
    return Promise.reject(new InternalError(`the null device computes nothing, ${tensor} neither`));
  }

  async close(): Promise<void> {
    this.closed = true;
    await this.tail;
  }

  private enqueue<T>(work: () => Promise<T>): Promise<T> {
    const done = this.tail.then(work);
    this.tail = done.catch(() => {});
    return done;
  }

  private launch(slot: number): SlotState {
    let state = this.slots.get(slot);
    if (!state) this.slots.set(slot, (state = { seed: 0, lastToken: -1, launched: false }));
    return state;
  }

  private compute(batch: Batch, masks: Uint32Array | undefined): StepResult {
    const { updates } = batch;
    updates.slots.forEach((slot, u) => {
      const ints = updates.ints.subarray(u * slotInts, (u + 1) * slotInts);
      this.launch(slot).seed = mix(ints[SlotInt.seedLow], ints[SlotInt.seedHigh]);
    });
    const n = batch.rows.length;
    const top = batch.topLogprobs;
    const result: StepResult = {
      tokens: new Int32Array(n),
      logprobs: new Float32Array(n),
      ranks: new Int32Array(n),
      topIds: new Int32Array(n * top),
      topLogprobs: new Float32Array(n * top),
    };
    let row = 0;
    for (let s = 0; s < batch.slots.length; s++) {
      const slot = this.launch(batch.slots[s]);
      for (let t = batch.tokenStart[s]; t < batch.tokenStart[s + 1]; t++) {
        const position = batch.kvStart[s] + t - batch.tokenStart[s];
        const token = batch.tokens[t] < 0 ? this.launch(-1 - batch.tokens[t]).lastToken : batch.tokens[t];
        this.write(batch, s, position, token);
        for (; row < n && batch.rows[row] === t; row++) {
          const seen = this.seen(batch, s, position);
          const target = batch.targets[row];
          const id = target >= 0 ? target : this.draw(batch, row, mix(mix(seen, slot.seed), position), masks);
          if (target < 0) slot.lastToken = id;
          result.tokens[row] = id;
          result.logprobs[row] = -((mix(seen, id) >>> 8) / 2 ** 24);
          result.ranks[row] = mix(seen, ~id) >>> 24;
          for (let i = 0; i < top; i++) {
            const best = (mix(seen, 77) + i) >>> 0;
            result.topIds[row * top + i] = best % this.vocabSize;
            result.topLogprobs[row * top + i] = -i - (seen >>> 0) / 2 ** 32;
          }
        }
      }
    }
    return result;
  }

  private write(batch: Batch, s: number, position: number, token: number): void {
    this.caches.forEach(({ kind, pageTokens }, g) => {
      const table = batch.pages[g];
      if (kind === "paged") {
        const at = table.start[s] + Math.floor(position / pageTokens) - table.first[s];
        this.pages[g][table.ids[at]][position % pageTokens] = token;
        return;
      }
      const state = this.pages[g][table.ids[table.start[s]]];
      if (position === 0) state.fill(0);
      check(state[1] === position, `a state of ${state[1]} tokens is continued at position ${position}`);
      state[0] = mix(state[0], token);
      state[1]++;
    });
  }

  /** A hash of what the position sees in every group. */
  private seen(batch: Batch, s: number, position: number): number {
    let hash = 0;
    this.caches.forEach(({ kind, pageTokens, window }, g) => {
      const table = batch.pages[g];
      if (kind === "state") {
        hash = mix(hash, this.pages[g][table.ids[table.start[s]]][0]);
        return;
      }
      for (let p = window === undefined ? 0 : Math.max(0, position - window + 1); p <= position; p++) {
        const page = table.ids[table.start[s] + Math.floor(p / pageTokens) - table.first[s]];
        const token = this.pages[g][page][p % pageTokens];
        check(token >= 0, `position ${p} of sequence ${s} is read in group ${g} and was never written`);
        hash = mix(hash, token);
      }
    });
    return hash;
  }

  /** The first id from the hash on that neither the bias nor the mask forbids. */
  private draw(batch: Batch, row: number, hash: number, masks: Uint32Array | undefined): number {
    const { start, ids, values } = batch.bias;
    const forbidden = new Set<number>();
    for (let i = start[row]; i < start[row + 1]; i++) if (values[i] === Number.NEGATIVE_INFINITY) forbidden.add(ids[i]);
    const masked = batch.maskedRows.indexOf(row);
    const words = Math.ceil(this.vocabSize / 32);
    const allowed = (id: number) =>
      !forbidden.has(id) && (masked < 0 || (masks![masked * words + (id >>> 5)] >>> (id & 31)) & 1);
    const first = (hash >>> 0) % this.vocabSize;
    for (let i = 0; i < this.vocabSize; i++) {
      const id = (first + i) % this.vocabSize;
      if (allowed(id)) return id;
    }
    return first;
  }
}

/** Rows of sequence s that draw. */
function drawnRows(batch: Batch, s: number): number[] {
  const [from, to] = [batch.tokenStart[s], batch.tokenStart[s + 1]];
  return [...batch.rows.keys()].filter((r) => batch.targets[r] < 0 && batch.rows[r] >= from && batch.rows[r] < to);
}

/** Two words to one, well spread (multiply and shift, as in murmur3's finaliser). */
function mix(a: number, b: number): number {
  let h = Math.imul(a ^ Math.imul(b + 0x7ed55d16, 0x85ebca6b), 0xc2b2ae35);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  return h ^ (h >>> 13);
}
