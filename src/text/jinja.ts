// Owns: running a chat template as Hugging Face does, with @huggingface/jinja: its interpreter, made to do as Python does
// where it does not (strip with characters, str() of a container, more filters and string methods), and the functions
// that templates are given. Errors of the template's author are FormatErrors; what a template raises is a UserError.
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { FormatError, UserError } from "../base/errors.js";
import { filterMethods, pythonText, stringMethods } from "./jinja-python.js";

/** A node of the parsed template, as far as is looked at here. */
interface Node {
  readonly type: string;
  readonly value?: unknown;
  readonly callee?: Node;
  readonly args?: readonly Node[];
  readonly object?: Node;
  readonly property?: Node;
  readonly computed?: boolean;
  readonly operand?: Node;
  readonly filter?: Node;
  readonly operator?: unknown;
  readonly left?: Node;
  readonly right?: Node;
}

/** A value while a template runs. */
export interface RuntimeValue {
  readonly type: string;
  readonly value: unknown;
}

interface Evaluator {
  evaluate(node: Node, environment: Environment): RuntimeValue;
  evaluateBlock(statements: readonly Node[], environment: Environment): RuntimeValue;
  run(program: unknown): RuntimeValue;
}

const Base = Interpreter as unknown as new (environment: Environment) => Evaluator;

function toRuntime(value: unknown): RuntimeValue {
  return new Environment().set("value", value) as unknown as RuntimeValue;
}

class PythonicInterpreter extends Base {
  /** Objects whose keys are numbers: the interpreter holds them by the keys' text. */
  private readonly numbered = new WeakSet<RuntimeValue>();

  override evaluate(node: Node, environment: Environment): RuntimeValue {
    if (node?.type === "CallExpression") return this.call(node, environment) ?? super.evaluate(node, environment);
    if (node?.type === "FilterExpression") return this.filter(node, environment) ?? super.evaluate(node, environment);
    switch (node?.type) {
      case "TupleLiteral":
        // The interpreter takes only lists apart in a loop.
        return super.evaluate({ type: "ArrayLiteral", value: node.value }, environment);
      case "ObjectLiteral":
        return this.objectLiteral(node, environment);
      case "MemberExpression":
        return this.numberedMember(node, environment) ?? super.evaluate(node, environment);
      case "BinaryExpression":
        if ((node.operator as Node).value !== "~") break;
        return toRuntime(
          pythonText(this.evaluate(node.left!, environment)) + pythonText(this.evaluate(node.right!, environment)),
        );
    }
    return super.evaluate(node, environment);
  }

  /** Output as Python prints it: None, True, and containers as their literals. */
  override evaluateBlock(statements: readonly Node[], environment: Environment): RuntimeValue {
    let text = "";
    for (const node of statements) {
      const value = this.evaluate(node, environment);
      if (value.type === "StringValue") text += value.value as string;
      else if (!silent.has(node.type)) text += pythonText(value);
    }
    return toRuntime(text);
  }

  private objectLiteral(node: Node, environment: Environment): RuntimeValue {
    const entries = [...(node.value as Map<Node, Node>)];
    if (!entries.some(([key]) => key.type === "IntegerLiteral")) return super.evaluate(node, environment);
    const renamed = entries.map(([key, value]): [Node, Node] => [
      { type: "StringLiteral", value: String(key.value) },
      value,
    ]);
    const object = super.evaluate({ type: "ObjectLiteral", value: new Map(renamed) }, environment);
    this.numbered.add(object);
    return object;
  }

  private numberedMember(node: Node, environment: Environment): RuntimeValue | undefined {
    if (!node.computed || node.property?.type === "StringLiteral" || node.property?.type === "SliceExpression")
      return undefined;
    const key = this.evaluate(node.property!, environment);
    if (key.type !== "IntegerValue") return undefined;
    const object = this.evaluate(node.object!, environment);
    if (!this.numbered.has(object)) return undefined;
    return (object.value as Map<string, RuntimeValue>).get(String(key.value)) ?? toRuntime(undefined);
  }

  /** A string's method that the interpreter lacks or gets wrong. The object is evaluated here and, where the method is
   *  not ours, once more by the interpreter: expressions have no effects. */
  private call(node: Node, environment: Environment): RuntimeValue | undefined {
    const { callee, args = [] } = node;
    if (callee?.type !== "MemberExpression" || callee.computed) return undefined;
    const method = stringMethods.get(String(callee.property?.value));
    if (method === undefined || args.some((a) => a.type.startsWith("Keyword") || a.type === "SpreadExpression")) {
      return undefined;
    }
    const object = this.evaluate(callee.object!, environment);
    if (object.type !== "StringValue") return undefined;
    const values = args.map((a) => this.evaluate(a, environment));
    return toRuntime(method(object.value as string, ...values.map(plain)));
  }

