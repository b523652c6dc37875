// Owns: the CPU program: a native program's life, its queue, its slots' and pages' traffic. A step is one foreign call that
// computes on this thread too, so run() returns when the step is done; only a step that waits for masks holds later calls
// back, and they take effect in their order once the masks are there.
import { check, InternalError, UserError } from "../../base/errors.js";
import type { HostTensor } from "../../plan/op.js";
import { adapterSites } from "../../plan/passes/lora.js";
import type { Plan } from "../../plan/plan.js";
import type { Batch, Step, StepResult } from "../batch.js";
import type { GroupShape } from "../budget.js";
import { checkAdapter, checkBatch, checkPageIds, checkUpdatedAdapters } from "../check.js";
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
import { Turns } from "../turns.js";
import type { Lowered } from "./lower.js";
import type { Handle, Native } from "./native.js";
import type { PlannedWeights } from "./weights.js";

export interface CpuParts {
  readonly native: Native;
  readonly plan: Plan;
  readonly limits: Limits;
  readonly memory: MemoryReport;
  readonly groups: readonly GroupShape[];
  readonly weights: PlannedWeights;
  readonly lowered: Lowered;
  /** The native program's description; see kernels/cpu/program.cpp. */
  description(): Float64Array;
  readonly dump: boolean;
}

interface PendingStep {
  readonly batch: Batch;
  readonly out: StepResult;
  readonly finish: (error?: unknown) => void;
  masks?: Uint32Array;
}

export class CpuProgram implements Program {
  readonly memory: MemoryReport;
  readonly caches: readonly PageGroup[];
  readonly vocabSize: number;
  private readonly handle: Handle;
  private readonly turns = new Turns<PendingStep>();
  private inFlight = 0;
  /** Slots that hold one. */
  private readonly adapters = new Set<number>();
  private state: "awake" | "asleep" | "closed" = "awake";
  /** Tokens and rows of the last step, for dump. */
  private lastSizes: { tokens: number; rows: number } | undefined;

  static async compile(parts: CpuParts, source: WeightSource, options: CompileOptions): Promise<CpuProgram> {
    const program = new CpuProgram(parts, source);
    try {
      await parts.weights.load(program.handle, source, options);
    } catch (error) {
      await program.close();
      throw error;
    }
    return program;
  }

  private constructor(
    private readonly parts: CpuParts,
    private source: WeightSource,
  ) {
    this.memory = parts.memory;
    this.vocabSize = parts.plan.vocabSize;
    this.caches = parts.groups.map((group, g) => ({ ...group, numPages: parts.memory.pagesPerGroup[g] }));
    this.handle = parts.native.create(parts.description());
  }

  // ---- steps

  run(batch: Batch): Step {
    const { limits } = this.parts;
    check(this.state === "awake", `the program is ${this.state}`);
    check(this.inFlight < limits.depth, `${this.inFlight} steps are in flight, the limit is ${limits.depth}`);
    checkBatch(batch, limits, this.caches, this.vocabSize);
    checkUpdatedAdapters(batch, this.adapters);
    this.inFlight++;
    let step: PendingStep | undefined;
    const result = new Promise<StepResult>((resolve, reject) => {
      const out = emptyResult(batch);
      const finish = (error?: unknown) => {
        // In flight until its caller can know: a device with a real queue would be no different.
        queueMicrotask(() => {
          this.inFlight--;
        });
        if (error === undefined) resolve(out);
        else reject(error);
      };
      step = { batch, out, finish };
    });
    const pending = step!;
    this.turns.take(() => this.execute(pending));
    const masks = awaitMasks(batch, this.vocabSize, (bits) => {
      pending.masks = bits;
      this.turns.resume(pending, () => this.sampleMasked(pending));
    });
    return { result, setMasks: masks.set };
  }

