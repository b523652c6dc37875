// Owns: turning a Plan into launches: what each op becomes. lowering.ts has the parts, linear.ts and attention.ts the kernels
// of their families.
import { InternalError, UserError } from "../../base/errors.js";
import type { Activation } from "../../plan/ops/elementwise.js";
import type { AttentionParams, RopeParams } from "../../plan/ops/index.js";
import type { Node, Tensor } from "../../plan/plan.js";
import { type Arg, activationCodes, type FoldedNorm, type KvPlace, type Lowered, type Place } from "./launch.js";
import { Lowering, type Parts, wide } from "./lowering.js";
import type { PlannedArea } from "./memory.js";
import { moe, route } from "./moe.js";

/** What the tail (tail.ts) needs of the plan's logits. */
export interface LogitsPlace {
  readonly area: PlannedArea;
  readonly vocab: number;
  readonly scale: number;
  readonly softcap: number;
  readonly bias: () => bigint;
}

export interface LoweredPlan {
  readonly lowering: Lowering;
  readonly logits?: LogitsPlace;
}

export function lower(parts: Parts): LoweredPlan {
  const lowering = new Builder(parts);
  for (const [index, node] of parts.plan.nodes.entries()) {
    const handler = handlers[node.op.name];
    if (!handler) {
      throw new UserError(`the cuda device does not run ${node.op.name}`, { code: "unsupported_operation" });
    }
    lowering.index = index;
    handler.call(lowering, node);
  }
  return { lowering, logits: lowering.logits };
}

type Handler = (this: Builder, node: Node) => void;

