// Owns: making room for adapters: after every linear comes a lora node, whose site is the linear's path. Where no adapter
// is loaded, or a sequence has none, it copies. Runs before fuse() and before split(); what it touches is not fused.
import { assemble, makeNode } from "../build.js";
import type { Op } from "../op.js";
import { lora } from "../ops/index.js";
import type { Node, Plan, Tensor } from "../plan.js";

export function withAdapters(plan: Plan): Plan {
  const adapted = new Map<string, Tensor>();
  const nodes = plan.nodes.flatMap((node): Node[] => {
    const inputs = Object.fromEntries(
      Object.entries(node.inputs).map(([name, tensor]) => [name, adapted.get(tensor.name) ?? tensor]),
    );
    const own = { ...node, inputs };
    if (node.op.name !== "linear") return [own];
    const y = node.outputs.y;
    const params = { site: y.name, rowStart: 0, colStart: 0 };
    const added = makeNode(lora as unknown as Op, `${y.name}.lora`, { x: inputs.x, y }, params);
    adapted.set(y.name, added.outputs.z);
    return [own, added];
  });
  return assemble({ ...plan, nodes });
}

/** Where adapters can act: paths of the linears, with the shape [out, in] of each. */
export function adapterSites(plan: Plan): ReadonlyMap<string, readonly [number, number]> {
  const sites = new Map<string, readonly [number, number]>();
  for (const node of plan.nodes) {
    if (node.op.name !== "lora") continue;
    sites.set(node.params.site as string, [node.inputs.y.shape[1] as number, node.inputs.x.shape[1] as number]);
  }
  return sites;
}
