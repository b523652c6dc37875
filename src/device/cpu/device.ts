// Owns: the CPU device: what it says of itself, the memory that a plan takes, and compiling a plan into a native program.
import { cpus, freemem } from "node:os";
import { env } from "../../base/env.js";
import { UserError } from "../../base/errors.js";
import { gatherEarly } from "../../plan/passes/rows.js";
import type { Plan } from "../../plan/plan.js";
import { dividePages, type GroupShape, groupShapes, longestContext } from "../budget.js";
import {
  type CompileOptions,
  type Device,
  type DeviceInfo,
  kvDTypes,
  kvRowBytes,
  type Limits,
  type MemoryReport,
  type Program,
  type WeightSource,
} from "../device.js";
import { encode, placeAreas } from "./code.js";
import { type Lowered, lower, loweredOps } from "./lower.js";
import { loadNative, type Native } from "./native.js";
import { type CpuParts, CpuProgram } from "./program.js";
import { PlannedWeights } from "./weights.js";

const pageTokens = 16;

export class CpuDevice implements Device {
  readonly info: DeviceInfo;
  private readonly native: Native;
  /** Of the last estimate: the same plan is asked for several times before it is compiled, with more or less memory. */
  private last: { readonly key: string; readonly given: Plan; readonly placed: Placed } | undefined;

  /** Throws UserError where the native library is not there. */
  constructor() {
    this.native = loadNative();
    this.info = {
      name: "cpu",
      description: `${cpus()[0]?.model.trim() ?? "CPU"}, ${this.native.isa()}, ${cpus().length} cores`,
      memoryBytes: freeMemory(),
      pageTokens,
      // Tiles round to bf16 in long steps, unless Limits.deterministic forbids it.
      rowInvariant: this.native.isa() !== "AMX",
      pageFormat: this.native.library,
      ops: loweredOps,
    };
  }

  estimate(plan: Plan, limits: Limits): MemoryReport {
    return this.prepare(plan, limits, false).memory;
  }

  async compile(plan: Plan, weights: WeightSource, limits: Limits, options: CompileOptions = {}): Promise<Program> {
    const parts = this.prepare(plan, limits, options.dump ?? env("MILLRACE_DUMP") === "1");
    this.last = undefined;
    return CpuProgram.compile(parts, weights, options);
  }

  async close(): Promise<void> {}

  private prepare(given: Plan, limits: Limits, dump: boolean): CpuParts {
    const { native } = this;
    const { plan, weights, lowered, workspace } = this.place(given, limits, dump);
    const groups = groupShapes(withPaddedValues(plan), pageTokens, (width) => kvRowBytes(limits.kvDtype, width));
    const memory = report(weights.bytes(), workspace, groups, limits);
    const description = () => describe(plan, limits, memory, workspace, weights, lowered);
    return { native, plan, limits, memory, groups, weights, lowered, description, dump };
  }

  /** What does not depend on how much memory or how many threads there are. */
  private place(given: Plan, limits: Limits, dump: boolean): Placed {
    const key = JSON.stringify({ ...limits, memoryBytes: 0, threads: 0, dump });
    if (this.last?.given === given && this.last.key === key) return this.last.placed;
    // dump shows every token of every tensor.
    const plan = dump ? given : gatherEarly(given);
    if (plan.caches.some((cache) => cache.kind === "state"))
      throw new UserError("the cpu device does not run layers with a recurrent state", {
        code: "unsupported_operation",
      });
    const weights = new PlannedWeights(this.native);
    const lowered = lower(plan, limits, weights, this.native, dump);
    const placed = { plan, weights, lowered, workspace: placeAreas(lowered.instructions, !dump) };
    this.last = { key, given, placed };
    return placed;
  }
}

interface Placed {
  readonly plan: Plan;
  readonly weights: PlannedWeights;
  readonly lowered: Lowered;
  readonly workspace: number;
}

/** The kernels keep rows of values in whole vectors. */
function withPaddedValues(plan: Plan): Plan {
  const caches = plan.caches.map((cache) =>
    cache.kind === "paged" ? { ...cache, vHeadDim: Math.ceil(cache.vHeadDim / 16) * 16 } : cache,
  );
  return { ...plan, caches };
}

function report(weights: number, workspace: number, groups: readonly GroupShape[], limits: Limits): MemoryReport {
  const left = limits.memoryBytes - weights - workspace;
  if (left < 0) {
    throw new UserError(
      `the model needs ${weights} bytes of weights and ${workspace} of workspace, ${limits.memoryBytes} may be used`,
      { code: "out_of_memory" },
    );
  }
  const pagesPerGroup = dividePages(groups, left, limits);
  const cache = groups.reduce((sum, group, g) => sum + group.pageBytes * pagesPerGroup[g], 0);
  return { weights, workspace, cache, pagesPerGroup, maxContext: longestContext(groups, pagesPerGroup, limits) };
}

/** Numbers in the order in which kernels/cpu/program.cpp reads them. */
function describe(
  plan: Plan,
  limits: Limits,
  memory: MemoryReport,
  workspace: number,
  weights: PlannedWeights,
  lowered: Lowered,
): Float64Array {
  const numbers = [
    limits.threads,
    limits.deterministic ? 1 : 0,
    limits.maxTokens,
    limits.maxRows,
    plan.vocabSize,
    kvDTypes.indexOf(limits.kvDtype),
    limits.slots,
    workspace,
    weights.vectorFloats,
    memory.pagesPerGroup.length,
    ...memory.pagesPerGroup,
    plan.caches.length,
  ];
  for (const cache of plan.caches) {
    if (cache.kind === "paged") numbers.push(cache.group, cache.numKvHeads, cache.headDim, cache.vHeadDim);
  }
  numbers.push(...weights.describe(), lowered.instructions.length);
  for (const instruction of lowered.instructions) encode(instruction, numbers);
  return Float64Array.from(numbers);
}

function freeMemory(): number {
  const bound = process.constrainedMemory?.() ?? 0;
  return bound > 0 ? Math.min(bound, freemem()) : freemem();
}