const handlers: Readonly<Record<string, Handler>> = {
  embed(node) {
    const { ids, weight } = node.inputs;
    const table = this.parts.weights.matrix(weight);
    const y = this.output(node.outputs.y);
    const { step } = this;
    const at = ids.input === "positions" ? () => step.positions : () => step.tokenIds;
    const task = { ids: at, table, scale: node.params.scale as number, y };
    this.emit(this.parts.kernels.linear.embed(task, this));
  },
  rmsNorm(node) {
    const { x, weight } = node.inputs;
    const { groups, eps } = node.params as { groups: number; eps: number };
    this.norm(this.input(x), undefined, weight, node.outputs.y, groups, eps);
  },
  layerNorm(node) {
    const { x, weight, bias } = node.inputs;
    const from = this.input(x);
    const y = this.output(node.outputs.y);
    const [scale, shift] = [this.parts.weights.vector(weight), bias && this.parts.weights.vector(bias)];
    const eps = node.params.eps as number;
    this.emit((bucket) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, rowsFlag(y), { ptr: from.address }, wide(from), { ptr: y.address }, wide(y)],
        ...[{ ptr: scale() }, { ptr: shift?.() ?? 0n }, { i32: y.width }, { f32: eps }],
      ];
      const grid = [y.rows ? bucket.rows : bucket.tokens, 1, 1] as const;
      return [{ kernel: "mr_layer_norm", grid, block: 256, sharedBytes: 0, args, dependent: true }];
    });
  },
  add(node) {
    const { a, b } = node.inputs;
    const { y } = node.outputs;
    if (this.activations.has(y.name)) return;
    const { alpha, beta } = node.params as { alpha: number; beta: number };
    this.sum(this.input(a), this.input(b), this.output(y), alpha, beta);
  },
  addNorm(node) {
    const { a, b, weight } = node.inputs;
    const { sum, y } = node.outputs;
    const { alpha, beta, eps } = node.params as { alpha: number; beta: number; eps: number };
    const known = this.activations.get(sum.name);
    if (known) {
      this.norm(known, undefined, weight, y, 1, eps);
      return;
    }
    const from = { b: this.input(b), sum: this.output(sum), alpha, beta };
    this.norm(this.input(a), from, weight, y, 1, eps);
  },
  linear(node) {
    const { x, weight, bias } = node.inputs;
    const { y } = node.outputs;
    const into = this.residualOf(y);
    const to = into ? this.alias(into.residual, into.sum) : this.output(y);
    const next = into?.norm && this.foldNorm(into.norm, this.parts.weights.matrix(weight));
    this.product(x, weight, bias, to, into ? "add" : "store", next);
  },
  gatedLinear(node) {
    const { x, weight, bias } = node.inputs;
    const gated = node.params.kind as Activation;
    this.product(x, weight, bias, this.output(node.outputs.y), { gated });
  },
  gatedActivation(node) {
    const [gate, up] = [this.input(node.inputs.gate), this.input(node.inputs.up)];
    this.activate(gate, up, this.output(node.outputs.y), node.params.kind as Activation);
  },
  activation(node) {
    this.activate(this.input(node.inputs.x), undefined, this.output(node.outputs.y), node.params.kind as Activation);
  },
  gatherRows(node) {
    const from = this.input(node.inputs.x);
    const { y } = node.outputs;
    const to = this.place(true, from.width, from.dtype, this.lastReader(y));
    this.activations.set(y.name, to);
    const bytes = from.width * (from.dtype === "f32" ? 4 : 2);
    this.emit(({ rows }) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, { ptr: from.address }, { ptr: to.address }],
        ...[{ ptr: this.step.rowTokens }, { i32: bytes }],
      ];
      return [{ kernel: "mr_gather", grid: [rows, 1, 1], block: 128, sharedBytes: 0, args, dependent: true }];
    });
  },
  rope(node) {
    const from = this.input(node.inputs.x);
    const y = this.output(node.outputs.y);
    const p = node.params as unknown as RopeParams;
    const table = this.ropeTable(p);
    this.emit(({ tokens }) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, { ptr: from.address }, wide(from), { ptr: y.address }, wide(y)],
        ...[{ i32: p.numHeads }, { i32: p.headDim }, { i32: p.rotaryDim }, { i32: p.interleaved ? 1 : 0 }],
        { ptr: table.address },
      ];
      const grid = [tokens, Math.ceil(p.numHeads / blockHeads), 1] as const;
      return [{ kernel: "mr_rope", grid, block: 128, sharedBytes: 0, args, dependent: true }];
    });
  },
  cacheWrite(node) {
    const [k, v] = [this.input(node.inputs.k), this.input(node.inputs.v)];
    const kv = this.kvOf(node);
    this.emit(({ tokens }) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, { ptr: this.step.positions }, { ptr: this.step.tokenSequence }],
        ...[{ ptr: k.address }, wide(k), { ptr: v.address }, wide(v)],
        ...[{ i32: kv.numKvHeads }, { i32: kv.headDim }, { i32: kv.vHeadDim }],
        ...this.kvArgs(kv),
      ];
      const grid = [tokens, Math.ceil(kv.numKvHeads / 4), 1] as const;
      return [{ kernel: "mr_cache_write", grid, block: 128, sharedBytes: 0, args, dependent: true }];
    });
  },
  qkvRopeCache(node) {
    const { qkv, qNorm, kNorm } = node.inputs;
    const from = this.input(qkv);
    const q = this.output(node.outputs.q);
    const p = node.params as unknown as RopeParams & { numKvHeads: number; normEps: number };
    const kv = this.kvOf(node);
    const table = this.ropeTable(p);
    const norms = [qNorm, kNorm].map((norm) => (norm ? this.parts.weights.vector(norm) : () => 0n));
    this.emit(({ tokens }) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, { ptr: this.step.positions }, { ptr: this.step.tokenSequence }],
        ...[{ ptr: from.address }, wide(from), { ptr: q.address }, wide(q)],
        ...[{ i32: p.numHeads }, { i32: kv.numKvHeads }, { i32: p.headDim }, { i32: kv.vHeadDim }],
        ...[{ i32: p.rotaryDim }, { i32: p.interleaved ? 1 : 0 }, { ptr: table.address }],
        ...[{ ptr: norms[0]() }, { ptr: norms[1]() }, { f32: p.normEps }],
        ...this.kvArgs(kv),
      ];
      const grid = [tokens, Math.ceil((p.numHeads + 2 * kv.numKvHeads) / blockHeads), 1] as const;
      return [{ kernel: "mr_qkv", grid, block: 128, sharedBytes: 0, args, dependent: true }];
    });
  },
  attention(node) {
    const { q, sinks } = node.inputs;
    const p = node.params as unknown as AttentionParams;
    const task = {
      q: this.narrowed(q),
      y: this.output(node.outputs.y),
      kv: this.kvOf(node),
      numHeads: p.numHeads,
      scale: p.scale,
      window: p.window,
      softcap: p.softcap,
      causal: p.causal,
      sinks: sinks ? this.parts.weights.vector(sinks) : () => 0n,
    };
    this.emit(this.parts.kernels.attention.attention(task, this));
  },
  logits(node) {
    const { x, weight, bias } = node.inputs;
    const y = this.place(true, weight.shape[0] as number, "f32", Number.POSITIVE_INFINITY);
    this.activations.set(node.outputs.y.name, y);
    this.product(x, weight, undefined, y, "store");
    const { scale, softcap } = node.params as { scale: number; softcap?: number };
    this.logits = {
      area: y.area,
      vocab: y.width,
      scale,
      softcap: softcap ?? 0,
      bias: bias ? this.parts.weights.vector(bias) : () => 0n,
    };
  },
  route(node) {
    const { logits, bias } = node.inputs;
    const p = node.params as { score: string; normalize: boolean; scale: number };
    const task = {
      logits: this.input(logits),
      bias: bias ? this.parts.weights.vector(bias) : () => 0n,
      experts: this.output(node.outputs.experts),
      weights: this.output(node.outputs.weights),
      softmax: p.score === "softmax",
      normalize: p.normalize,
      scale: p.scale,
    };
    this.emit(route(task, this));
  },
  moe(node) {
    const { x, experts, weights, gate, up, down } = node.inputs;
    const { numExperts, kind } = node.params as { numExperts: number; kind: Activation };
    const stack = (weight: Tensor) => this.parts.weights.experts(weight, numExperts);
    const task = {
      ...{ x: this.narrowed(x), experts: this.input(experts), weights: this.input(weights) },
      ...{ gate: stack(gate), up: stack(up), down: stack(down), kind, y: this.output(node.outputs.y) },
    };
    this.emit(moe(task, this));
  },
  lora(node) {
    const { x, y } = node.inputs;
    const { site, rowStart, colStart } = node.params as { site: string; rowStart: number; colStart: number };
    const from = this.input(x);
    const to = this.input(y);
    const z = this.output(node.outputs.z);
    const entry = this.adapterSite(site);
    this.emit((bucket) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, rowsFlag(z), { ptr: from.address }, wide(from), { i32: from.width }],
        ...[{ ptr: to.address }, wide(to), { ptr: z.address }, wide(z), { i32: to.width }],
        ...[{ ptr: this.step.tokenSequence }, { ptr: this.step.rowTokens }, { ptr: this.step.slots }],
        ...[{ ptr: this.step.slotInts }, { ptr: entry() }, { i32: rowStart }, { i32: colStart }],
      ];
      const grid = [z.rows ? bucket.rows : bucket.tokens, 1, 1] as const;
      return [{ kernel: "mr_lora", grid, block: 256, sharedBytes: 0, args, dependent: true }];
    });
  },
  // What follows the logits is the tail's own.
  sample() {},
};

