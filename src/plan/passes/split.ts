// Owns: splitting a plan over ranks, tensor parallel: each rank gets some of the heads and some of the MLP's columns, and
// the ranks' partial sums meet in an allReduce after o_proj and after down_proj. Recipes are edited, never bytes.
//
//   q, k, v, gate, up      rows of the rank          (k and v repeat where there are fewer key/value heads than ranks)
//   o, down                columns of the rank, then allReduce; the bias is added by rank 0 alone
//   norms, embed, logits   whole on every rank
//
// Works on plain plans: fuse() each rank's plan afterwards. Refuses sizes that do not divide.
import { InternalError, UserError } from "../../base/errors.js";
import { assemble, makeNode } from "../build.js";
import type { Op } from "../op.js";
import { allReduce } from "../ops/index.js";
import type { Cache, Node, Plan, Range, Tensor, WeightPiece } from "../plan.js";

export interface SplitLayout {
  readonly ranks: number;
}

export function split(plan: Plan, { ranks }: SplitLayout): Plan[] {
  if (!Number.isInteger(ranks) || ranks < 1) throw new InternalError(`a plan cannot be split over ${ranks} ranks`);
  if (plan.rank.size !== 1) throw new InternalError("this plan is one rank of a split plan already");
  return Array.from({ length: ranks }, (_, rank) => new RankSplitter(plan, rank, ranks).plan());
}

/** How a tensor is divided: whole everywhere, by columns (range of its last dimension), or a partial sum. */
type Share = "whole" | "partial" | Range;

class RankSplitter {
  private readonly shares = new Map<string, Share>();
  /** The rank's own tensor in place of the plan's. */
  private readonly own = new Map<string, Tensor>();
  private readonly nodes: Node[] = [];
  private readonly consumers = new Map<string, Node[]>();
  private readonly caches: Cache[];

  constructor(
    private readonly whole: Plan,
    private readonly rank: number,
    private readonly ranks: number,
  ) {
    this.caches = [...whole.caches];
    for (const node of whole.nodes) {
      for (const tensor of Object.values(node.inputs)) {
        this.consumers.set(tensor.name, [...(this.consumers.get(tensor.name) ?? []), node]);
      }
    }
  }

  plan(): Plan {
    for (const node of this.whole.nodes) this.place(node);
    const rank = { rank: this.rank, size: this.ranks };
    return assemble({ nodes: this.nodes, caches: this.caches, vocabSize: this.whole.vocabSize, rank });
  }

  private place(node: Node): void {
    const byOp: Readonly<Record<string, (node: Node) => void>> = {
      linear: (n) => this.linear(n),
      lora: (n) => this.lora(n),
      rope: (n) => this.rope(n),
      rmsNorm: (n) => this.norm(n),
      cacheWrite: (n) => this.cacheWrite(n),
      attention: (n) => this.attention(n),
      gatedActivation: (n) => this.elementwise(n),
      activation: (n) => this.elementwise(n),
    };
    (byOp[node.op.name] ?? ((n: Node) => this.copy(n)))(node);
  }

  private elementwise(node: Node): void {
    this.emit(node, node.inputs, node.params, this.shareOf(Object.values(node.inputs)[0]));
  }

  private shareOf(tensor: Tensor): Share {
    return this.shares.get(tensor.name) ?? "whole";
  }

  /** Everything in it is whole. */
  private copy(node: Node): void {
    for (const tensor of Object.values(node.inputs)) {
      if (this.shareOf(tensor) !== "whole") {
        throw new UserError(`this model cannot be split: ${node.op.name} would read a part of ${tensor.name}`);
      }
    }
    this.emit(node, node.inputs, node.params, "whole");
  }

  private emit(
    node: Node,
    inputs: Readonly<Record<string, Tensor | undefined>>,
    params: Readonly<Record<string, unknown>>,
    share: Share,
  ): void {
    const mapped = Object.fromEntries(
      Object.entries(inputs).map(([name, tensor]) => [name, tensor && (this.own.get(tensor.name) ?? tensor)]),
    );
    const path = Object.values(node.outputs)[0]?.name ?? node.op.name;
    const made = makeNode(node.op, path, mapped, params);
    const outputs: Record<string, Tensor> = {};
    for (const [name, tensor] of Object.entries(node.outputs)) {
      outputs[name] = { ...made.outputs[name], name: tensor.name };
      this.own.set(tensor.name, outputs[name]);
      this.shares.set(tensor.name, share);
    }
    this.nodes.push({ ...made, outputs });
  }

