// Owns: turning a Plan into the native program's instructions. Runs of token operations become regions by standing next
// to each other; what is done here besides: a row is prepared once for all products that read it, products that nothing
// orders run side by side, and a product whose only use is to be added to a residual that nobody reads again adds itself.
import { InternalError, UserError } from "../../base/errors.js";
import type { Node, Plan, Tensor } from "../../plan/plan.js";
import type { Limits } from "../device.js";
import { type Area, type Argument, type CodeName, type Instruction, type Segment, storageCode } from "./code.js";
import type { Native } from "./native.js";
import type { PackedPiece, PlannedWeights } from "./weights.js";

/** Logits of one tile of rows take at most this many bytes. */
const logitsBytes = 16 << 20;
const mostTileRows = 64;
/** Room for parts of long rows that several threads share, in floats. */
const partialFloats = 4 << 20;
const partTokens = 256;
const activationKinds = ["silu", "gelu", "geluTanh", "relu", "relu2"];

export interface Lowered {
  readonly instructions: readonly Instruction[];
  /** Where each activation lies: [tokens or rows, width]. */
  readonly activations: ReadonlyMap<string, { area: Area; rows: boolean; width: number }>;
}

/** keepAll: every tensor keeps an area of its own, for dump. */
export function lower(plan: Plan, limits: Limits, weights: PlannedWeights, native: Native, keepAll: boolean): Lowered {
  const lowering = new Lowering(plan, limits, weights, native, keepAll);
  for (const [index, node] of plan.nodes.entries()) lowering.node(node, index);
  return { instructions: lowering.instructions, activations: lowering.activations };
}

type Handler = (this: Lowering, node: Node, index: number) => void;

class Lowering {
  readonly instructions: Instruction[] = [];
  readonly activations = new Map<string, { area: Area; rows: boolean; width: number }>();
  private readonly readers = new Map<string, number[]>();
  private readonly prepared = new Map<string, Area>();
  private readonly tables = new Map<string, Area>();

  constructor(
    private readonly plan: Plan,
    private readonly limits: Limits,
    readonly weights: PlannedWeights,
    private readonly native: Native,
    private readonly keepAll: boolean,
  ) {
    for (const [index, node] of plan.nodes.entries()) {
      for (const tensor of Object.values(node.inputs)) {
        const list = this.readers.get(tensor.name);
        if (list) list.push(index);
        else this.readers.set(tensor.name, [index]);
      }
    }
  }

  node(node: Node, index: number): void {
    const handler = handlers[node.op.name];
    if (!handler) throw new UserError(`the cpu device does not run ${node.op.name}`, { code: "unsupported_operation" });
    handler.call(this, node, index);
  }

  // ---- areas

  newArea(rows: boolean, width: number): Area {
    const most = rows ? this.limits.maxRows : this.limits.maxTokens;
    return { bytes: 4 * width * most, stride: width, offset: 0 };
  }

  /** The area of a tensor that is written here. */
  output(tensor: Tensor): Area {
    const width = tensor.shape[1] as number;
    const rows = onRows(tensor);
    const area = this.newArea(rows, width);
    this.activations.set(tensor.name, { area, rows, width });
    return area;
  }

  input(tensor: Tensor): Area {
    const known = this.activations.get(tensor.name);
    if (!known) throw new InternalError(`${tensor.name} is read before it is written`);
    return known.area;
  }

  emit(code: CodeName, rows: boolean, args: Argument[]): void {
    this.instructions.push({ code, rows, args });
  }

  // ---- products

  /** x as the weight's kernel wants it; made once. */
  prepare(x: Tensor, kind: number): Area {
    const key = `${x.name} ${kind}`;
    const known = this.prepared.get(key);
    if (known) return known;
    const rows = onRows(x);
    const width = x.shape[1] as number;
    const most = rows ? this.limits.maxRows : this.limits.maxTokens;
    const act: Area = { bytes: this.native.actBytes(kind, most, width), stride: 0, offset: 0 };
    const from = this.input(x);
    const instruction: Instruction = {
      code: "prepare",
      rows,
      args: [kind, from, from.stride, width, act, rows ? 1 : 0],
    };
    // Before products that stand last and do not make x, so that those can run together with the next.
    const last = this.instructions.at(-1);
    const before = last?.segments && !last.segments.some((s) => s.y.area === from);
    this.instructions.splice(before ? -1 : this.instructions.length, 0, instruction);
    this.prepared.set(key, act);
    return act;
  }

