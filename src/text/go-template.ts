// Owns: running a parsed Go template: its values, truth, comparison, printing and functions, as Go's text/template has
// them. Values are JavaScript's: string, number, boolean, null, arrays, Maps (Go's maps: ranged over in the order of their
// keys) and GoStructs (fields by name; an unknown one is an error, as in Go).
import { FormatError } from "../base/errors.js";
import {
  type Command,
  GoSyntaxError,
  type Node,
  type Operand,
  type ParsedTemplate,
  type Pipe,
} from "./go-template-parse.js";

/** What a Go struct is to a template. */
export class GoStruct {
  constructor(
    readonly fields: Readonly<Record<string, unknown>>,
    /** What json and printing show of it, in order. */
    readonly json: unknown,
    /** What printing shows where that is not its JSON. */
    readonly text?: string,
  ) {}
}

export type GoFunction = (...values: readonly unknown[]) => unknown;

/** Nodes and rounds of one rendering. */
const mostSteps = 2_000_000;
const deepest = 100;

/** JSON as Go's encoding/json writes it: no spaces, keys of maps in order, <, > and & escaped. */
export function goJson(value: unknown): string {
  return JSON.stringify(plain(value, true) ?? null).replace(
    /[<>&\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function plain(value: unknown, sorted: boolean): unknown {
  if (value instanceof GoStruct) return plain(value.json, sorted);
  if (Array.isArray(value)) return value.map((one) => plain(one, sorted));
  if (value instanceof Map) {
    return Object.fromEntries(sortedEntries(value).map(([key, one]) => [key, plain(one, sorted)]));
  }
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one, sorted)]));
  }
  return value;
}