  private filter(node: Node, environment: Environment): RuntimeValue | undefined {
    const named = node.filter!;
    const name = named.type === "Identifier" ? named.value : named.callee?.value;
    const args = named.type === "Identifier" ? [] : (named.args ?? []);
    const filter = filterMethods.get(String(name));
    if (
      (filter === undefined && name !== "dictsort") ||
      args.some((a) => a.type.startsWith("Keyword") || a.type === "SpreadExpression")
    ) {
      return undefined;
    }
    const operand = this.evaluate(node.operand!, environment);
    if (name === "dictsort" && this.numbered.has(operand)) return sortedByNumber(operand);
    const result = filter?.(
      operand,
      args.map((a) => plain(this.evaluate(a, environment))),
    );
    return result === undefined ? undefined : toRuntime(result.value);
  }
}

/** Statements, which print nothing by themselves. */
const silent = new Set([
  "Set",
  "If",
  "For",
  "Macro",
  "CallStatement",
  "FilterStatement",
  "Comment",
  "Break",
  "Continue",
]);

function sortedByNumber(object: RuntimeValue): RuntimeValue {
  const entries = [...(object.value as Map<string, RuntimeValue>)].map(([key, value]) => [Number(key), plain(value)]);
  return toRuntime(entries.sort(([a], [b]) => (a as number) - (b as number)));
}

function plain(value: RuntimeValue): unknown {
  return Array.isArray(value.value) ? value.value.map((v) => plain(v as RuntimeValue)) : value.value;
}

class Raised extends Error {}

/** One template, parsed when it is first rendered: a model whose template cannot be read still continues text. */
export class JinjaTemplate {
  private parsed: unknown;

  constructor(readonly source: string) {}

  private get program(): unknown {
    try {
      this.parsed ??= parse(tokenize(this.source, { lstrip_blocks: true, trim_blocks: true }));
    } catch (error) {
      throw new FormatError(`the chat template cannot be read: ${(error as Error).message}`, error);
    }
    return this.parsed;
  }

  /** now: what strftime_now() tells. */
  render(variables: Readonly<Record<string, unknown>>, now: Date = new Date()): string {
    const { program } = this;
    const environment = new Environment();
    const globals: Record<string, unknown> = {
      true: true,
      false: false,
      none: null,
      True: true,
      False: false,
      None: null,
      range,
      dict: (kwargs?: unknown) => (kwargs instanceof Map ? fromMap(kwargs) : {}),
      raise_exception: (message: unknown) => {
        throw new Raised(String(message));
      },
      strftime_now: (format: string) => strftime(format, now),
    };
    try {
      for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value);
      return String(new PythonicInterpreter(environment).run(program).value);
    } catch (error) {
      if (error instanceof Raised) {
        throw new UserError(`the model's chat template refuses this: ${error.message}`, { param: "messages" });
      }
      const message = (error as Error).message;
      throw new UserError(`the model's chat template cannot render this: ${message}`, {
        param: "messages",
        cause: error,
      });
    }
  }
}

function fromMap(map: ReadonlyMap<unknown, unknown>): Record<string, unknown> {
  return Object.fromEntries([...map].map(([key, value]) => [String(key), plain(value as RuntimeValue)]));
}

function range(...bounds: number[]): number[] {
  const [start, stop, step] = bounds.length === 1 ? [0, bounds[0], 1] : [bounds[0], bounds[1], bounds[2] ?? 1];
  if (step === 0) throw new Error("range() needs a step other than 0");
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= 100_000)) throw new Error("range() is limited to 100000 numbers");
  return Array.from({ length }, (_, i) => start + i * step);
}

const days = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const months = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/** Python's strftime in the C locale, for the local time. */
function strftime(format: string, date: Date): string {
  const two = (n: number) => String(n).padStart(2, "0");
  const hour12 = date.getHours() % 12 || 12;
  const dayOfYear = Math.round(
    (Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) - Date.UTC(date.getFullYear(), 0, 0)) / 86_400_000,
  );
  const fields: Record<string, () => string> = {
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    m: () => two(date.getMonth() + 1),
    d: () => two(date.getDate()),
    e: () => String(date.getDate()).padStart(2, " "),
    H: () => two(date.getHours()),
    I: () => two(hour12),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    p: () => (date.getHours() < 12 ? "AM" : "PM"),
    A: () => days[date.getDay()],
    a: () => days[date.getDay()].slice(0, 3),
    B: () => months[date.getMonth()],
    b: () => months[date.getMonth()].slice(0, 3),
    h: () => months[date.getMonth()].slice(0, 3),
    j: () => String(dayOfYear).padStart(3, "0"),
    w: () => String(date.getDay()),
    u: () => String(date.getDay() || 7),
    F: () => strftime("%Y-%m-%d", date),
    D: () => strftime("%m/%d/%y", date),
    T: () => strftime("%H:%M:%S", date),
    R: () => strftime("%H:%M", date),
    n: () => "\n",
    t: () => "\t",
    "%": () => "%",
  };
  return format.replace(/%(-?)([A-Za-z%])/g, (whole, bare: string, letter: string) => {
    const text = fields[letter]?.();
    if (text === undefined) return whole;
    return bare === "-" ? text.replace(/^[0 ](?=.)/, "") : text;
  });
}
