// Owns: a plan as text: what `inspect --plan` shows. One line a node: op, what it makes, its weights as they are stored,
// FLOPs and bytes of one step.
import { nodeCost, planCost, planWeightBytes, type StepSizes, weightBytes } from "./cost.js";
import type { Cost } from "./op.js";
import type { Dim, Node, Plan, Tensor } from "./plan.js";

/** One node's line, as data: for --json. */
export interface NodeLine extends Cost {
  readonly op: string;
  readonly output: string;
  readonly shape: readonly Dim[];
  readonly inputs: readonly string[];
  readonly params: Readonly<Record<string, unknown>>;
  readonly weights: readonly { readonly name: string; readonly types: string; readonly bytes: number }[];
}

export function planLines(plan: Plan, step: StepSizes): NodeLine[] {
  return plan.nodes.map((node) => {
    const first = Object.values(node.outputs)[0];
    const weights = Object.values(node.inputs).filter(({ role }) => role === "weight");
    return {
      op: node.op.name,
      output: first?.name ?? "",
      shape: first?.shape ?? [],
      inputs: Object.values(node.inputs).map(({ name }) => name),
      params: node.params,
      weights: weights.map((w) => ({ name: w.name, types: storedTypes(w), bytes: weightBytes(w) })),
      ...nodeCost(node, step),
    };
  });
}

export function printPlan(plan: Plan, step: StepSizes): string {
  const lines = planLines(plan, step);
  const rows = lines.map((line, i) => [
    String(i),
    line.op,
    line.output === "" ? cacheOf(plan.nodes[i]) : `${line.output} [${line.shape.join(", ")}]`,
    line.weights.map(({ types, bytes }) => `${types} ${quantity(bytes)}B`).join(", "),
    quantity(line.flops),
    `${quantity(line.bytes)}B`,
  ]);
  const total = planCost(plan, step);
  const header = ["#", "op", "output", "weights", "FLOPs", "bytes"];
  return [
    `plan: ${plan.nodes.length} nodes, ${plan.caches.length} caches, vocabulary ${plan.vocabSize}` +
      (plan.rank.size > 1 ? `, rank ${plan.rank.rank} of ${plan.rank.size}` : ""),
    `step: ${step.tokens} tokens of ${step.sequences} sequences, ${step.rows} rows sampled, ` +
      `${step.context} positions in the cache, ${step.kvBytes} bytes a cached value`,
    ...table([header, ...rows]),
    `total: ${quantity(total.flops)} FLOPs, ${quantity(total.bytes)}B moved a step; ` +
      `weights as stored: ${quantity(planWeightBytes(plan))}B`,
  ].join("\n");
}

function storedTypes(tensor: Tensor): string {
  return [...new Set((tensor.from ?? []).map(({ type }) => type))].join("+");
}

function cacheOf(node: Node): string {
  return `-> ${Object.values(node.inputs).find(({ role }) => role === "cache")?.name ?? ""}`;
}

/** 1234567 → "1.23M" */
export function quantity(value: number): string {
  const units = ["", "k", "M", "G", "T", "P"];
  let scaled = value;
  let unit = 0;
  while (scaled >= 1000 && unit + 1 < units.length) {
    scaled /= 1000;
    unit++;
  }
  return `${unit === 0 ? Math.round(scaled) : scaled.toPrecision(3)}${units[unit]}`;
}

/** Columns padded to their widest entry; figures (the last two) to the right. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0].map((_, c) => Math.max(...rows.map((row) => row[c].length)));
  const right = (c: number) => c === 0 || c >= widths.length - 2;
  return rows.map((row) =>
    row
      .map((cell, c) => (right(c) ? cell.padStart(widths[c]) : cell.padEnd(widths[c])))
      .join("  ")
      .trimEnd(),
  );
}
