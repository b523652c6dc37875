// Owns: what a well-formed plan is, checked whole: for plans that passes made, and before a device takes one. Shapes of
// single nodes are checked when they are made (build.ts); here also order, names and ids.
import { InternalError } from "../base/errors.js";
import type { Plan, Tensor } from "./plan.js";
import { bindLetters, checkParams } from "./shapes.js";

/** Throws InternalError for the first thing that is wrong. */
export function validatePlan(plan: Plan): void {
  const names = new Set<string>();
  plan.tensors.forEach((tensor, id) => {
    if (tensor.id !== id) throw new InternalError(`tensor ${tensor.name} has id ${tensor.id} at place ${id}`);
    if (names.has(tensor.name)) throw new InternalError(`two tensors are called ${tensor.name}`);
    names.add(tensor.name);
    checkRole(plan, tensor);
  });
  const defined = new Set(plan.tensors.filter(({ role }) => role !== "activation").map(({ id }) => id));
  for (const node of plan.nodes) {
    const where = Object.values(node.outputs)[0]?.name ?? node.op.name;
    checkParams(node.op, node.params, where);
    bindLetters(node.op, node.inputs, node.params, where);
    for (const tensor of Object.values(node.inputs)) {
      if (plan.tensors[tensor.id] !== tensor) throw new InternalError(`${where} reads ${tensor.name} of another plan`);
      if (!defined.has(tensor.id)) throw new InternalError(`${where} reads ${tensor.name} before it is written`);
    }
    for (const tensor of Object.values(node.outputs)) {
      if (plan.tensors[tensor.id] !== tensor) throw new InternalError(`${where} writes ${tensor.name} of another plan`);
      if (defined.has(tensor.id)) throw new InternalError(`${tensor.name} is written twice`);
      defined.add(tensor.id);
    }
  }
}

function checkRole(plan: Plan, tensor: Tensor): void {
  if ((tensor.role === "weight") !== (tensor.from !== undefined)) {
    throw new InternalError(`${tensor.name} is ${tensor.from ? "no weight and has" : "a weight without"} a recipe`);
  }
  if ((tensor.role === "input") !== (tensor.input !== undefined)) {
    throw new InternalError(`${tensor.name}: an input, and nothing else, says which`);
  }
  if (tensor.role === "cache" && !plan.caches[tensor.cache ?? -1]) {
    throw new InternalError(`${tensor.name} stands for no cache of the plan`);
  }
}
