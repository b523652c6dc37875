// Owns: the reference Program: the queue of steps, page copies and writes (they take effect in the order of the calls),
// slots, adapters, sleeping. One rank, or all ranks of a split plan.
import { check, InternalError, UserError } from "../../base/errors.js";
import type { HostTensor, Sampled } from "../../plan/op.js";
import { adapterSites } from "../../plan/passes/lora.js";
import type { Plan } from "../../plan/plan.js";
import type { Batch, Step, StepResult } from "../batch.js";
import type { GroupShape } from "../budget.js";
import { checkAdapter, checkBatch, checkPageIds, checkWeights } from "../check.js";
import type {
  AdapterSource,
  CompileOptions,
  Limits,
  MemoryReport,
  PageGroup,
  Program,
  WeightSource,
} from "../device.js";
import { awaitMasks } from "../masks.js";
import { interpret, lastUses, type Rank, type Values } from "./interpret.js";
import { Pages } from "./pages.js";
import { type RowResult, sampleRow } from "./sample.js";
import { Slots } from "./slots.js";
import { materialise } from "./weights.js";

export interface ProgramParts {
  readonly plans: readonly Plan[];
  readonly limits: Limits;
  readonly memory: MemoryReport;
  /** Of one rank. */
  readonly groups: readonly GroupShape[];
  readonly pageTokens: number;
  /** Keep every activation of the last step. */
  readonly dump: boolean;
}

export class ReferenceProgram implements Program {
  readonly memory: MemoryReport;
  readonly caches: readonly PageGroup[];
  readonly vocabSize: number;
  private readonly ranks: readonly Rank[];
  private readonly slots = new Slots();
  private readonly adapters = new Map<number, AdapterSource>();
  private readonly sites: ReadonlyMap<string, readonly [number, number]>;
  /** Ends when everything that was asked for is done. */
  private tail: Promise<unknown> = Promise.resolve();
  private inFlight = 0;
  private state: "awake" | "asleep" | "closed" = "awake";
  private last: Values[] | undefined;

  static async compile(parts: ProgramParts, source: WeightSource, options: CompileOptions): Promise<ReferenceProgram> {
    const program = new ReferenceProgram(parts, source);
    await program.load(source, options);
    return program;
  }

  private constructor(
    private readonly parts: ProgramParts,
    private source: WeightSource,
  ) {
    const { plans, limits, memory, groups } = parts;
    this.memory = memory;
    this.vocabSize = plans[0].vocabSize;
    this.caches = groups.map((group, g) => ({
      ...group,
      pageBytes: group.pageBytes * plans.length,
      numPages: memory.pagesPerGroup[g],
    }));
    this.ranks = plans.map((plan) => ({
      plan,
      weights: new Map(),
      pages: new Pages(plan, groups, memory.pagesPerGroup, limits.kvDtype),
      lastUses: lastUses(plan),
    }));
    this.sites = adapterSites(...plans);
  }

  run(batch: Batch): Step {
    const { limits } = this.parts;
    check(this.state === "awake", `the program is ${this.state}`);
    check(this.inFlight < limits.depth, `${this.inFlight} steps are in flight, the limit is ${limits.depth}`);
    checkBatch(batch, limits, this.caches, this.vocabSize);
    this.inFlight++;
    const masks = awaitMasks(batch, this.vocabSize);
    const result = this.enqueue(async () => {
      await nextTask();
      try {
        return await this.step(batch, masks.given);
      } finally {
        this.inFlight--;
      }
    });
    return { result, setMasks: masks.set };
  }

  encode(batch: Batch): Promise<Float32Array> {
    check(this.state === "awake", `the program is ${this.state}`);
    checkBatch(batch, this.parts.limits, this.caches, this.vocabSize);
    return this.enqueue(async () => {
      await nextTask();
      const values = await this.forward(batch, Promise.resolve(new Uint32Array(0)));
      const { outputs } = this.ranks[0].plan.nodes.at(-1)!;
      return values[0][Object.values(outputs)[0].id]!.data as Float32Array;
    });
  }

