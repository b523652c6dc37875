// Owns: the instructions of a program in the making: where each tensor lies, and what a product, a sum, a norm, attention
// or the logits become. What is saved here: a row is prepared once for all products that read it, products that nothing
// orders run side by side, and a product whose only use is to be added to a residual that nobody reads again adds itself.
import { InternalError } from "../../base/errors.js";
import type { AttentionParams, RopeParams } from "../../plan/ops/index.js";
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

export class Lowering {
  readonly instructions: Instruction[] = [];
  readonly activations = new Map<string, { area: Area; rows: boolean; width: number }>();
  /** Of adapters, by name, in the order in which they are met. */
  readonly sites = new Map<string, number>();
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

  site(name: string): number {
    const number = this.sites.get(name) ?? this.sites.size;
    this.sites.set(name, number);
    return number;
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
      act: this.prepare(x, this.native.act(storageCode(packed.piece.type), this.limits.deterministic)),
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

  /** Room is for every token's experts; inputs are rounded as `exact` products want them. */
  moe(node: Node, activation: number): void {
    const { x, experts, weights, gate, up, down } = node.inputs;
    const count = node.params.numExperts as number;
    const rows = onRows(x);
    const from = this.input(x);
    const [used, cols, hidden] = [experts.shape[1] as number, x.shape[1] as number, down.shape[1] as number];
    const most = used * (rows ? this.limits.maxRows : this.limits.maxTokens);
    const matrices = [gate, up, down].map((weight) => this.weights.experts(weight, count));
    const kindOf = (piece: PackedPiece) => this.native.act(storageCode(piece.piece.type), true);
    const input = (kind: number, width: number): Argument[] => [
      kind,
      { bytes: this.native.actBytes(kind, most, width), stride: 0, offset: 0 },
    ];
    const kinds = [...new Set([...matrices[0], ...matrices[1]].map(kindOf))];
    const middle: Area = { bytes: 4 * most * 2 * hidden, stride: 2 * hidden, offset: 0 };
    const out: Area = { bytes: 4 * most * cols, stride: cols, offset: 0 };
    const [chosen, shares] = [this.input(experts), this.input(weights)];
    this.emit("moe", rows, [
      ...[from, from.stride, chosen, shares, used, cols, hidden, activation, middle, out],
      ...input(kindOf(matrices[2][0]), hidden),
      kinds.length,
      ...kinds.flatMap((kind) => input(kind, cols)),
      count,
      ...matrices[0].flatMap((piece, e) => [piece.index, matrices[1][e].index, matrices[2][e].index]),
    ]);
    const y = this.output(node.outputs.y);
    this.instructions.push({ code: "moeSum", rows, args: [y, y.stride], touches: [out, shares] });
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
    const kinds = [
      ...new Set(pieces.map((p) => this.native.act(storageCode(p.piece.type), this.limits.deterministic))),
    ];
    const acts = kinds.map((kind): Area => ({ bytes: this.native.actBytes(kind, tile, width), stride: 0, offset: 0 }));
    const { scale, softcap } = node.params as { scale: number; softcap?: number };
    const numbers = [scale, softcap ?? 0, bias ? this.weights.vector(bias) : -1, kinds.length];
    const made = kinds.flatMap((kind, i): Argument[] => [kind, acts[i]]);
    const args: Argument[] = [from, from.stride, width, tile, tileX, y, ...numbers, ...made];
    const segments = stacked(pieces, (packed, row) => ({
      weight: packed.index,
      act: acts[kinds.indexOf(this.native.act(storageCode(packed.piece.type), this.limits.deterministic))],
      y: { area: y, floats: row },
      stride: vocab,
      bias: -1,
      accumulate: false,
    }));
    this.instructions.push({ code: "logits", rows: true, args, segments });
  }
}

function stacked(pieces: readonly PackedPiece[], make: (packed: PackedPiece, row: number) => Segment): Segment[] {
  let row = 0;
  return pieces.map((packed) => {
    const segment = make(packed, row);
    row += packed.rows;
    return segment;
  });
}

export const onRows = (tensor: Tensor): boolean => tensor.shape[0] === "rows";
