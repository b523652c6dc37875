// Owns: the little language of an op's shape strings ("[n, groups*d]") and checking a node's tensors against it.
import { InternalError } from "../base/errors.js";
import type { Op } from "./op.js";
import type { Dim, Tensor } from "./plan.js";

interface ShapeSpec {
  readonly kind: "float" | "int" | "paged" | "state";
  readonly optional: boolean;
  /** A dimension: sum of products of factors. */
  readonly dims: readonly (readonly (readonly string[])[])[];
}

export type Letters = Map<string, Dim>;

const specs = new Map<string, ShapeSpec>();

export function parseShape(text: string): ShapeSpec {
  let spec = specs.get(text);
  if (spec === undefined) specs.set(text, (spec = parse(text)));
  return spec;
}

function parse(text: string): ShapeSpec {
  const optional = text.endsWith("?");
  const body = optional ? text.slice(0, -1) : text;
  if (body === "paged" || body === "state") return { kind: body, optional, dims: [] };
  const match = /^(i32)?\[([^\]]*)\]$/.exec(body);
  if (!match) throw new InternalError(`shape ${text} cannot be read`);
  const dims = match[2].split(",").map((dim) => dim.split("+").map((term) => term.split("*").map((f) => f.trim())));
  return { kind: match[1] ? "int" : "float", optional, dims };
}

function isLetter(factor: string): boolean {
  return /^[a-z]$/.test(factor);
}

/** A factor's value, undefined while its letter is free. */
function factorValue(factor: string, letters: Letters, params: Readonly<Record<string, unknown>>): Dim | undefined {
  if (/^\d+$/.test(factor)) return Number(factor);
  if (isLetter(factor)) return letters.get(factor);
  const value = params[factor];
  if (typeof value !== "number") throw new InternalError(`a shape needs the parameter ${factor}, which is ${value}`);
  return value;
}

/** The dimension's value, or undefined where a letter in it is free. */
function evaluate(
  dim: readonly (readonly string[])[],
  letters: Letters,
  params: Readonly<Record<string, unknown>>,
): Dim | undefined {
  if (dim.length === 1 && dim[0].length === 1) return factorValue(dim[0][0], letters, params);
  let sum = 0;
  for (const term of dim) {
    let product = 1;
    for (const factor of term) {
      const value = factorValue(factor, letters, params);
      if (value === undefined) return undefined;
      if (typeof value !== "number") throw new InternalError(`${factor} is ${value}: only numbers can be multiplied`);
      product *= value;
    }
    sum += product;
  }
  return sum;
}

/** Binds the one free letter of a product, if there is one: 2*m = 10 gives m = 5. */
function solve(
  dim: readonly (readonly string[])[],
  actual: Dim,
  letters: Letters,
  params: Readonly<Record<string, unknown>>,
): void {
  if (dim.length !== 1) return;
  const free = dim[0].filter((factor) => isLetter(factor) && !letters.has(factor));
  if (free.length !== 1) return;
  if (dim[0].length === 1) {
    letters.set(free[0], actual);
    return;
  }
  const rest = evaluate([dim[0].filter((factor) => factor !== free[0])], letters, params);
  if (typeof rest !== "number" || typeof actual !== "number" || actual % rest !== 0) return;
  letters.set(free[0], actual / rest);
}

/**
 * Checks the node's inputs against the op and returns what each letter stands for. `where` names the node in errors.
 * A mismatch is an InternalError: the builder of a model has checked the checkpoint's shapes before.
 */
export function bindLetters(
  op: Op,
  inputs: Readonly<Record<string, Tensor | undefined>>,
  params: Readonly<Record<string, unknown>>,
  where: string,
): Letters {
  for (const name of Object.keys(inputs)) {
    if (!(name in op.inputs)) throw new InternalError(`${where}: ${op.name} has no input ${name}`);
  }
  const letters: Letters = new Map();
  const given: [string, ShapeSpec, Tensor][] = [];
  for (const [name, text] of Object.entries(op.inputs)) {
    const spec = parseShape(text);
    const tensor = inputs[name];
    if (tensor !== undefined) given.push([name, spec, tensor]);
    else if (!spec.optional) throw new InternalError(`${where}: ${op.name} needs its input ${name}`);
  }
  for (const [name, spec, tensor] of given) checkKind(spec, tensor, `${where}: ${name} of ${op.name}`);
  // plain letters first, so that products have what they need
  for (let pass = 0; pass < 2; pass++) {
    for (const [, spec, tensor] of given) {
      spec.dims.forEach((dim, i) => {
        if (pass === 1 || (dim.length === 1 && dim[0].length === 1)) solve(dim, tensor.shape[i], letters, params);
      });
    }
  }
  for (const [name, spec, tensor] of given) {
    spec.dims.forEach((dim, i) => {
      const want = evaluate(dim, letters, params);
      if (want !== tensor.shape[i]) {
        throw new InternalError(
          `${where}: ${name} of ${op.name} is [${tensor.shape.join(", ")}], its dimension ${i} should be ${want}`,
        );
      }
    });
  }
  return letters;
}

function checkKind(spec: ShapeSpec, tensor: Tensor, where: string): void {
  const cache = spec.kind === "paged" || spec.kind === "state";
  if (cache !== (tensor.role === "cache")) throw new InternalError(`${where} should ${cache ? "" : "not "}be a cache`);
  if (cache) return;
  if ((spec.kind === "int") !== (tensor.dtype === "i32")) throw new InternalError(`${where} is ${tensor.dtype}`);
  if (spec.dims.length !== tensor.shape.length) {
    throw new InternalError(`${where} is [${tensor.shape.join(", ")}]: ${spec.dims.length} dimensions are needed`);
  }
}

/** Shape and dtype of an output, once the inputs have bound the letters. */
export function outputShape(
  op: Op,
  output: string,
  letters: Letters,
  params: Readonly<Record<string, unknown>>,
): { shape: Dim[]; dtype: "f32" | "i32" } {
  const spec = parseShape(op.outputs[output]);
  const shape = spec.dims.map((dim) => {
    const value = evaluate(dim, letters, params);
    if (value === undefined)
      throw new InternalError(`${op.name}: the shape of ${output} does not follow from its inputs`);
    return value;
  });
  return { shape, dtype: spec.kind === "int" ? "i32" : "f32" };
}

/** Checks parameters against the op's declaration. */
export function checkParams(op: Op, params: Readonly<Record<string, unknown>>, where: string): void {
  for (const name of Object.keys(params)) {
    if (!(name in op.params)) {
      throw new InternalError(`${where}: ${op.name} has no parameter ${name}`);
    }
  }
  for (const [name, text] of Object.entries(op.params)) {
    const optional = text.endsWith("?");
    const kind = optional ? text.slice(0, -1) : text;
    const value = params[name];
    if (value === undefined ? !optional : !fits(kind, value)) {
      throw new InternalError(`${where}: parameter ${name} of ${op.name} is ${value}, should be ${text}`);
    }
  }
}

function fits(kind: string, value: unknown): boolean {
  if (kind === "i32") return Number.isInteger(value);
  if (kind === "f32") return typeof value === "number" && !Number.isNaN(value);
  if (kind === "f32[]") return Array.isArray(value) && value.every((v) => typeof v === "number" && Number.isFinite(v));
  if (kind === "bool") return typeof value === "boolean";
  if (kind === "string") return typeof value === "string";
  return kind.split("|").includes(value as string);
}