  encode(batch: Batch): Promise<Float32Array> {
    checkBatch(batch, this.parts.limits, this.caches, this.vocabSize);
    return this.turns.reach(() => {
      check(this.state === "awake", `the program is ${this.state}`);
      this.forward(batch);
      const { native, plan, lowered } = this.parts;
      const [output] = Object.values(plan.nodes.at(-1)!.outputs);
      const { area, width } = lowered.activations.get(output.name)!;
      const data = new Float32Array(batch.tokens.length * width);
      native.readWorkspace(this.handle, area.offset, data, data.length);
      return data;
    });
  }

  private execute(step: PendingStep): void {
    try {
      check(this.state === "awake", `the program is ${this.state}`);
      this.forward(step.batch);
    } catch (error) {
      step.finish(error);
      return;
    }
    const { batch } = step;
    const masked = new Set(batch.maskedRows);
    this.sample(
      step,
      Int32Array.from({ length: batch.rows.length }, (_, r) => r).filter((r) => !masked.has(r)),
      null,
    );
    if (masked.size === 0) step.finish();
    else if (step.masks) this.sampleMasked(step);
    else this.turns.hold(step);
  }

  private sampleMasked(step: PendingStep): void {
    this.sample(step, step.batch.maskedRows, step.masks!);
    step.finish();
  }

  private sample({ batch, out }: PendingStep, which: Int32Array, masks: Uint32Array | null): void {
    if (which.length === 0) return;
    const { native } = this.parts;
    const { tokens, logprobs, ranks, topIds, topLogprobs } = out;
    const top = batch.topLogprobs;
    native.sample(this.handle, which, which.length, masks, top, tokens, logprobs, ranks, topIds, topLogprobs);
  }

  private forward(batch: Batch): void {
    const { native } = this.parts;
    const { updates, bias } = batch;
    if (updates.slots.length > 0) {
      native.updateSlots(
        this.handle,
        updates.slots.length,
        updates.slots,
        updates.floats,
        updates.ints,
        updates.promptStart,
        updates.promptIds,
        updates.outputStart,
        updates.outputIds,
      );
    }
    const pages = joinTables(batch);
    const counts = Int32Array.of(
      batch.tokens.length,
      batch.slots.length,
      batch.rows.length,
      pages.ids.length,
      bias.ids.length,
    );
    const failed = native.run(
      this.handle,
      counts,
      batch.tokens,
      batch.slots,
      batch.tokenStart,
      batch.kvStart,
      pages.start,
      pages.first,
      pages.ids,
      batch.rows,
      batch.targets,
      batch.rowPositions,
      bias.start,
      bias.ids,
      bias.values,
    );
    if (failed) throw new InternalError("a token stands for the last sample of a slot that has none");
    this.lastSizes = { tokens: batch.tokens.length, rows: batch.rows.length };
  }

  // ---- pages

  copyPages(group: number, from: Int32Array, to: Int32Array): void {
    check(from.length === to.length, "as many pages are copied from as to");
    this.checkPages(group, from);
    this.checkPages(group, to);
    this.turns.take(() => {
      if (this.state === "awake") this.parts.native.copyPages(this.handle, group, from, to, from.length);
    });
  }

  /** As the kernels lay them out: only for writePages of a program compiled alike. */
  readPages(group: number, ids: Int32Array): Promise<Uint8Array> {
    this.checkPages(group, ids);
    return this.turns.reach(() => {
      const out = new Uint8Array(ids.length * this.caches[group].pageBytes);
      this.parts.native.readPages(this.handle, group, ids, ids.length, out);
      return out;
    });
  }

  writePages(group: number, ids: Int32Array, bytes: Uint8Array): void {
    this.checkPages(group, ids, bytes.length);
    this.turns.take(() => {
      if (this.state === "awake") this.parts.native.writePages(this.handle, group, ids, ids.length, bytes);
    });
  }

  private checkPages(group: number, ids: Int32Array, bytes?: number): void {
    check(this.state === "awake", `the program is ${this.state}`);
    checkPageIds(this.caches, group, ids, bytes);
  }

  // ---- weights and life

