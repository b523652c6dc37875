// Owns: turning a Plan into the native program's instructions: what each op becomes. Runs of token operations become regions
// by standing next to each other; lowering.ts has the parts.
import { UserError } from "../../base/errors.js";
import type { RopeParams } from "../../plan/ops/index.js";
import type { Node, Plan } from "../../plan/plan.js";
import type { Limits } from "../device.js";
import type { Area, Instruction } from "./code.js";
import { Lowering, onRows } from "./lowering.js";
import type { Native } from "./native.js";
import type { PlannedWeights } from "./weights.js";

const activationKinds = ["silu", "gelu", "geluTanh", "relu", "relu2"];

export interface Lowered {
  readonly instructions: readonly Instruction[];
  /** Where each activation lies: [tokens or rows, width]. */
  readonly activations: ReadonlyMap<string, { area: Area; rows: boolean; width: number }>;
  /** Where adapters can act, by name; the native program knows their numbers. */
  readonly sites: ReadonlyMap<string, number>;
}

/** keepAll: every tensor keeps an area of its own, for dump. */
export function lower(plan: Plan, limits: Limits, weights: PlannedWeights, native: Native, keepAll: boolean): Lowered {
  const lowering = new Lowering(plan, limits, weights, native, keepAll);
  for (const [index, node] of plan.nodes.entries()) {
    const handler = handlers[node.op.name];
    if (!handler) throw new UserError(`the cpu device does not run ${node.op.name}`, { code: "unsupported_operation" });
    handler.call(lowering, node, index);
  }
  return { instructions: lowering.instructions, activations: lowering.activations, sites: lowering.sites };
}

type Handler = (this: Lowering, node: Node, index: number) => void;

