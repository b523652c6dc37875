// Owns: the parts of a program in the making: where each tensor lies and in what type, who reads it, and the memory that
// kernels ask for. What is saved here: a product whose only use is to be added to a residual that nobody reads again adds
// itself; a norm between products is folded into them where they can; activations share room when their times differ.
//
// The residual stream (what add and addNorm read and write, and the embedding) is f32, everything else bf16.
import { InternalError } from "../../base/errors.js";
import type { Node, Plan, Tensor } from "../../plan/plan.js";
import type { Limits } from "../device.js";
import { type AdapterTable, factorsBytes } from "./adapters.js";
import type {
  AttentionKernels,
  CudaProperties,
  FoldedNorm,
  KvPlace,
  LinearKernels,
  LowerContext,
  Lowered,
  Matrix,
  Place,
  StepView,
} from "./launch.js";
import type { PlannedArea, Workspace } from "./memory.js";
import type { CudaWeights } from "./weights.js";

export interface Kernels {
  readonly linear: LinearKernels;
  readonly attention: AttentionKernels;
}

export interface Activation extends Place {
  readonly area: PlannedArea;
}

export interface Parts {
  readonly plan: Plan;
  readonly limits: Limits;
  readonly properties: CudaProperties;
  readonly kernels: Kernels;
  readonly weights: CudaWeights;
  readonly workspace: Workspace;
  readonly step: StepView;
  readonly kv: readonly (KvPlace | undefined)[];
  /** Keep every tensor apart, for dump. */
  readonly keepAll: boolean;
}

export class Lowering implements LowerContext {
  readonly forward: Lowered[] = [];
  readonly first: Lowered[] = [];
  readonly activations = new Map<string, Activation>();
  /** Float64 or other bytes that kernels read, by key. */
  readonly constants: { area: PlannedArea; bytes: Uint8Array }[] = [];
  readonly readers = new Map<string, number[]>();
  /** Areas to be zero before the first step. */
  readonly zeroed: PlannedArea[] = [];
  private readonly sites = new Map<string, number>();
  private readonly sharedAreas = new Map<string, PlannedArea>();
  private readonly keys = new Set<string>();
  private readonly residual = new Set<string>();
  private readonly narrow = new Map<string, Activation>();
  /** By the name of their output. */
  readonly folded = new Map<string, FoldedNorm>();
  /** The node that is being lowered. */
  index = 0;

  constructor(readonly parts: Parts) {
    for (const [index, node] of parts.plan.nodes.entries()) {
      for (const tensor of Object.values(node.inputs)) {
        const list = this.readers.get(tensor.name);
        if (list) list.push(index);
        else this.readers.set(tensor.name, [index]);
      }
      for (const tensor of wideTensors(node)) this.residual.add(tensor.name);
    }
  }

  get properties(): CudaProperties {
    return this.parts.properties;
  }
  get limits(): Limits {
    return this.parts.limits;
  }
  get deterministic(): boolean {
    return this.parts.limits.deterministic;
  }
  get step(): StepView {
    return this.parts.step;
  }

  // ---- memory

  scratch(bytes: number, zeroed = false): PlannedArea {
    const area = zeroed ? this.parts.workspace.add(bytes) : this.parts.workspace.add(bytes, this.index, this.index);
    if (zeroed) this.zeroed.push(area);
    return area;
  }

  shared(key: string, bytes: number, zeroed = false): PlannedArea {
    const known = this.sharedAreas.get(key);
    if (known) {
      this.parts.workspace.grow(known, bytes);
      return known;
    }
    const area = this.parts.workspace.add(bytes);
    if (zeroed) this.zeroed.push(area);
    this.sharedAreas.set(key, area);
    return area;
  }

  once(key: string, lowered: Lowered): void {
    if (this.keys.has(key)) return;
    this.keys.add(key);
    this.first.push(lowered);
  }

  constant(key: string, bytes: () => Uint8Array): PlannedArea {
    const known = this.sharedAreas.get(key);
    if (known) return known;
    const values = bytes();
    const area = this.parts.workspace.add(values.length);
    this.sharedAreas.set(key, area);
    this.constants.push({ area, bytes: values });
    return area;
  }

  /** Where the factors of the site lie, a slot after the other. */
  adapterSite(name: string): () => bigint {
    const slots = this.limits.adapterSlots;
    const number = this.sites.get(name) ?? this.sites.size;
    this.sites.set(name, number);
    const area = this.shared("adapters", factorsBytes * slots * this.sites.size, true);
    return () => area.address + BigInt(factorsBytes * slots * number);
  }

  get adapterTable(): AdapterTable {
    return { sites: this.sites, slots: this.limits.adapterSlots, area: this.sharedAreas.get("adapters") };
  }

  // ---- tensors

  /** A place of its own, alive from this node to `last`. */
  place(rows: boolean, width: number, dtype: "f32" | "bf16", last: number): Activation {
    const most = rows ? this.limits.maxRows : this.limits.maxTokens;
    // Whole vectors may be read past the last row.
    const bytes = most * width * (dtype === "f32" ? 4 : 2) + 256;
    const area = this.parts.workspace.add(bytes, this.index, last);
    return {
      area,
      dtype,
      width,
      rows,
      get address() {
        return area.address;
      },
    };
  }