  copyPages(group: number, from: Int32Array, to: Int32Array): void {
    check(from.length === to.length, "as many pages are copied from as to");
    checkPageIds(this.caches, group, from);
    checkPageIds(this.caches, group, to);
    this.enqueue(async () => {
      for (const { pages } of this.ranks) for (let i = 0; i < from.length; i++) pages.copy(group, from[i], to[i]);
    });
  }

  /** Page after page; a page is each rank's part in rank order, f32 whatever the cache's dtype. */
  readPages(group: number, ids: Int32Array): Promise<Uint8Array> {
    checkPageIds(this.caches, group, ids);
    return this.enqueue(async () => {
      const out = new Float32Array((ids.length * this.caches[group].pageBytes) / 4);
      this.eachPart(group, ids, (page, at) => out.set(page, at));
      return new Uint8Array(out.buffer);
    });
  }

  writePages(group: number, ids: Int32Array, bytes: Uint8Array): void {
    checkPageIds(this.caches, group, ids, bytes.length);
    const values = new Float32Array(bytes.slice().buffer);
    this.enqueue(async () => {
      this.eachPart(group, ids, (page, at) => page.set(values.subarray(at, at + page.length)));
    });
  }

  loadAdapter(slot: number, source: AdapterSource | null): Promise<void> {
    const { adapterSlots } = this.parts.limits;
    check(slot >= 0 && slot < adapterSlots, `there are ${adapterSlots} adapter slots, ${slot} is none of them`);
    if (source) checkAdapter(source, this.sites);
    return this.enqueue(async () => {
      if (source) this.adapters.set(slot, source);
      else this.adapters.delete(slot);
    });
  }

  swapWeights(source: WeightSource): Promise<void> {
    return this.enqueue(async () => {
      this.source = source;
      for (const { pages } of this.ranks) pages.clear();
      if (this.state === "awake") await this.load(source, {});
    });
  }

  sleep(): Promise<void> {
    return this.enqueue(async () => {
      this.unload();
      this.state = "asleep";
    });
  }

  wake(): Promise<void> {
    return this.enqueue(async () => {
      check(this.state !== "closed", "the program is closed");
      await this.load(this.source, {});
      this.state = "awake";
    });
  }

  /** Of rank 0. */
  dump(tensor: string): Promise<HostTensor> {
    return this.enqueue(async () => {
      const rank = this.ranks[0];
      const found = rank.plan.tensors.find(({ name }) => name === tensor);
      if (!found) throw new UserError(`the plan has no tensor called ${tensor}`);
      const value = found.role === "weight" ? rank.weights.get(found.id) : this.last?.[0][found.id];
      if (value) return value;
      const why = this.parts.dump ? "no step has computed it" : "the program was compiled without dump";
      throw new UserError(`${tensor} cannot be shown: ${why}`);
    });
  }

  async close(): Promise<void> {
    await this.enqueue(async () => {
      this.unload();
      this.state = "closed";
    });
  }

  private unload(): void {
    for (const { weights, pages } of this.ranks) {
      weights.clear();
      pages.clear();
    }
    this.last = undefined;
  }

  /** Runs after everything asked for before; a failure is the caller's alone. */
  private enqueue<T>(work: () => Promise<T>): Promise<T> {
    const done = this.tail.then(work);
    this.tail = done.catch(() => {});
    return done;
  }

  private async load(source: WeightSource, { onProgress, signal }: CompileOptions): Promise<void> {
    for (const { plan } of this.ranks) checkWeights(plan, source.tensors);
    const wanted = this.ranks.flatMap((rank) => rank.plan.tensors.map((tensor) => ({ rank, tensor })));
    const weights = wanted.filter(({ tensor }) => tensor.role === "weight");
    for (const [done, { rank, tensor }] of weights.entries()) {
      signal?.throwIfAborted();
      rank.weights.set(tensor.id, { shape: tensor.shape as number[], data: materialise(tensor, source) });
      onProgress?.(done + 1, weights.length);
      await nextTask();
    }
    for (const name of new Set(weights.flatMap(({ tensor }) => (tensor.from ?? []).map((piece) => piece.name)))) {
      source.release(name);
    }
  }