function sortedEntries(map: ReadonlyMap<unknown, unknown>): [string, unknown][] {
  return [...map]
    .map(([key, one]): [string, unknown] => [String(key), one])
    .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

/** As fmt.Sprint prints it. */
export function goText(value: unknown): string {
  if (value === null || value === undefined) return "<no value>";
  if (value instanceof GoStruct) return value.text ?? goJson(value);
  if (value instanceof Map) return goJson(value);
  if (Array.isArray(value)) {
    return value.some((one) => one instanceof GoStruct) ? goJson(value) : `[${value.map(goText).join(" ")}]`;
  }
  if (typeof value === "number") return goNumber(value);
  return String(value);
}

function goNumber(value: number): string {
  return Math.abs(value) >= 1e21 ? value.toExponential().replace(/e([+-])(\d)$/, "e$10$2") : String(value);
}

export function goTruth(value: unknown): boolean {
  if (value === null || value === undefined || value === false || value === 0 || value === "") return false;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  return true;
}

function lengthOf(value: unknown): number {
  if (typeof value === "string") return new TextEncoder().encode(value).length;
  if (Array.isArray(value)) return value.length;
  if (value instanceof Map) return value.size;
  throw new FormatError(`len of ${goText(value)}: it has no length`);
}

function indexOf(value: unknown, ...keys: readonly unknown[]): unknown {
  let at = value;
  for (const key of keys) {
    if (at instanceof Map) at = at.get(key) ?? null;
    else if (Array.isArray(at)) {
      if (typeof key !== "number" || key < 0 || key >= at.length) {
        throw new FormatError(`index ${goText(key)} is outside of a list of ${at.length}`);
      }
      at = at[key];
    } else if (typeof at === "string") at = new TextEncoder().encode(at)[key as number];
    else throw new FormatError(`${goText(at)} cannot be indexed`);
  }
  return at;
}

function slice(value: unknown, from: unknown = 0, to?: unknown): unknown {
  const length = lengthOf(value);
  const [start, end] = [from as number, (to ?? length) as number];
  if (!(start >= 0 && start <= end && end <= length))
    throw new FormatError(`slice ${start}:${end} of ${length} elements`);
  if (Array.isArray(value)) return value.slice(start, end);
  return new TextDecoder().decode(new TextEncoder().encode(value as string).subarray(start, end));
}

function equal(a: unknown, b: unknown): boolean {
  if (a === undefined || a === null || b === undefined || b === null) return (a ?? null) === (b ?? null);
  const [x, y] = [a, b].map((one) => (one instanceof GoStruct && one.text !== undefined ? one.text : one));
  if (typeof x !== typeof y) throw new FormatError(`eq of ${goText(a)} and ${goText(b)}: they are of different types`);
  if (typeof x === "object") throw new FormatError("eq of lists or maps is not defined");
  return x === y;
}

function order(a: unknown, b: unknown): number {
  if (typeof a !== typeof b || (typeof a !== "number" && typeof a !== "string")) {
    throw new FormatError(`${goText(a)} and ${goText(b)} cannot be compared`);
  }
  return a === b ? 0 : a < (b as typeof a) ? -1 : 1;
}

/** %s, %v, %d, %q, %t and %%. */
function printf(format: unknown, ...values: readonly unknown[]): string {
  let at = 0;
  return String(format).replace(/%(%|[svdqt]|[\s\S]?)/g, (all, verb: string) => {
    if (verb === "%") return "%";
    if (!"svdqt".includes(verb) || verb === "") throw new FormatError(`printf: ${all} is not supported`);
    const value = values[at++];
    return verb === "q" ? JSON.stringify(goText(value)) : goText(value);
  });
}

/** Between two operands that are no strings there is a space. */
function print(...values: readonly unknown[]): string {
  let out = "";
  values.forEach((value, at) => {
    if (at > 0 && typeof value !== "string" && typeof values[at - 1] !== "string") out += " ";
    out += goText(value);
  });
  return out;
}

const builtins: Readonly<Record<string, GoFunction>> = {
  len: lengthOf,
  index: indexOf,
  slice,
  not: (value) => !goTruth(value),
  eq: (a, ...rest) => rest.some((b) => equal(a, b)),
  ne: (a, b) => !equal(a, b),
  lt: (a, b) => order(a, b) < 0,
  le: (a, b) => order(a, b) <= 0,
  gt: (a, b) => order(a, b) > 0,
  ge: (a, b) => order(a, b) >= 0,
  print,
  println: (...values) => `${values.map(goText).join(" ")}\n`,
  printf,
};

const arity: Readonly<Record<string, readonly [least: number, most: number]>> = {
  ...{ len: [1, 1], not: [1, 1], ne: [2, 2], lt: [2, 2], le: [2, 2], gt: [2, 2], ge: [2, 2], slice: [1, 3] },
  ...{ index: [1, 99], eq: [2, 99], and: [1, 99], or: [1, 99], printf: [1, 99] },
};

type Loop = Extract<Node, { pipe: Pipe; body: readonly Node[] }>;

interface Scope {
  readonly name: string;
  value: unknown;
}

class LoopEnd {
  constructor(readonly kind: "break" | "continue") {}
}

/** One rendering. */
class Run {
  private out = "";
  private steps = 0;
  private depth = 0;
  private scopes: Scope[] = [];

  constructor(
    private readonly template: ParsedTemplate,
    private readonly functions: Readonly<Record<string, GoFunction>>,
  ) {}

  render(nodes: readonly Node[], data: unknown): string {
    this.scopes = [{ name: "$", value: data }];
    this.list(nodes, data);
    return this.out;
  }

  private list(nodes: readonly Node[], dot: unknown): void {
    const mark = this.scopes.length;
    for (const node of nodes) {
      this.step();
      this.node(node, dot);
    }
    this.scopes.length = mark;
  }

  private step(): void {
    if (++this.steps > mostSteps) throw new FormatError("the template does not come to an end");
  }

  private node(node: Node, dot: unknown): void {
    switch (node.kind) {
      case "text":
        this.out += node.text;
        return;
      case "break":
      case "continue":
        throw new LoopEnd(node.kind);
    }
    try {
      this.lined(node, dot);
    } catch (error) {
      if (error instanceof FormatError && !(error instanceof GoSyntaxError)) {
        throw new GoSyntaxError(node.line, error.message);
      }
      throw error;
    }
  }

  private lined(node: Exclude<Node, { kind: "text" | "break" | "continue" }>, dot: unknown): void {
    switch (node.kind) {
      case "action": {
        const value = this.pipe(node.pipe, dot);
        if (node.pipe.variables.length === 0) this.out += goText(value);
        return;
      }
      case "if":
      case "with": {
        const mark = this.scopes.length;
        const value = this.pipe(node.pipe, dot);
        if (goTruth(value)) this.list(node.body, node.kind === "with" ? value : dot);
        else this.list(node.otherwise, dot);
        this.scopes.length = mark;
        return;
      }
      case "range":
        this.range(node, dot);
        return;
      case "template":
        this.include(node, dot);
    }
  }

  private include(node: Extract<Node, { kind: "template" }>, dot: unknown): void {
    const nodes = this.template.named.get(node.name);
    if (nodes === undefined) throw new FormatError(`there is no template ${JSON.stringify(node.name)}`);
    if (++this.depth > deepest) throw new FormatError("templates call each other without end");
    const data = node.pipe === null ? null : this.pipe(node.pipe, dot);
    const scopes = this.scopes;
    this.scopes = [{ name: "$", value: data }];
    this.list(nodes, data);
    this.scopes = scopes;
    this.depth--;
  }

  private range(node: Loop, dot: unknown): void {
    const mark = this.scopes.length;
    const value = this.evaluate(node.pipe, dot);
    const entries = rangeEntries(value);
    const { variables, assigns } = node.pipe;
    for (const [key, one] of entries) {
      this.step();
      const given = variables.length === 2 ? [key, one] : [one];
      variables.forEach((name, at) => {
        if (assigns) this.assign(name, given[at]);
        else this.scopes.push({ name, value: given[at] });
      });
      try {
        this.list(node.body, one);
      } catch (error) {
        if (!(error instanceof LoopEnd)) throw error;
        if (error.kind === "break") break;
      } finally {
        this.scopes.length = mark;
      }
    }
    this.scopes.length = mark;
    if (entries.length === 0) this.list(node.otherwise, dot);
  }

  private assign(name: string, value: unknown): void {
    const scope = this.scopes.findLast((one) => one.name === name);
    if (scope === undefined) throw new FormatError(`there is no variable ${name}`);
    scope.value = value;
  }

  /** The value, which its variables then have. */
  private pipe(pipe: Pipe, dot: unknown): unknown {
    const value = this.evaluate(pipe, dot);
    for (const name of pipe.variables) {
      if (pipe.assigns) this.assign(name, value);
      else this.scopes.push({ name, value });
    }
    return value;
  }

  private evaluate({ commands }: Pipe, dot: unknown): unknown {
    let value: unknown;
    commands.forEach((command, at) => {
      value = at === 0 ? this.command(command, dot, []) : this.command(command, dot, [value]);
    });
    return value;
  }

  /** piped: the value that comes down the pipeline, as the last argument. */
  private command([head, ...rest]: Command, dot: unknown, piped: readonly unknown[]): unknown {
    if (head.kind !== "function") {
      if (rest.length > 0 || piped.length > 0) throw new FormatError("a value that is no function is given arguments");
      return this.operand(head, dot);
    }
    const { name } = head;
    const count = rest.length + piped.length;
    const [least, most] = arity[name] ?? [0, Number.POSITIVE_INFINITY];
    if (count < least || count > most) throw new FormatError(`${name} is given ${count} arguments`);
    if (name === "and" || name === "or") return this.shortCircuit(name, rest, dot, piped);
    const call = Object.hasOwn(builtins, name) ? builtins[name] : this.functions[name];
    if (call === undefined) throw new FormatError(`there is no function ${name}`);
    return call(...rest.map((one) => this.operand(one, dot)), ...piped);
  }

  private shortCircuit(name: "and" | "or", rest: Command, dot: unknown, piped: readonly unknown[]): unknown {
    let value: unknown;
    for (const operand of rest) {
      value = this.operand(operand, dot);
      if (goTruth(value) === (name === "or")) return value;
    }
    return piped.length > 0 ? piped[0] : value;
  }

  private operand(operand: Operand, dot: unknown): unknown {
    switch (operand.kind) {
      case "literal":
        return operand.value;
      case "dot":
        return fields(dot, operand.names);
      case "variable": {
        const scope = this.scopes.findLast((one) => one.name === operand.variable);
        if (scope === undefined) throw new FormatError(`there is no variable ${operand.variable}`);
        return fields(scope.value, operand.names);
      }
      case "function":
        return this.command([operand], dot, []);
      case "pipe":
        return fields(this.pipe(operand.pipe, dot), operand.names);
    }
  }
}

function rangeEntries(value: unknown): [unknown, unknown][] {
  if (value === null || value === undefined) return [];
  if (Array.isArray(value)) return value.map((one, at) => [at, one]);
  if (value instanceof Map) return sortedEntries(value);
  if (typeof value === "number" && value <= mostSteps) return Array.from({ length: value }, (_, at) => [at, at]);
  throw new FormatError(`${goText(value)} cannot be ranged over`);
}

function fields(value: unknown, names: readonly string[]): unknown {
  let at = value;
  for (const name of names) {
    if (at instanceof Map) at = at.get(name) ?? null;
    else if (at instanceof GoStruct) {
      if (!Object.hasOwn(at.fields, name)) throw new FormatError(`there is no field .${name} here`);
      at = at.fields[name];
    } else if (at === null || at === undefined) throw new FormatError(`.${name} of nothing`);
    else throw new FormatError(`.${name} of ${goText(at).slice(0, 40)}: it has no fields`);
  }
  return at;
}

/** data: a Map of the template's top-level names. Throws FormatError with the line of what cannot be done. */
export function runGoTemplate(
  template: ParsedTemplate,
  nodes: readonly Node[],
  data: ReadonlyMap<string, unknown>,
  functions: Readonly<Record<string, GoFunction>> = {},
): string {
  return new Run(template, functions).render(nodes, data);
}

/** Names of functions that nodes call and nobody knows: found before anything is rendered. */
export function unknownFunctions(template: ParsedTemplate, functions: Readonly<Record<string, GoFunction>>): string[] {
  const found = new Set<string>();
  const known = (name: string) => Object.hasOwn(builtins, name) || name === "and" || name === "or" || name in functions;
  visitOperands(template, (operand) => {
    if (operand.kind === "function" && !known(operand.name)) found.add(operand.name);
  });
  return [...found];
}

export function visitOperands({ nodes, named }: ParsedTemplate, visit: (operand: Operand) => void): void {
  const ofPipe = ({ commands }: Pipe) => {
    for (const operand of commands.flat()) {
      visit(operand);
      if (operand.kind === "pipe") ofPipe(operand.pipe);
    }
  };
  const ofList = (list: readonly Node[]) => {
    for (const node of list) {
      if ("pipe" in node && node.pipe !== null) ofPipe(node.pipe);
      if ("body" in node) {
        ofList(node.body);
        ofList(node.otherwise);
      }
    }
  };
  ofList(nodes);
  for (const list of named.values()) ofList(list);
}