  output(tensor: Tensor): Activation {
    const width = tensor.shape[1] as number;
    const dtype = this.residual.has(tensor.name) ? "f32" : "bf16";
    const made = this.place(onRows(tensor), width, dtype, this.lastReader(tensor));
    this.activations.set(tensor.name, made);
    return made;
  }

  input(tensor: Tensor): Activation {
    const known = this.activations.get(tensor.name);
    if (!known) throw new InternalError(`${tensor.name} is read before it is written`);
    return known;
  }

  /** The tensor in bf16: itself, or a copy that is made once. */
  narrowed(tensor: Tensor): Activation {
    const from = this.input(tensor);
    if (from.dtype === "bf16") return from;
    const known = this.narrow.get(tensor.name);
    if (known) return known;
    const made = this.place(from.rows, from.width, "bf16", this.lastReader(tensor));
    this.narrow.set(tensor.name, made);
    this.sum(from, undefined, made, 1, 0);
    return made;
  }

  lastReader(tensor: Tensor): number {
    if (this.parts.keepAll) return Number.POSITIVE_INFINITY;
    return Math.max(this.index, ...(this.readers.get(tensor.name) ?? []));
  }

  emit(lowered: Lowered): void {
    this.forward.push(lowered);
  }

  // ---- fusion

  /**
   * The residual that the product of this node may be added to in place: its only reader is a sum of factors 1 with a tensor
   * that nobody reads afterwards.
   */
  residualOf(y: Tensor): { residual: Tensor; sum: Tensor; norm?: Node } | undefined {
    if (this.parts.keepAll) return undefined;
    const readers = this.readers.get(y.name) ?? [];
    if (readers.length !== 1) return undefined;
    const reader = this.parts.plan.nodes[readers[0]];
    if (reader.op.name !== "add" && reader.op.name !== "addNorm") return undefined;
    if (reader.params.alpha !== 1 || reader.params.beta !== 1) return undefined;
    const { a, b } = reader.inputs;
    const residual = a === y ? b : a;
    if (residual === y || residual.role !== "activation") return undefined;
    if (!this.activations.has(residual.name)) return undefined;
    if ((this.readers.get(residual.name) ?? []).some((i) => i >= this.index && i !== readers[0])) return undefined;
    if (reader.op.name === "addNorm") return { residual, sum: reader.outputs.sum, norm: reader };
    const sum = reader.outputs.y;
    const next = (this.readers.get(sum.name) ?? []).map((i) => this.parts.plan.nodes[i]);
    return { residual, sum, norm: next.find(({ op, params }) => op.name === "rmsNorm" && params.groups === 1) };
  }

  /** `sum` lies where `residual` lay. */
  alias(residual: Tensor, sum: Tensor): Activation {
    const known = this.input(residual);
    known.area.last = Math.max(known.area.last, this.lastReader(sum));
    this.activations.set(sum.name, known);
    return known;
  }

  /** The norm of the row that this node's product with the segments ends, if only products read it. */
  foldNorm(norm: Node, segments: readonly Matrix[]): FoldedNorm | undefined {
    const { linear } = this.parts.kernels;
    const { y } = norm.outputs;
    const count = linear.squares(segments);
    const readers = (this.readers.get(y.name) ?? []).map((i) => this.parts.plan.nodes[i]);
    const products = readers.every(({ op }) => ["linear", "gatedLinear", "logits"].includes(op.name));
    if (!linear.foldsNorm(1, this) || count === 0 || !products || this.residual.has(y.name)) return undefined;
    const folded = {
      y: this.output(y),
      weight: this.parts.weights.vector(norm.inputs.weight),
      eps: norm.params.eps as number,
      squares: { area: this.parts.workspace.add(4 * count, this.index, this.lastReader(y)), count },
    };
    this.folded.set(y.name, folded);
    return folded;
  }

  /** y = alpha·a + beta·b, or alpha·a. */
  sum(a: Place, b: Place | undefined, y: Place, alpha: number, beta: number): void {
    this.emit((bucket) => {
      const all = (y.rows ? bucket.rows : bucket.tokens) * y.width;
      const args = [
        ...[{ ptr: this.step.info }, { i32: y.rows ? 1 : 0 }, { ptr: a.address }, wide(a)],
        ...[{ ptr: b?.address ?? 0n }, b ? wide(b) : { i32: 0 }, { ptr: y.address }, wide(y)],
        ...[{ i32: y.width }, { f32: alpha }, { f32: beta }],
      ];
      const grid = [Math.min(Math.ceil(all / 256), 4 * this.properties.multiprocessors), 1, 1] as const;
      return [{ kernel: "mr_add", grid, block: 256, sharedBytes: 0, args, dependent: true }];
    });
  }
}

export const wide = (place: { dtype: "f32" | "bf16" }): { i32: number } => ({ i32: place.dtype === "f32" ? 1 : 0 });
export const onRows = (tensor: Tensor): boolean => tensor.shape[0] === "rows";

/** Tensors of 4-byte values. */
function wideTensors(node: Node): readonly Tensor[] {
  const { a, b, logits } = node.inputs;
  const { y, sum, experts, weights } = node.outputs;
  switch (node.op.name) {
    case "add":
      return [a, b, y];
    case "addNorm":
      return [a, b, sum];
    case "embed":
    case "logits":
      return [y];
    case "route":
      return [logits, experts, weights];
    case "lora":
      return [node.inputs.y];
    default:
      return [];
  }
}