  product(x: Tensor, weight: Tensor, bias: Tensor | undefined, y: Area, accumulate: boolean): void {
    const biasAt = bias ? this.weights.vector(bias) : -1;
    const segments = stacked(this.weights.matrix(weight), (packed, row) => ({
      weight: packed.index,
      act: this.prepare(x, this.native.act(storageCode(packed.piece.type))),
      y: { area: y, floats: row },
      stride: y.stride,
      bias: bias ? biasAt + row : -1,
      accumulate,
    }));
    const last = this.instructions.at(-1);
    const rows = onRows(x);
    const reads = new Set(segments.map((s) => s.act));
    if (last?.segments && last.rows === rows && !last.segments.some((s) => s.y.area === y || reads.has(s.y.area))) {
      last.segments.push(...segments);
    } else {
      this.instructions.push({ code: "linear", rows, args: [], segments });
    }
  }

  /**
   * The residual that the product of node `index` may be added to in place: its only reader is a sum of factors 1 with a
   * tensor that nobody reads afterwards.
   */
  residualOf(y: Tensor, index: number): { residual: Tensor; sum: Tensor } | undefined {
    if (this.keepAll) return undefined;
    const readers = this.readers.get(y.name) ?? [];
    if (readers.length !== 1) return undefined;
    const reader = this.plan.nodes[readers[0]];
    if (reader.op.name !== "add" && reader.op.name !== "addNorm") return undefined;
    if (reader.params.alpha !== 1 || reader.params.beta !== 1) return undefined;
    const { a, b } = reader.inputs;
    const residual = a === y ? b : a;
    if (residual === y || residual.role !== "activation") return undefined;
    // Made before this node, and read by nobody from here on but the sum.
    if (!this.activations.has(residual.name)) return undefined;
    if ((this.readers.get(residual.name) ?? []).some((i) => i >= index && i !== readers[0])) return undefined;
    return { residual, sum: reader.op.name === "add" ? reader.outputs.y : reader.outputs.sum };
  }

  /** y = x · weightᵀ + bias, into the residual where it can be. */
  linear(node: Node, index: number): void {
    const { x, weight, bias } = node.inputs;
    const { y } = node.outputs;
    const into = this.residualOf(y, index);
    if (!into) {
      this.product(x, weight, bias, this.output(y), false);
      return;
    }
    const known = this.activations.get(into.residual.name)!;
    this.product(x, weight, bias, known.area, true);
    this.activations.set(into.sum.name, known);
  }

  /** Nothing to do where the product has added itself. */
  sum(a: Tensor, b: Tensor, y: Tensor, alpha: number, beta: number): void {
    if (this.activations.has(y.name)) return;
    const [from, other, to] = [this.input(a), this.input(b), this.output(y)];
    this.emit("add", onRows(y), [from, from.stride, other, other.stride, to, to.stride, to.stride, alpha, beta]);
  }

  norm(x: Argument, stride: number, y: Area, weight: Tensor, groups: number, eps: number, rows: boolean): void {
    const d = weight.shape[0] as number;
    this.emit("rmsNorm", rows, [x, stride, y, y.stride, d, groups, this.weights.vector(weight), eps]);
  }

  // ---- positions

  ropeTable(p: RopeParams): Area {
    const key = JSON.stringify([p.invFreq, p.magnitude]);
    const known = this.tables.get(key);
    if (known) return known;
    const table = this.newArea(false, 2 * p.invFreq.length);
    this.tables.set(key, table);
    // At the start, with whatever else is done to each token there.
    this.instructions.unshift({
      code: "ropeTable",
      rows: false,
      args: [table, p.invFreq.length, p.magnitude, ...p.invFreq],
    });
    return table;
  }

