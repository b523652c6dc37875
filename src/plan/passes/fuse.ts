// Owns: fusion: replaces runs of plain nodes by the fused ops that the device has. A fused op's reference is the
// composition of its parts' references, so this pass never changes what is computed. Refuses nothing: a pattern that does
// not fit (an intermediate that someone else reads, adapters in between) stays as it is.
//
//   add → rmsNorm                                    addNorm
//   linear ×3 → (rmsNorm ×2) → rope ×2 → cacheWrite  linear of stacked weights → qkvRopeCache
//   linear ×2 → gatedActivation                      gatedLinear
import { assemble, makeNode } from "../build.js";
import type { Op } from "../op.js";
import { addNorm, gatedLinear, linear, qkvRopeCache } from "../ops/index.js";
import type { Node, Plan, Tensor } from "../plan.js";

/** ops: what the device compiles (device.info.ops). */
export function fuse(plan: Plan, ops: ReadonlySet<string>): Plan {
  let nodes = [...plan.nodes];
  if (ops.has("qkvRopeCache")) nodes = new Rewriter(nodes).qkv();
  if (ops.has("gatedLinear")) nodes = new Rewriter(nodes).gated();
  if (ops.has("addNorm")) nodes = new Rewriter(nodes).addNorms();
  return assemble({ ...plan, nodes });
}

/** One walk over the nodes: a match replaces its last node and drops the others. */
class Rewriter {
  private readonly producers = new Map<string, Node>();
  private readonly readers = new Map<string, Node[]>();
  private readonly dropped = new Set<Node>();
  private readonly replaced = new Map<Node, Node[]>();

  constructor(private readonly nodes: readonly Node[]) {
    for (const node of nodes) {
      for (const tensor of Object.values(node.outputs)) this.producers.set(tensor.name, node);
      for (const tensor of Object.values(node.inputs)) {
        const readers = this.readers.get(tensor.name);
        if (readers) readers.push(node);
        else this.readers.set(tensor.name, [node]);
      }
    }
  }

  addNorms(): Node[] {
    for (const node of this.nodes) {
      if (node.op.name !== "rmsNorm" || node.params.groups !== 1) continue;
      const sum = this.producer(node.inputs.x, "add");
      // the sum must come right before: nothing in between may read it at its old place
      if (!sum || this.replaced.has(sum) || this.readers.get(node.inputs.x.name)?.[0] !== node) continue;
      const { a, b } = sum.inputs;
      const inputs = { a, b, weight: node.inputs.weight };
      const params = { ...sum.params, eps: node.params.eps };
      this.replace([sum], node, [keeping(addNorm, inputs, params, { sum: sum.outputs.y, y: node.outputs.y })]);
    }
    return this.result();
  }

  gated(): Node[] {
    for (const node of this.nodes) {
      if (node.op.name !== "gatedActivation") continue;
      const gate = this.producer(node.inputs.gate, "linear", node);
      const up = this.producer(node.inputs.up, "linear", node);
      if (!gate || !up || gate === up || gate.inputs.x !== up.inputs.x || !sameInputs(gate, up)) continue;
      const inputs = { x: gate.inputs.x, ...stackLinears([gate, up]) };
      this.replace([gate, up], node, [keeping(gatedLinear, inputs, { kind: node.params.kind }, node.outputs)]);
    }
    return this.result();
  }

  qkv(): Node[] {
    for (const write of this.nodes) if (write.op.name === "cacheWrite") this.fuseHead(write);
    return this.result();
  }

