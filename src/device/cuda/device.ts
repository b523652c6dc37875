// Owns: the CUDA device: what it says of itself, the memory that a plan takes, and compiling a plan into a program.
import { env } from "../../base/env.js";
import { UserError } from "../../base/errors.js";
import { gatherEarly } from "../../plan/passes/rows.js";
import type { Plan } from "../../plan/plan.js";
import { dividePages, type GroupShape, groupShapes, longestContext } from "../budget.js";
import {
  type CompileOptions,
  type Device,
  type DeviceInfo,
  kvRowBytes,
  type Limits,
  type MemoryReport,
  type Program,
  type WeightSource,
} from "../device.js";
import { attentionKernels } from "./attention.js";
import { type CudaProperties, type KvPlace, pageTokens } from "./launch.js";
import { linearKernels } from "./linear.js";
import { lower, loweredOps } from "./lower.js";
import type { Kernels } from "./lowering.js";
import { Workspace } from "./memory.js";
import { Cuda } from "./native.js";
import { type CudaParts, CudaProgram } from "./program.js";
import { StepMemory } from "./step.js";
import { Tail } from "./tail.js";
import { Walk } from "./walk.js";
import { CudaWeights } from "./weights.js";

export interface CudaOptions {
  /** false: every step's launches one by one, for tests and for looking at them. */
  readonly graphs?: boolean;
  /** false: steps of one token launch by launch too, likewise. */
  readonly walks?: boolean;
}

/** For the driver's own needs beside what is counted here: graphs, local memory, modules. */
const reserve = 512 << 20;

export class CudaDevice implements Device {
  readonly info: DeviceInfo;
  private readonly cuda: Cuda;

  /** Throws UserError where there is no driver, no such GPU, or no kernels. */
  constructor(
    ordinal = 0,
    private readonly options: CudaOptions = {},
  ) {
    this.cuda = new Cuda(ordinal);
    const { name, capability, multiprocessors } = this.cuda.properties;
    this.info = {
      name: `cuda:${ordinal}`,
      description: `${name}, compute capability ${(capability / 10).toFixed(1)}, ${multiprocessors} multiprocessors`,
      memoryBytes: Math.max(0, this.cuda.memory().free - reserve),
      ownMemory: true,
      pageTokens,
      rowInvariant: false,
      stepTokens: 2048,
      depth: 2,
      ops: loweredOps,
    };
  }

  estimate(plan: Plan, limits: Limits): MemoryReport {
    return this.prepare(plan, limits, false).memory;
  }

  async compile(plan: Plan, weights: WeightSource, limits: Limits, options: CompileOptions = {}): Promise<Program> {
    const dump = options.dump ?? env("MILLRACE_DUMP") === "1";
    return CudaProgram.compile(this.prepare(plan, limits, dump), weights, options);
  }

  async close(): Promise<void> {
    this.cuda.close();
  }

  private prepare(plan: Plan, limits: Limits, dump: boolean): CudaParts {
    const { cuda } = this;
    const { graphs = true, walks = true } = this.options;
    return { cuda, graphs, walks, ...planProgram(plan, limits, cuda.properties, dump) };
  }
}

const kernels: Kernels = { linear: linearKernels, attention: attentionKernels };

/** Everything of a program but the GPU itself. Throws UserError with the numbers where it cannot fit. */
export function planProgram(
  given: Plan,
  limits: Limits,
  properties: CudaProperties,
  dump: boolean,
): Omit<CudaParts, "cuda" | "graphs" | "walks"> {
  // dump shows every token of every tensor.
  const plan = dump ? given : gatherEarly(given);
  if (plan.caches.some((cache) => cache.kind === "state")) {
    throw new UserError("the cuda device does not run layers with a recurrent state", {
      code: "unsupported_operation",
    });
  }
  if (limits.kvDtype === "q8") {
    throw new UserError("the cuda device keeps no keys and values in q8: give f16, bf16 or f32", {
      code: "unsupported_operation",
    });
  }
  const groups = groupShapes(plan, pageTokens, (width) => kvRowBytes(limits.kvDtype, width));
  const workspace = new Workspace();
  const weights = new CudaWeights(kernels.linear);
  const step = new StepMemory(workspace, limits, groups.length, plan.vocabSize);
  const pools: bigint[] = groups.map(() => 0n);
  const kv = kvPlaces(plan, limits, groups, pools);
  const parts = { plan, limits, properties, kernels, weights, workspace, step: step.view, kv, keepAll: dump };
  const lowered = lower(parts);
  const { forward, activations } = lowered.lowering;
  const widths = [...activations.values()].map(({ dtype, width }) => (dtype === "bf16" ? width : 0));
  const walk = new Walk(workspace, forward.length, Math.max(0, ...widths));
  const tail = new Tail(workspace, limits, plan.vocabSize, lowered.logits);
  const memory = report(weights, workspace.place(dump), groups, limits);
  return { plan, limits, memory, groups, weights, lowered, walk, workspace, step, tail, pools, dump };
}

/** Where each cache's keys and values lie in its group's pages: layer after layer, keys before values. */
function kvPlaces(
  plan: Plan,
  limits: Limits,
  groups: readonly GroupShape[],
  pools: readonly bigint[],
): (KvPlace | undefined)[] {
  const filled = groups.map(() => 0);
  return plan.caches.map((cache) => {
    if (cache.kind !== "paged") return undefined;
    const { group, numKvHeads, headDim, vHeadDim } = cache;
    const at = filled[group];
    const rows = pageTokens * numKvHeads;
    const keys = rows * kvRowBytes(limits.kvDtype, headDim);
    filled[group] += keys + rows * kvRowBytes(limits.kvDtype, vHeadDim);
    return {
      group,
      pageBytes: groups[group].pageBytes,
      dtype: limits.kvDtype,
      numKvHeads,
      headDim,
      vHeadDim,
      get k() {
        return pools[group] + BigInt(at);
      },
      get v() {
        return pools[group] + BigInt(at + keys);
      },
    };
  });
}

function report(weights: CudaWeights, workspace: number, groups: readonly GroupShape[], limits: Limits): MemoryReport {
  const left = limits.memoryBytes - weights.bytes - workspace;
  if (left < 0) {
    throw new UserError(
      `the model needs ${weights.bytes} bytes of weights and ${workspace} of workspace on the GPU, ${limits.memoryBytes} may be used`,
      { code: "out_of_memory" },
    );
  }
  const pagesPerGroup = dividePages(groups, left, limits);
  const cache = groups.reduce((sum, group, g) => sum + group.pageBytes * pagesPerGroup[g], 0);
  const maxContext = longestContext(groups, pagesPerGroup, limits);
  return { weights: weights.bytes, workspace, cache, pagesPerGroup, maxContext };
}