  turn(x: Argument, stride: number, y: Area, heads: number, p: RopeParams): void {
    const shape = [heads, p.headDim, p.rotaryDim];
    const table = this.ropeTable(p);
    this.emit("rope", false, [x, stride, y, y.stride, ...shape, table, p.interleaved ? 1 : 0]);
  }

  /** Nodes say by their cache tensor which cache they mean. */
  cacheIndex(node: Node): number {
    const { cache } = node.inputs.cache;
    if (cache === undefined) throw new InternalError(`${node.op.name} without a cache`);
    return cache;
  }

  attention(node: Node): void {
    const { q, sinks } = node.inputs;
    const p = node.params as unknown as AttentionParams;
    const from = this.input(q);
    const y = this.output(node.outputs.y);
    const parts = Math.ceil(this.limits.contextLength / partTokens) + 1;
    const each = p.numHeads * parts * (2 + Math.ceil(p.vHeadDim / 16) * 16);
    const floats = Math.min(partialFloats, 8 * each * Math.min(this.limits.maxSequences, 4));
    const partial: Area = { bytes: 4 * floats, stride: 0, offset: 0 };
    const numbers = [p.numHeads, p.scale, p.softcap ?? 0, p.window ?? 0, p.causal ? 1 : 0];
    const sinksAt = sinks ? this.weights.vector(sinks) : -1;
    this.emit("attention", false, [
      this.cacheIndex(node),
      from,
      from.stride,
      y,
      y.stride,
      ...numbers,
      sinksAt,
      partial,
      floats,
    ]);
    // Of its own stage's areas the join reads the partial results and writes y.
    this.instructions.push({ code: "attentionJoin", rows: false, args: [], touches: [partial, y] });
  }

  logits(node: Node): void {
    const { x, weight, bias } = node.inputs;
    const from = this.input(x);
    const width = x.shape[1] as number;
    const vocab = weight.shape[0] as number;
    const byBytes = Math.floor(logitsBytes / (4 * vocab));
    const tile = this.keepAll
      ? this.limits.maxRows
      : Math.max(1, Math.min(this.limits.maxRows, mostTileRows, Math.max(8, byBytes)));
    const tileX: Area = { bytes: 4 * width * tile, stride: width, offset: 0 };
    const y: Area = { bytes: 4 * vocab * tile, stride: vocab, offset: 0 };
    this.activations.set(node.outputs.y.name, { area: y, rows: true, width: vocab });
    const pieces = this.weights.matrix(weight);
    const kinds = [...new Set(pieces.map((p) => this.native.act(storageCode(p.piece.type))))];
    const acts = kinds.map((kind): Area => ({ bytes: this.native.actBytes(kind, tile, width), stride: 0, offset: 0 }));
    const { scale, softcap } = node.params as { scale: number; softcap?: number };
    const numbers = [scale, softcap ?? 0, bias ? this.weights.vector(bias) : -1, kinds.length];
    const made = kinds.flatMap((kind, i): Argument[] => [kind, acts[i]]);
    const args: Argument[] = [from, from.stride, width, tile, tileX, y, ...numbers, ...made];
    const segments = stacked(pieces, (packed, row) => ({
      weight: packed.index,
      act: acts[kinds.indexOf(this.native.act(storageCode(packed.piece.type)))],
      y: { area: y, floats: row },
      stride: vocab,
      bias: -1,
      accumulate: false,
    }));
    this.instructions.push({ code: "logits", rows: true, args, segments });
  }
}

interface RopeParams {
  headDim: number;
  rotaryDim: number;
  invFreq: readonly number[];
  magnitude: number;
  interleaved: boolean;
}

interface AttentionParams {
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  vHeadDim: number;
  scale: number;
  window?: number;
  softcap?: number;
  causal: boolean;
}

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
    const p = node.params as unknown as RopeParams & { numHeads: number; numKvHeads: number; normEps: number };
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

function stacked(pieces: readonly PackedPiece[], make: (packed: PackedPiece, row: number) => Segment): Segment[] {
  let row = 0;
  return pieces.map((packed) => {
    const segment = make(packed, row);
    row += packed.rows;
    return segment;
  });
}

const onRows = (tensor: Tensor): boolean => tensor.shape[0] === "rows";