  private fuseHead(write: Node): void {
    const kRope = this.producer(write.inputs.k, "rope", write);
    const v = this.producer(write.inputs.v, "linear", write);
    const attention = this.readers.get(write.inputs.cache.name)?.find((node) => node.op.name === "attention");
    const qRope = attention && this.producer(attention.inputs.q, "rope", attention);
    if (!kRope || !v || !qRope || !sameTurn(qRope, kRope)) return;
    const qNorm = this.producer(qRope.inputs.x, "rmsNorm", qRope);
    const kNorm = this.producer(kRope.inputs.x, "rmsNorm", kRope);
    if (!qNorm !== !kNorm || qNorm?.params.eps !== kNorm?.params.eps) return;
    const q = this.producer(qNorm ? qNorm.inputs.x : qRope.inputs.x, "linear", qNorm ?? qRope);
    const k = this.producer(kNorm ? kNorm.inputs.x : kRope.inputs.x, "linear", kNorm ?? kRope);
    if (!q || !k || q.inputs.x !== k.inputs.x || q.inputs.x !== v.inputs.x) return;
    if (!sameInputs(q, k) || !sameInputs(q, v)) return;
    const path = q.outputs.y.name.replace(/q_proj$/, "qkv_proj");
    const merged = makeNode(
      linear as unknown as Op,
      path === q.outputs.y.name ? `${path}.qkv` : path,
      {
        x: q.inputs.x,
        ...stackLinears([q, k, v]),
      },
      {},
    );
    const { numHeads, headDim, rotaryDim, invFreq, magnitude, interleaved } = qRope.params;
    const fused = keeping(
      qkvRopeCache,
      {
        qkv: merged.outputs.y,
        positions: qRope.inputs.positions,
        qNorm: qNorm?.inputs.weight,
        kNorm: kNorm?.inputs.weight,
        cache: write.inputs.cache,
      },
      {
        ...{ numHeads, headDim, rotaryDim, invFreq, magnitude, interleaved },
        numKvHeads: write.params.numKvHeads,
        vHeadDim: write.params.vHeadDim,
        normEps: qNorm?.params.eps ?? 0,
      },
      { q: qRope.outputs.y },
    );
    const parts = [q, k, v, qRope, kRope, ...(qNorm && kNorm ? [qNorm, kNorm] : [])];
    this.replace(parts, write, [merged, fused]);
  }

  /** The node that makes the tensor, if it is of this op and (where one is given) `reader` alone reads it. */
  private producer(tensor: Tensor, op: string, reader?: Node): Node | undefined {
    const node = this.producers.get(tensor.name);
    if (node?.op.name !== op) return undefined;
    const readers = this.readers.get(tensor.name) ?? [];
    return reader === undefined || (readers.length === 1 && readers[0] === reader) ? node : undefined;
  }

  private replace(parts: readonly Node[], last: Node, by: Node[]): void {
    for (const part of parts) this.dropped.add(part);
    this.replaced.set(last, by);
  }

  private result(): Node[] {
    return this.nodes.flatMap((node) => this.replaced.get(node) ?? (this.dropped.has(node) ? [] : [node]));
  }
}

/** A checked node that writes tensors which stood in the plan already. */
function keeping<P extends Readonly<Record<string, unknown>>>(
  op: Op<P>,
  inputs: Readonly<Record<string, Tensor | undefined>>,
  params: Readonly<Record<string, unknown>>,
  outputs: Readonly<Record<string, Tensor>>,
): Node {
  const path = Object.values(outputs)[0].name;
  return { ...makeNode(op as unknown as Op, path, inputs, params), outputs };
}

/** Both have a bias, or neither has. */
function sameInputs(a: Node, b: Node): boolean {
  return !a.inputs.bias === !b.inputs.bias;
}

function sameTurn(a: Node, b: Node): boolean {
  const { numHeads: _a, ...left } = a.params;
  const { numHeads: _b, ...right } = b.params;
  return a.inputs.positions === b.inputs.positions && JSON.stringify(left) === JSON.stringify(right);
}

/** One weight (and bias) whose rows are the linears' rows one after another. */
function stackLinears(nodes: readonly Node[]): { weight: Tensor; bias: Tensor | undefined } {
  const stack = (tensors: readonly Tensor[]): Tensor => ({
    ...tensors[0],
    name: tensors.map((tensor) => tensor.name).join("+"),
    shape: [tensors.reduce((rows, tensor) => rows + (tensor.shape[0] as number), 0), ...tensors[0].shape.slice(1)],
    from: tensors.flatMap((tensor) => tensor.from ?? []),
  });
  const biases = nodes.map((node) => node.inputs.bias).filter((bias) => bias !== undefined);
  return {
    weight: stack(nodes.map((node) => node.inputs.weight)),
    bias: biases.length > 0 ? stack(biases) : undefined,
  };
}
