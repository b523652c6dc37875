// Owns: making Plans: PlanBuilder, which model/ and tests describe a forward pass with, and assemble(), with which passes
// put a plan together again. Every node is checked against its op here, so a plan that exists is well formed.
import { InternalError } from "../base/errors.js";
import type { Op } from "./op.js";
import type { Cache, Dim, InputName, Node, Plan, Tensor, WeightPiece } from "./plan.js";
import { bindLetters, checkParams, outputShape } from "./shapes.js";

/** A tensor before it has its place in plan.tensors. */
const unplaced = -1;

const inputShapes: Record<InputName, Dim> = { tokenIds: "tokens", positions: "tokens", sampleRows: "rows" };

export type CacheSpec =
  | { kind: "paged"; window?: number; numKvHeads: number; headDim: number; vHeadDim: number }
  | { kind: "state"; shape: readonly number[] };

export class PlanBuilder {
  private readonly nodes: Node[] = [];
  private readonly caches: CacheSpec[] = [];
  private readonly named = new Map<string, Tensor>();

  constructor(private readonly vocabSize: number) {}

  input(name: InputName): Tensor {
    const known = this.named.get(name);
    if (known) return known;
    return this.keep({ id: unplaced, name, shape: [inputShapes[name]], dtype: "i32", role: "input", input: name });
  }

  /** Asking twice for one name gives one tensor (tied embeddings); shape: [rows, cols] or [n], after the pieces. */
  weight(name: string, shape: readonly number[], from: readonly WeightPiece[]): Tensor {
    const known = this.named.get(name);
    if (known) return known;
    return this.keep({ id: unplaced, name, shape, dtype: "f32", role: "weight", from });
  }

  cache(name: string, spec: CacheSpec): Tensor {
    this.caches.push(spec);
    const cache = this.caches.length - 1;
    return this.keep({ id: unplaced, name, shape: [], dtype: "f32", role: "cache", cache });
  }

  /** Adds a node and gives its outputs by the op's own names. An op of one output names it `path`, others `path.output`. */
  node<P extends Readonly<Record<string, unknown>>>(
    op: Op<P>,
    path: string,
    inputs: Readonly<Record<string, Tensor | undefined>>,
    params: P,
  ): Readonly<Record<string, Tensor>> {
    const node = makeNode(op as unknown as Op, path, inputs, params);
    for (const tensor of Object.values(node.outputs)) this.keep(tensor);
    this.nodes.push(node);
    return node.outputs;
  }

  /** node() for ops that give one tensor. */
  apply<P extends Readonly<Record<string, unknown>>>(
    op: Op<P>,
    path: string,
    inputs: Readonly<Record<string, Tensor | undefined>>,
    params: P,
  ): Tensor {
    const outputs = Object.values(this.node(op, path, inputs, params));
    if (outputs.length !== 1) throw new InternalError(`${path}: ${op.name} has ${outputs.length} outputs`);
    return outputs[0];
  }

  finish(): Plan {
    return assemble({
      nodes: this.nodes,
      caches: groupCaches(this.caches),
      vocabSize: this.vocabSize,
      rank: { rank: 0, size: 1 },
    });
  }

  private keep(tensor: Tensor): Tensor {
    if (this.named.has(tensor.name)) throw new InternalError(`the plan has two tensors called ${tensor.name}`);
    this.named.set(tensor.name, tensor);
    return tensor;
  }
}

/** A checked node with fresh output tensors. Parameters and inputs that are undefined are left out. */
export function makeNode(
  op: Op,
  path: string,
  inputs: Readonly<Record<string, Tensor | undefined>>,
  params: Readonly<Record<string, unknown>>,
): Node {
  const given = dropUndefined(inputs) as Record<string, Tensor>;
  const settings = dropUndefined(params);
  checkParams(op, settings, path);
  const letters = bindLetters(op, given, settings, path);
  const names = Object.keys(op.outputs);
  const outputs: Record<string, Tensor> = {};
  for (const output of names) {
    const { shape, dtype } = outputShape(op, output, letters, settings);
    const name = names.length === 1 ? path : `${path}.${output}`;
    outputs[output] = { id: unplaced, name, shape, dtype, role: "activation" };
  }
  return { op, inputs: given, outputs, params: settings };
}

function dropUndefined(record: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([, value]) => value !== undefined));
}

/**
 * Caches that give back the same positions share a page group: full attention is one group, each window size one, all
 * states one. Groups are numbered in this order: full, windows ascending, states.
 */
function groupCaches(specs: readonly CacheSpec[]): Cache[] {
  const order = (spec: CacheSpec) => (spec.kind === "state" ? Number.POSITIVE_INFINITY : (spec.window ?? 0));
  const groups = [...new Set(specs.map(order))].sort((a, b) => a - b);
  return specs.map((spec) => ({ ...spec, group: groups.indexOf(order(spec)) }));
}

/** Gathers the tensors of the nodes, in order of first use, and numbers them; every node must be checked already. */
export function assemble(plan: Omit<Plan, "tensors">): Plan {
  const tensors: Tensor[] = [];
  const placed = new Map<string, Tensor>();
  const place = (tensor: Tensor): Tensor => {
    let own = placed.get(tensor.name);
    if (own === undefined) {
      own = { ...tensor, id: tensors.length };
      tensors.push(own);
      placed.set(tensor.name, own);
    }
    return own;
  };
  const placeAll = (record: Readonly<Record<string, Tensor>>) =>
    Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, place(tensor)]));
  const nodes = plan.nodes.map((node) => ({ ...node, inputs: placeAll(node.inputs), outputs: placeAll(node.outputs) }));
  return { ...plan, nodes, tensors };
}
