// Owns: doing for the sampled rows alone what only they need: gatherRows moves up through operations that treat each token
// by itself, so that behind the last attention nothing is computed for the other tokens of a prompt.
//
//   attention → linear → add → norm → gatedLinear → linear → add → gatherRows → norm → logits
//   attention → gatherRows → linear → add → …                                  → norm → logits
//             x → gatherRows ↗
//
// Computes the same values. Tensors that moved have rows in place of tokens under their old names.
import { assemble } from "../build.js";
import { gatherRows } from "../ops/index.js";
import type { Node, Plan, Tensor } from "../plan.js";

const byToken: ReadonlySet<string> = new Set([
  "rmsNorm",
  "layerNorm",
  "addNorm",
  "add",
  "linear",
  "gatedLinear",
  "gatedActivation",
  "activation",
]);

export function gatherEarly(plan: Plan): Plan {
  const gathers = plan.nodes.filter((node) => node.op.name === "gatherRows");
  if (gathers.length !== 1) return plan;
  const [gather] = gathers;
  const moved = movable(plan, gather);
  if (moved.size === 0) return plan;

  const nodes: Node[] = [];
  const onRows = new Map<string, Tensor>();
  const rowsOf = (tensor: Tensor): Tensor => {
    const known = onRows.get(tensor.name);
    if (known) return known;
    const name = `${gather.outputs.y.name}.${tensor.name}`;
    const y: Tensor = { ...tensor, name, shape: ["rows", ...tensor.shape.slice(1)], role: "activation" };
    nodes.push({ op: gatherRows, inputs: { x: tensor, rows: gather.inputs.rows }, outputs: { y }, params: {} });
    onRows.set(tensor.name, y);
    return y;
  };
  const others = new Set<string>();
  const read = [...moved].flatMap((node) => Object.values(node.inputs));
  for (const node of plan.nodes) {
    if (!moved.has(node)) for (const { name } of Object.values(node.outputs)) others.add(name);
    // All that is there is gathered before the first product, which may then add itself to one of them.
    else for (const tensor of read) if (others.has(tensor.name)) rowsOf(tensor);
    if (node === gather) {
      onRows.set(gather.outputs.y.name, rowsOf(gather.inputs.x));
    } else if (moved.has(node)) {
      const inputs = mapTensors(node.inputs, (tensor) => (tensor.shape[0] === "tokens" ? rowsOf(tensor) : tensor));
      const outputs = mapTensors(node.outputs, (tensor) => ({ ...tensor, shape: ["rows", ...tensor.shape.slice(1)] }));
      for (const tensor of Object.values(outputs)) onRows.set(tensor.name, tensor);
      nodes.push({ ...node, inputs, outputs });
    } else {
      nodes.push({
        ...node,
        inputs: mapTensors(node.inputs, (tensor) =>
          tensor.shape[0] === "rows" ? (onRows.get(tensor.name) ?? tensor) : tensor,
        ),
      });
    }
  }
  return assemble({ ...plan, nodes });
}

/** Nodes of one token each whose results reach nothing but the gathering. */
function movable(plan: Plan, gather: Node): Set<Node> {
  const readers = new Map<string, Node[]>();
  for (const node of plan.nodes) {
    for (const tensor of Object.values(node.inputs)) {
      const list = readers.get(tensor.name);
      if (list) list.push(node);
      else readers.set(tensor.name, [node]);
    }
  }
  const moved = new Set<Node>();
  for (const node of plan.nodes.slice(0, plan.nodes.indexOf(gather)).reverse()) {
    if (!byToken.has(node.op.name)) continue;
    const all = Object.values(node.outputs).flatMap((tensor) => readers.get(tensor.name) ?? []);
    if (all.length > 0 && all.every((reader) => reader === gather || moved.has(reader))) moved.add(node);
  }
  return moved;
}

function mapTensors(record: Readonly<Record<string, Tensor>>, f: (tensor: Tensor) => Tensor): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, f(tensor)]));
}
