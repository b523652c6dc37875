// Owns: what a step costs: FLOPs and bytes of each node for given sizes, and what weights take as they are stored.
import { storageBytes } from "../base/dtype.js";
import type { Cost, Sizes } from "./op.js";
import type { Node, Plan, Tensor } from "./plan.js";
import { bindLetters } from "./shapes.js";

/** One step to be costed. context: positions that each sequence has in the cache once the step is done. */
export interface StepSizes {
  readonly tokens: number;
  readonly sequences: number;
  readonly rows: number;
  readonly context: number;
  readonly kvBytes: number;
}

/** Bytes that a weight has in the checkpoint: ranges cost their share. */
export function weightBytes(tensor: Tensor): number {
  let bytes = 0;
  for (const piece of tensor.from ?? []) {
    const all = piece.shape[0] * piece.shape[1];
    const [rows, cols] = piece.transform?.kind === "transpose" ? [piece.shape[1], piece.shape[0]] : piece.shape;
    const height = piece.rows ? piece.rows.end - piece.rows.start : rows;
    const width = piece.cols ? piece.cols.end - piece.cols.start : cols;
    bytes += (storageBytes(piece.type, all) * height * width) / all;
  }
  return bytes;
}

/** Of all weights, each counted once. */
export function planWeightBytes(plan: Plan): number {
  return plan.tensors.reduce((sum, tensor) => sum + weightBytes(tensor), 0);
}

export function nodeCost(node: Node, step: StepSizes): Cost {
  const sizes: Record<string, number> = { ...step };
  for (const [letter, dim] of bindLetters(node.op, node.inputs, node.params, node.op.name)) {
    sizes[letter] = typeof dim === "number" ? dim : step[dim];
  }
  const weights = Object.values(node.inputs).reduce((sum, tensor) => sum + weightBytes(tensor), 0);
  return node.op.cost(sizes as Sizes, node.params, weights);
}

export function planCost(plan: Plan, step: StepSizes): Cost {
  const costs = plan.nodes.map((node) => nodeCost(node, step));
  return {
    flops: costs.reduce((sum, { flops }) => sum + flops, 0),
    bytes: costs.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}