  private async step(batch: Batch, masks: Promise<Uint32Array>): Promise<StepResult> {
    const sampler = new StepSampler(batch, this.slots, this.vocabSize);
    await this.forward(batch, masks, sampler);
    return sampler.result();
  }

  private async forward(batch: Batch, masks: Promise<Uint32Array>, sampler?: StepSampler): Promise<Values[]> {
    check(this.state === "awake", `the program is ${this.state}`);
    const { slots } = this;
    slots.update(batch.updates);
    const adapters = Int32Array.from(batch.slots, (slot) => slots.get(slot).adapter);
    for (const adapter of adapters) {
      if (adapter >= 0 && !this.adapters.has(adapter)) throw new InternalError(`adapter slot ${adapter} is empty`);
    }
    const values = await interpret(this.ranks, {
      batch,
      tokens: batch.tokens.map((id) => (id < 0 ? slots.lastToken(-1 - id) : id)),
      adapters,
      loaded: this.adapters,
      pageTokens: this.parts.pageTokens,
      keep: this.parts.dump,
      sample: (row, logits) => sampler!.sample(row, logits),
      ready: async () => {
        if (batch.maskedRows.length > 0) sampler!.masks = await masks;
      },
    });
    if (this.parts.dump) this.last = values;
    return values;
  }

  private eachPart(group: number, ids: Int32Array, f: (page: Float32Array, at: number) => void): void {
    let at = 0;
    for (const id of ids) {
      for (const { pages } of this.ranks) {
        const page = pages.page(group, id);
        f(page, at);
        at += page.length;
      }
    }
  }
}

/** Draws each row once, whichever ranks ask: all ranks hold the same logits. */
class StepSampler {
  masks: Uint32Array | undefined;
  private readonly rows: RowResult[] = [];

  constructor(
    private readonly batch: Batch,
    private readonly slots: Slots,
    private readonly vocabSize: number,
  ) {}

  sample(row: number, logits: Float32Array): Sampled {
    return (this.rows[row] ??= this.draw(row, logits));
  }

  private draw(row: number, logits: Float32Array): RowResult {
    const { batch } = this;
    const sequence = batch.tokenStart.findLastIndex((start) => start <= batch.rows[row]);
    const slot = batch.slots[sequence];
    const { sampling, counts } = this.slots.get(slot);
    const [from, to] = [batch.bias.start[row], batch.bias.start[row + 1]];
    const masked = batch.maskedRows.indexOf(row);
    const words = Math.ceil(this.vocabSize / 32);
    const result = sampleRow(logits, {
      slot: sampling,
      counts,
      position: batch.rowPositions[row],
      biasIds: batch.bias.ids.subarray(from, to),
      biasValues: batch.bias.values.subarray(from, to),
      mask: masked < 0 ? undefined : this.masks?.subarray(masked * words, (masked + 1) * words),
      target: batch.targets[row],
      topLogprobs: batch.topLogprobs,
    });
    if (batch.targets[row] < 0) this.slots.drawn(slot, result.token);
    return result;
  }

  result(): StepResult {
    const n = this.batch.rows.length;
    const top = this.batch.topLogprobs;
    const topIds = new Int32Array(n * top);
    const topLogprobs = new Float32Array(n * top);
    this.rows.forEach((row, r) => {
      topIds.set(row.topIds, r * top);
      topLogprobs.set(row.topLogprobs, r * top);
    });
    return {
      tokens: Int32Array.from(this.rows, (row) => row.token),
      logprobs: Float32Array.from(this.rows, (row) => row.logprob),
      ranks: Int32Array.from(this.rows, (row) => row.rank),
      topIds,
      topLogprobs,
    };
  }
}

/** Lets timers and messages in before a long stretch of arithmetic. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === "function") setImmediate(resolve);
    else setTimeout(resolve, 0);
  });
}
