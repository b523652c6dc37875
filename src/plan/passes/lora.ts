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

/** Where adapters can act: paths of the linears, with the shape [out, in] of each; of all ranks' plans, the whole one. */
export function adapterSites(...plans: readonly Plan[]): ReadonlyMap<string, readonly [number, number]> {
  const sites = new Map<string, readonly [number, number]>();
  for (const node of plans.flatMap(({ nodes }) => nodes)) {
    if (node.op.name !== "lora") continue;
    const { site, rowStart, colStart } = node.params as { site: string; rowStart: number; colStart: number };
    const [out, into] = sites.get(site) ?? [0, 0];
    const rows = rowStart + (node.inputs.y.shape[1] as number);
    const cols = colStart + (node.inputs.x.shape[1] as number);
    sites.set(site, [Math.max(out, rows), Math.max(into, cols)]);
  }
  return sites;
}