  loadAdapter(slot: number, source: AdapterSource | null): Promise<void> {
    const { native, plan, limits, lowered } = this.parts;
    check(slot >= 0 && slot < limits.adapterSlots, `there are ${limits.adapterSlots} adapter slots, ${slot} is none`);
    if (source) checkAdapter(source, adapterSites(plan));
    if (source) this.adapters.add(slot);
    else this.adapters.delete(slot);
    return this.turns.reach(() => {
      native.dropAdapter(this.handle, slot);
      for (const [site, { a, b }] of source?.sites ?? []) {
        const number = lowered.sites.get(site)!;
        native.setAdapter(this.handle, slot, number, a.shape[0], a.data, a.shape[1], b.data, b.shape[0], source!.scale);
      }
    });
  }

  swapWeights(source: WeightSource): Promise<void> {
    return this.turns.reach(async () => {
      this.source = source;
      this.parts.native.drop(this.handle, 0, 1);
      if (this.state === "awake") await this.parts.weights.load(this.handle, source);
    });
  }

  sleep(): Promise<void> {
    return this.turns.reach(() => {
      check(this.state === "awake", `the program is ${this.state}`);
      this.parts.native.drop(this.handle, 1, 1);
      this.state = "asleep";
    });
  }

  async wake(): Promise<void> {
    check(this.state === "asleep", `the program is ${this.state}`);
    await this.parts.weights.load(this.handle, this.source);
    this.state = "awake";
  }

  dump(tensor: string): Promise<HostTensor> {
    return this.turns.reach(() => {
      const { native, plan, dump, lowered } = this.parts;
      const found = plan.tensors.find(({ name }) => name === tensor);
      if (!found) throw new UserError(`the plan has no tensor called ${tensor}`);
      if (found.role === "weight") return this.parts.weights.dump(this.handle, found);
      const place = lowered.activations.get(tensor);
      if (!dump) throw new UserError(`${tensor} cannot be shown: the program was compiled without dump`);
      if (!place || !this.lastSizes) throw new UserError(`${tensor} cannot be shown: no step has computed it`);
      const count = place.rows ? this.lastSizes.rows : this.lastSizes.tokens;
      const data = new Float32Array(count * place.width);
      native.readWorkspace(this.handle, place.area.offset, data, data.length);
      // A number in the workspace takes four bytes, of whichever kind.
      return { shape: [count, place.width], data: found.dtype === "i32" ? new Int32Array(data.buffer) : data };
    });
  }

  setThreads(threads: number): void {
    if (this.state !== "closed") this.parts.native.setThreads(this.handle, threads);
  }

  async close(): Promise<void> {
    if (this.state === "closed") return;
    this.state = "closed";
    this.turns.close((step) => step.finish(new InternalError("the program was closed")));
    this.parts.native.destroy(this.handle);
  }
}

function emptyResult(batch: Batch): StepResult {
  const rows = batch.rows.length;
  return {
    tokens: new Int32Array(rows),
    logprobs: new Float32Array(rows),
    ranks: new Int32Array(rows),
    topIds: new Int32Array(rows * batch.topLogprobs),
    topLogprobs: new Float32Array(rows * batch.topLogprobs),
  };
}

/** All groups' tables, one after another, as mr_run takes them. */
function joinTables(batch: Batch): { start: Int32Array; first: Int32Array; ids: Int32Array } {
  if (batch.pages.length === 1) return batch.pages[0];
  const sequences = batch.slots.length;
  const start = new Int32Array(batch.pages.length * (sequences + 1));
  const first = new Int32Array(batch.pages.length * sequences);
  const ids = new Int32Array(batch.pages.reduce((sum, table) => sum + table.ids.length, 0));
  let base = 0;
  batch.pages.forEach((table, g) => {
    for (let s = 0; s <= sequences; s++) start[g * (sequences + 1) + s] = base + table.start[s];
    first.set(table.first, g * sequences);
    ids.set(table.ids, base);
    base += table.ids.length;
  });
  return { start, first, ids };
}