  /** By rows where its output runs into heads or an activation, by columns where its input is divided. */
  private linear(node: Node): void {
    const input = this.shareOf(node.inputs.x);
    if (input !== "whole" && input !== "partial") {
      this.rowParallel(node, input);
      return;
    }
    const rows = this.rowsWanted(node.outputs.y);
    if (!rows) {
      this.copy(node);
      return;
    }
    const weight = this.cut(node.inputs.weight, rows, undefined);
    const bias = node.inputs.bias && this.cut(node.inputs.bias, rows, undefined);
    this.emit(node, { ...node.inputs, weight, bias }, node.params, rows);
  }

  private rowParallel(node: Node, cols: Range): void {
    const weight = this.cut(node.inputs.weight, undefined, cols);
    const bias = this.rank === 0 ? node.inputs.bias : undefined;
    this.emit(node, { ...node.inputs, weight, bias }, node.params, "partial");
    if (!this.readByLora(node.outputs.y)) this.reduce(node.outputs.y);
  }

  /** The adapter's part of a divided output is divided too, and of a partial sum a partial sum. */
  private lora(node: Node): void {
    const input = this.shareOf(node.inputs.x);
    const output = this.shareOf(node.inputs.y);
    const colStart = typeof input === "object" ? input.start : 0;
    const rowStart = typeof output === "object" ? output.start : 0;
    this.emit(node, node.inputs, { ...node.params, rowStart, colStart }, output);
    if (output === "partial") this.reduce(node.outputs.z);
  }

  private readByLora(tensor: Tensor): boolean {
    return (this.consumers.get(tensor.name) ?? []).some((node) => node.op.name === "lora" && node.inputs.y === tensor);
  }

  /** Whoever reads the partial sum reads the sum instead. */
  private reduce(tensor: Tensor): void {
    const partial = this.own.get(tensor.name)!;
    const renamed = { ...partial, name: `${tensor.name}.partial` };
    const last = this.nodes.pop()!;
    const outputs = Object.fromEntries(Object.keys(last.outputs).map((name) => [name, renamed]));
    const sum = makeNode(allReduce as unknown as Op, tensor.name, { x: renamed }, {});
    this.nodes.push({ ...last, outputs }, sum);
    this.own.set(tensor.name, sum.outputs.y);
    this.shares.set(tensor.name, "whole");
  }

  /** The rows of a linear that this rank computes: those of its heads or MLP columns; undefined: all. */
  private rowsWanted(output: Tensor): Range | undefined {
    for (const node of this.consumers.get(output.name) ?? []) {
      switch (node.op.name) {
        case "lora":
          if (node.inputs.y === output) return this.rowsWanted(node.outputs.z);
          continue;
        case "rmsNorm":
          if ((node.params.groups as number) === 1) return undefined;
          return this.rowsWanted(node.outputs.y);
        case "rope":
          return this.headRows(node.outputs.y);
        case "cacheWrite":
        case "attention":
          return this.headRows(output);
        case "gatedActivation":
        case "activation":
          return this.even(output.shape[1] as number, output.name);
      }
    }
    return undefined;
  }

  /** Rows of the heads that attention or the cache wants of this tensor. */
  private headRows(tensor: Tensor): Range | undefined {
    for (const node of this.consumers.get(tensor.name) ?? []) {
      const { numHeads, numKvHeads, headDim, vHeadDim } = node.params as Record<string, number>;
      if (node.op.name === "attention" && node.inputs.q === tensor) {
        return scaled(this.even(numHeads, "attention heads"), headDim);
      }
      if (node.op.name === "cacheWrite") {
        return scaled(this.kvHeads(numKvHeads), node.inputs.k === tensor ? headDim : vHeadDim);
      }
    }
    return undefined;
  }