/** Names of the ops that can be lowered. */
export const loweredOps: ReadonlySet<string> = new Set(Object.keys(handlers));

class Builder extends Lowering {
  logits: LogitsPlace | undefined;

  product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    y: Place,
    epilogue: "store" | "add" | { gated: Activation },
    next?: FoldedNorm,
  ): void {
    const { weights, kernels } = this.parts;
    const segments = weights.matrix(weight);
    const biasAt = bias ? weights.vector(bias) : () => 0n;
    const task = { x: this.narrowed(x), norm: this.folded.get(x.name), next, segments, bias: biasAt, y, epilogue };
    this.emit(kernels.linear.linear(task, this));
  }

  norm(
    x: Place,
    added: { b: Place; sum: Place; alpha: number; beta: number } | undefined,
    weight: Tensor,
    output: Tensor,
    groups: number,
    eps: number,
  ): void {
    const folded = this.folded.has(output.name);
    const y = folded ? this.input(output) : this.output(output);
    const scale = this.parts.weights.vector(weight);
    const d = weight.shape[0] as number;
    const block = Math.min(1024, Math.max(32, Math.ceil(d / 128) * 32));
    this.emit((bucket) => {
      const tokens = y.rows ? bucket.rows : bucket.tokens;
      if (folded && this.parts.kernels.linear.foldsNorm(tokens, this)) return [];
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, rowsFlag(y), { ptr: x.address }, wide(x)],
        ...[{ ptr: added?.b.address ?? 0n }, { i32: added ? wide(added.b).i32 : 0 }],
        ...[{ ptr: added?.sum.address ?? 0n }, { i32: added ? wide(added.sum).i32 : 0 }],
        ...[{ ptr: y.address }, wide(y), { ptr: scale() }, { i32: d }, { i32: groups }],
        ...[{ f32: added?.alpha ?? 1 }, { f32: added?.beta ?? 0 }, { f32: eps }],
      ];
      return [{ kernel: "mr_norm", grid: [tokens * groups, 1, 1], block, sharedBytes: 0, args, dependent: true }];
    });
  }

  activate(gate: Place, up: Place | undefined, y: Place, kind: Activation): void {
    const code = activationCodes[kind];
    if (code === undefined) throw new UserError(`the cuda device has no activation ${kind}`);
    this.emit((bucket) => {
      const all = (y.rows ? bucket.rows : bucket.tokens) * y.width;
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, rowsFlag(y), { ptr: gate.address }, wide(gate)],
        ...[{ ptr: up?.address ?? 0n }, { i32: up ? wide(up).i32 : 0 }, { ptr: y.address }, wide(y)],
        ...[{ i32: y.width }, { i32: code }],
      ];
      const grid = [Math.min(Math.ceil(all / 256), 4 * this.properties.multiprocessors), 1, 1] as const;
      return [{ kernel: "mr_activation", grid, block: 256, sharedBytes: 0, args, dependent: true }];
    });
  }

  /** [tokens, rotaryDim / 2] pairs of cosine and sine, made at the start of every step. */
  ropeTable(p: RopeParams): PlannedArea {
    const key = JSON.stringify([p.invFreq, p.magnitude]);
    const half = p.invFreq.length;
    const table = this.shared(`rope ${key}`, 8 * half * this.limits.maxTokens);
    const frequencies = this.constant(`frequencies ${key}`, () => new Uint8Array(Float64Array.from(p.invFreq).buffer));
    const lowered: Lowered = ({ tokens }) => {
      const args: Arg[] = [
        ...[{ ptr: this.step.info }, { ptr: this.step.positions }, { ptr: frequencies.address }],
        ...[{ i32: half }, { f32: p.magnitude }, { ptr: table.address }],
      ];
      const grid = [Math.ceil((tokens * half) / 128), 1, 1] as const;
      return [{ kernel: "mr_rope_table", grid, block: 128, sharedBytes: 0, args, dependent: true }];
    };
    this.once(key, lowered);
    return table;
  }

  kvOf(node: Node): KvPlace {
    const kv = this.parts.kv[node.inputs.cache.cache ?? -1];
    if (!kv) throw new InternalError(`${node.op.name} without a paged cache`);
    return kv;
  }

  /** The last parameters of kernels that write keys and values. */
  kvArgs(kv: KvPlace): Arg[] {
    const pages = this.step.pages[kv.group];
    return [
      ...[{ ptr: kv.k }, { ptr: kv.v }, { i64: BigInt(kv.pageBytes) }],
      ...[{ ptr: pages.start }, { ptr: pages.first }, { ptr: pages.ids }],
      { i32: ["f32", "f16", "bf16"].indexOf(kv.dtype) },
    ];
  }
}

/** Heads of one token that a block of 128 threads turns: by head_lanes of heads.cuh. */
const blockHeads = 8;

function rowsFlag(place: Place): { i32: number } {
  return { i32: place.rows ? 1 : 0 };
}