const handlers: Readonly<Record<string, Handler>> = {
  embed(node) {
    const { ids, weight } = node.inputs;
    const y = this.output(node.outputs.y);
    const pieces = this.weights.matrix(weight).map((p) => p.index);
    const byPosition = ids.input === "positions" ? 1 : 0;
    this.emit("embed", false, [byPosition, y, y.stride, node.params.scale as number, pieces.length, ...pieces]);
  },
  rmsNorm(node) {
    const from = this.input(node.inputs.x);
    const { groups, eps } = node.params as { groups: number; eps: number };
    const { y } = node.outputs;
    this.norm(from, from.stride, this.output(y), node.inputs.weight, groups, eps, onRows(y));
  },
  layerNorm(node) {
    const { x, weight, bias } = node.inputs;
    const from = this.input(x);
    const y = this.output(node.outputs.y);
    const vectors = [this.weights.vector(weight), bias ? this.weights.vector(bias) : -1];
    this.emit("layerNorm", onRows(x), [
      from,
      from.stride,
      y,
      y.stride,
      y.stride,
      ...vectors,
      node.params.eps as number,
    ]);
  },
  add(node) {
    const { alpha, beta } = node.params as { alpha: number; beta: number };
    this.sum(node.inputs.a, node.inputs.b, node.outputs.y, alpha, beta);
  },
  addNorm(node) {
    const { alpha, beta, eps } = node.params as { alpha: number; beta: number; eps: number };
    const { sum, y } = node.outputs;
    this.sum(node.inputs.a, node.inputs.b, sum, alpha, beta);
    const from = this.input(sum);
    this.norm(from, from.stride, this.output(y), node.inputs.weight, 1, eps, onRows(y));
  },
  linear(node, index) {
    this.linear(node, index);
  },
  gatedLinear(node) {
    const { x, weight, bias } = node.inputs;
    const width = node.outputs.y.shape[1] as number;
    const both = this.newArea(onRows(x), 2 * width);
    this.product(x, weight, bias, both, false);
    const y = this.output(node.outputs.y);
    const up = { area: both, floats: width };
    this.emit("gated", onRows(x), [both, 2 * width, up, 2 * width, y, width, width, activationCode(node)]);
  },
  gatedActivation(node) {
    const [gate, up] = [this.input(node.inputs.gate), this.input(node.inputs.up)];
    const y = this.output(node.outputs.y);
    const strides = [y.stride, y.stride];
    this.emit("gated", onRows(node.outputs.y), [gate, gate.stride, up, up.stride, y, ...strides, activationCode(node)]);
  },
  activation(node) {
    const from = this.input(node.inputs.x);
    const y = this.output(node.outputs.y);
    this.emit("activation", onRows(node.outputs.y), [from, from.stride, y, y.stride, y.stride, activationCode(node)]);
  },
  gatherRows(node) {
    const from = this.input(node.inputs.x);
    const y = this.output(node.outputs.y);
    this.emit("gather", true, [from, from.stride, y, y.stride]);
  },
  rope(node) {
    const from = this.input(node.inputs.x);
    const y = this.output(node.outputs.y);
    this.turn(from, from.stride, y, node.params.numHeads as number, node.params as unknown as RopeParams);
  },
  cacheWrite(node) {
    const [k, v] = [this.input(node.inputs.k), this.input(node.inputs.v)];
    this.emit("cacheWrite", false, [this.cacheIndex(node), k, k.stride, v, v.stride]);
  },
  qkvRopeCache(node) {
    const { qkv, qNorm, kNorm } = node.inputs;
    const p = node.params as unknown as RopeParams & { numKvHeads: number; normEps: number };
    const all = this.input(qkv);
    const [q, k] = [this.output(node.outputs.q), this.newArea(false, p.numKvHeads * p.headDim)];
    const kAt = { area: all, floats: p.numHeads * p.headDim };
    const vAt = { area: all, floats: (p.numHeads + p.numKvHeads) * p.headDim };
    if (qNorm) this.norm(all, all.stride, q, qNorm, p.numHeads, p.normEps, false);
    if (kNorm) this.norm(kAt, all.stride, k, kNorm, p.numKvHeads, p.normEps, false);
    this.turn(qNorm ? q : all, qNorm ? q.stride : all.stride, q, p.numHeads, p);
    this.turn(kNorm ? k : kAt, kNorm ? k.stride : all.stride, k, p.numKvHeads, p);
    this.emit("cacheWrite", false, [this.cacheIndex(node), k, k.stride, vAt, all.stride]);
  },
  attention(node) {
    this.attention(node);
  },
  logits(node) {
    this.logits(node);
  },
  lora(node) {
    const { x, y } = node.inputs;
    const [from, to] = [this.input(x), this.input(y)];
    const z = this.output(node.outputs.z);
    const { site, rowStart, colStart } = node.params as { site: string; rowStart: number; colStart: number };
    const [k, m] = [x.shape[1] as number, y.shape[1] as number];
    this.emit("lora", onRows(y), [
      from,
      from.stride,
      k,
      to,
      to.stride,
      z,
      z.stride,
      m,
      this.site(site),
      rowStart,
      colStart,
    ]);
  },
  route(node) {
    const { logits, bias } = node.inputs;
    const from = this.input(logits);
    const [experts, weights] = [this.output(node.outputs.experts), this.output(node.outputs.weights)];
    const p = node.params as { topK: number; score: string; normalize: boolean; scale: number };
    const how = [p.score === "softmax" ? 1 : 0, p.normalize ? 1 : 0, p.scale];
    const biasAt = bias ? this.weights.vector(bias) : -1;
    this.emit("route", onRows(logits), [from, from.stride, from.stride, p.topK, biasAt, experts, weights, ...how]);
  },
  moe(node) {
    this.moe(node, activationCode(node));
  },
  // What follows the logits is the native tail's own.
  sample() {},
};

/** Names of the ops that can be lowered. */
export const loweredOps: ReadonlySet<string> = new Set(Object.keys(handlers));

function activationCode(node: Node): number {
  const code = activationKinds.indexOf(node.params.kind as string);
  if (code < 0) throw new UserError(`the cpu device has no activation ${node.params.kind}`);
  return code;
}