  /** Key/value heads of the rank: an even share, or the one that its query heads read. */
  private kvHeads(numKvHeads: number): Range {
    if (numKvHeads >= this.ranks) return this.even(numKvHeads, "key/value heads");
    if (this.ranks % numKvHeads !== 0) {
      throw new UserError(`${numKvHeads} key/value heads cannot be repeated evenly on ${this.ranks} ranks`);
    }
    const head = Math.floor((this.rank * numKvHeads) / this.ranks);
    return { start: head, end: head + 1 };
  }

  private even(count: number, what: string): Range {
    if (count % this.ranks !== 0) throw new UserError(`${count} (${what}) cannot be divided among ${this.ranks} ranks`);
    const share = count / this.ranks;
    return { start: this.rank * share, end: (this.rank + 1) * share };
  }

  private rope(node: Node): void {
    const share = this.shareOf(node.inputs.x);
    if (typeof share !== "object") {
      this.copy(node);
      return;
    }
    const numHeads = (share.end - share.start) / (node.params.headDim as number);
    this.emit(node, node.inputs, { ...node.params, numHeads }, share);
  }

  private norm(node: Node): void {
    const share = this.shareOf(node.inputs.x);
    if (typeof share !== "object") {
      this.copy(node);
      return;
    }
    const groups = (share.end - share.start) / (node.inputs.weight.shape[0] as number);
    this.emit(node, node.inputs, { ...node.params, groups }, share);
  }

  private cacheWrite(node: Node): void {
    const heads = this.kvHeads(node.params.numKvHeads as number);
    const numKvHeads = heads.end - heads.start;
    const index = node.inputs.cache.cache!;
    this.caches[index] = { ...(this.caches[index] as Extract<Cache, { kind: "paged" }>), numKvHeads };
    this.emit(node, node.inputs, { ...node.params, numKvHeads }, "whole");
  }

  private attention(node: Node): void {
    const { numHeads, numKvHeads, vHeadDim } = node.params as Record<string, number>;
    const heads = this.even(numHeads, "attention heads");
    const kvHeads = this.kvHeads(numKvHeads);
    const params = {
      ...node.params,
      numHeads: heads.end - heads.start,
      numKvHeads: kvHeads.end - kvHeads.start,
    };
    const sinks = node.inputs.sinks && this.cut(node.inputs.sinks, heads, undefined);
    this.emit(node, { ...node.inputs, sinks }, params, scaled(heads, vHeadDim));
  }

  /** The weight with only these rows (of the stacked pieces) and columns. */
  private cut(weight: Tensor, rows: Range | undefined, cols: Range | undefined): Tensor {
    const from: WeightPiece[] = [];
    let top = 0;
    for (const piece of weight.from ?? []) {
      const [height, width] = pieceShape(piece);
      const start = Math.max(0, (rows?.start ?? 0) - top);
      const end = Math.min(height, (rows?.end ?? Number.POSITIVE_INFINITY) - top);
      top += height;
      if (start >= end) continue;
      from.push({
        ...piece,
        rows: within(piece.rows, start, end, height),
        cols: cols ? within(piece.cols, cols.start, cols.end, width) : piece.cols,
      });
    }
    const shape = [...weight.shape];
    if (rows) shape[0] = rows.end - rows.start;
    if (cols) shape[1] = cols.end - cols.start;
    return { ...weight, shape, from };
  }
}

function scaled({ start, end }: Range, by: number): Range {
  return { start: start * by, end: end * by };
}

/** What a piece gives, after its transform and ranges: [rows, cols]. */
function pieceShape(piece: WeightPiece): [number, number] {
  const [rows, cols] = piece.transform?.kind === "transpose" ? [piece.shape[1], piece.shape[0]] : piece.shape;
  const length = (range: Range | undefined, all: number) => (range ? range.end - range.start : all);
  return [length(piece.rows, rows), length(piece.cols, cols)];
}

/** A range of a range; undefined where it is all there is. */
function within(range: Range | undefined, start: number, end: number, all: number): Range | undefined {
  if (start === 0 && end === all) return range;
  const base = range?.start ?? 0;
  return { start: base + start, end: base + end };
}
