// Owns: the reference device: every op there is, in TypeScript loops over f32. Slow, obvious, always there: the oracle of
// the other devices, and what a machine without a C++ compiler runs on.
import { env } from "../../base/env.js";
import { UserError } from "../../base/errors.js";
import { allOps } from "../../plan/op.js";
import "../../plan/ops/index.js";
import type { Plan } from "../../plan/plan.js";
import { validatePlan } from "../../plan/validate.js";
import { dividePages, groupShapes, longestContext } from "../budget.js";
import type { CompileOptions, Device, DeviceInfo, Limits, MemoryReport, Program, WeightSource } from "../device.js";
import { lastUses, sizeOf } from "./interpret.js";
import { ReferenceProgram } from "./program.js";

/** Values are kept as f32 whatever kvDtype rounds them to. */
const elementBytes = 4;
const pageTokens = 16;

export class ReferenceDevice implements Device {
  readonly info: DeviceInfo;

  /** memoryBytes: what may be used at most; the process cannot ask the system everywhere. */
  constructor(options: { readonly memoryBytes?: number } = {}) {
    this.info = {
      name: "reference",
      description: "TypeScript loops in f32, one thread",
      memoryBytes: options.memoryBytes ?? 4 * 2 ** 30,
      pageTokens,
      rowInvariant: true,
      pageFormat: "reference",
      ops: new Set(allOps().keys()),
    };
  }

  estimate(plan: Plan, limits: Limits): MemoryReport {
    return report([plan], limits, false);
  }

  compile(plan: Plan, weights: WeightSource, limits: Limits, options: CompileOptions = {}): Promise<Program> {
    return compileRanks([plan], weights, limits, options);
  }

  async close(): Promise<void> {}
}

/** One program over all ranks of a split plan, in rank order; one plan: the whole model. */
export async function compileRanks(
  plans: readonly Plan[],
  weights: WeightSource,
  limits: Limits,
  options: CompileOptions = {},
): Promise<Program> {
  for (const plan of plans) validatePlan(plan);
  const dump = options.dump ?? env("MILLRACE_DUMP") === "1";
  const memory = report(plans, limits, dump);
  const groups = groupShapes(plans[0], pageTokens, (width) => elementBytes * width);
  return ReferenceProgram.compile({ plans, limits, memory, groups, pageTokens, dump }, weights, options);
}

/** Sums over ranks. Throws UserError with the numbers where it cannot fit. */
export function report(plans: readonly Plan[], limits: Limits, dump: boolean): MemoryReport {
  let weights = 0;
  let workspace = 0;
  for (const plan of plans) {
    for (const tensor of plan.tensors) if (tensor.role === "weight") weights += bytesOf(tensor.shape, limits);
    workspace += workspaceOf(plan, limits, dump);
  }
  const left = limits.memoryBytes - weights - workspace;
  if (left < 0) {
    throw new UserError(
      `the model needs ${weights} bytes of weights and ${workspace} of workspace, ${limits.memoryBytes} may be used`,
      { code: "out_of_memory" },
    );
  }
  const allRanks = elementBytes * plans.length;
  const groups = groupShapes(plans[0], pageTokens, (width) => allRanks * width, allRanks);
  const pagesPerGroup = dividePages(groups, left, limits);
  const cache = groups.reduce((sum, group, g) => sum + group.pageBytes * pagesPerGroup[g], 0);
  return { weights, workspace, cache, pagesPerGroup, maxContext: longestContext(groups, pagesPerGroup, limits) };
}

function bytesOf(shape: Plan["tensors"][number]["shape"], limits: Limits): number {
  const sizes = { tokens: limits.maxTokens, sequences: limits.maxSequences, rows: limits.maxRows };
  return shape.reduce<number>((product, dim) => product * sizeOf(dim, sizes), elementBytes);
}

/** The most that is alive at once, or everything where it is kept. */
function workspaceOf(plan: Plan, limits: Limits, dump: boolean): number {
  const uses = lastUses(plan);
  let alive = 0;
  let most = 0;
  plan.nodes.forEach((node, i) => {
    for (const tensor of Object.values(node.outputs)) alive += bytesOf(tensor.shape, limits);
    most = Math.max(most, alive);
    if (!dump) for (const id of uses[i]) alive -= bytesOf(plan.tensors[id].shape, limits);
  });
  return most;
}
