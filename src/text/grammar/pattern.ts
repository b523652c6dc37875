// Owns: regular expressions (ECMAScript's, without flags) as grammar, whole or within a JSON string, where characters that
// JSON escapes come escaped. Two classes are a little wider than ECMAScript's, as in other dialects: \S has all characters
// but ASCII's white space, and . all but line feed and carriage return. Refuses by name what is not regular or not supported: lookaround, backreferences, \b, \p{…},
// and bounds so large that the grammar would be.
import { UserError } from "../../base/errors.js";
import { type CharSet, charClass, complement, literal, type Rules, textual, union, without } from "./ebnf.js";
import { escaped, plainStringSet } from "./json.js";
import { repeated } from "./repeat.js";

const longestPattern = 2000;
const largestBound = 1000;
const largestSize = 10_000;

type Node =
  | { readonly kind: "set"; readonly set: CharSet }
  | { readonly kind: "sequence" | "either"; readonly parts: readonly Node[] }
  | { readonly kind: "repeat"; readonly part: Node; readonly min: number; readonly max: number }
  | { readonly kind: "start" }
  | { readonly kind: "end" };

const digits: CharSet = [[48, 57]];
const wordSet: CharSet = [
  [48, 57],
  [65, 90],
  [95, 95],
  [97, 122],
];
const asciiSpaces: CharSet = [
  [9, 13],
  [32, 32],
];
const spaces: CharSet = [
  ...asciiSpaces,
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const lineEnds: CharSet = [
  [10, 10],
  [13, 13],
];
const classes: Readonly<Record<string, CharSet>> = {
  d: digits,
  D: complement(digits),
  w: wordSet,
  W: complement(wordSet),
  s: spaces,
  S: complement(asciiSpaces),
};
const escapes: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11, "0": 0 };
const everything: CharSet = [[0, 0x10ffff]];

export interface PatternOptions {
  /** Within a JSON string: without its quotes. */
  readonly json?: boolean;
  /** The pattern may stand anywhere in the text unless it is anchored (JSON Schema's pattern); otherwise it is the whole. */
  readonly anywhere?: boolean;
  /** Names it in errors. */
  readonly param?: string;
}

/** The pattern as a rule's body, beside rules that it adds. Throws UserError with the place of what is not supported. */
export function patternBody(rules: Rules, pattern: string, options: PatternOptions = {}): string {
  const param = options.param ?? "format";
  const fail: Fail = (at, what) => {
    throw new UserError(`The pattern ${JSON.stringify(shortened(pattern))} at position ${at}: ${what}.`, {
      code: "unsupported_pattern",
      param,
    });
  };
  if (pattern.length > longestPattern) fail(longestPattern, `patterns have at most ${longestPattern} characters`);
  const tree = new Parser(pattern, fail).parse();
  if (sizeOf(tree) > largestSize) fail(0, "its bounds multiply to a grammar that is too large; use smaller ones");
  const whole = anchored(tree, options.anywhere ?? false, fail);
  const body = write(rules, whole, options.json ?? false);
  if (body === undefined) fail(0, "no text can match it");
  return body as string;
}

type Fail = (at: number, what: string) => never;

const shortened = (pattern: string) => (pattern.length > 80 ? `${pattern.slice(0, 80)}…` : pattern);

class Parser {
  private at = 0;

  constructor(
    private readonly text: string,
    private readonly fail: Fail,
  ) {}

  parse(): Node {
    const node = this.either(0);
    if (this.at < this.text.length) this.fail(this.at, `"${this.text[this.at]}" closes nothing`);
    return node;
  }

  private either(depth: number): Node {
    if (depth > 50) this.fail(this.at, "groups are nested too deeply");
    const parts: Node[] = [this.sequence(depth)];
    while (this.text[this.at] === "|") {
      this.at++;
      parts.push(this.sequence(depth));
    }
    return parts.length === 1 ? parts[0] : { kind: "either", parts };
  }

  private sequence(depth: number): Node {
    const parts: Node[] = [];
    while (this.at < this.text.length && this.text[this.at] !== "|" && this.text[this.at] !== ")") {
      parts.push(this.quantified(this.atom(depth)));
    }
    return { kind: "sequence", parts };
  }

  private atom(depth: number): Node {
    const start = this.at;
    const c = this.next();
    if (c === "(") return this.group(start, depth);
    if (c === "[") return { kind: "set", set: this.bracket(start) };
    if (c === ".") return { kind: "set", set: complement(lineEnds) };
    if (c === "^") return { kind: "start" };
    if (c === "$") return { kind: "end" };
    if (c === "\\") return { kind: "set", set: this.escape(start, false) };
    if ("*+?".includes(c)) this.fail(start, `there is nothing for "${c}" to repeat`);
    return { kind: "set", set: [[c.codePointAt(0)!, c.codePointAt(0)!]] };
  }

  private group(start: number, depth: number): Node {
    if (this.text[this.at] === "?") {
      const rest = this.text.slice(this.at);
      const opening = /^\?(:|<[A-Za-z_]\w*>)/.exec(rest);
      if (!opening) {
        const what = /^\?<?[=!]/.test(rest)
          ? "lookahead and lookbehind are not supported"
          : "this kind of group is not";
        this.fail(start, what.endsWith("not") ? `${what} supported` : what);
      }
      this.at += opening![0].length;
    }
    const node = this.either(depth + 1);
    if (this.text[this.at] !== ")") this.fail(start, "the group is not closed");
    this.at++;
    return node;
  }

  private quantified(part: Node): Node {
    const start = this.at;
    const c = this.text[start];
    let bounds: [number, number] | undefined;
    if (c === "*") bounds = [0, Number.POSITIVE_INFINITY];
    else if (c === "+") bounds = [1, Number.POSITIVE_INFINITY];
    else if (c === "?") bounds = [0, 1];
    const braces = c === "{" ? /^\{(\d+)(,(\d*))?\}/.exec(this.text.slice(start)) : null;
    if (braces) {
      const min = Number(braces[1]);
      const max = braces[2] === undefined ? min : braces[3] === "" ? Number.POSITIVE_INFINITY : Number(braces[3]);
      if (max < min) this.fail(start, "the bounds are out of order");
      if (min > largestBound || (Number.isFinite(max) && max > largestBound)) {
        this.fail(start, `bounds go up to ${largestBound}`);
      }
      bounds = [min, max];
    }
    if (bounds === undefined) return part;
    this.at += braces ? braces[0].length : 1;
    // Laziness chooses among matches; the language is the same.
    if (this.text[this.at] === "?") this.at++;
    if (part.kind === "start" || part.kind === "end") this.fail(start, "an anchor cannot be repeated");
    const [min, max] = bounds;
    return { kind: "repeat", part, min, max };
  }

  private bracket(start: number): CharSet {
    const negated = this.text[this.at] === "^";
    if (negated) this.at++;
    let set: CharSet = [];
    for (;;) {
      if (this.at >= this.text.length) this.fail(start, "the class is not closed");
      if (this.text[this.at] === "]") break;
      const low = this.member(start);
      const single = low.length === 1 && low[0][0] === low[0][1];
      if (single && this.text[this.at] === "-" && this.text[this.at + 1] !== "]") {
        const dash = this.at++;
        const high = this.member(start);
        if (high.length !== 1 || high[0][0] !== high[0][1]) this.fail(dash, "a class is no end of a range");
        if (high[0][0] < low[0][0]) this.fail(dash, "the range is out of order");
        set = union(set, [[low[0][0], high[0][0]]]);
      } else set = union(set, low);
    }
    this.at++;
    return negated ? complement(set) : set;
  }

  private member(start: number): CharSet {
    if (this.at >= this.text.length) this.fail(start, "the class is not closed");
    const at = this.at;
    const c = this.next();
    if (c === "\\") return this.escape(at, true);
    return [[c.codePointAt(0)!, c.codePointAt(0)!]];
  }

  private escape(start: number, inClass: boolean): CharSet {
    if (this.at >= this.text.length) this.fail(start, "the pattern ends with a backslash");
    const c = this.next();
    if (c in classes) return classes[c];
    if (c === "b" && inClass) return [[8, 8]];
    if (c === "b" || c === "B") this.fail(start, "word boundaries are not supported");
    if (c === "p" || c === "P") this.fail(start, "Unicode properties are not supported; write the ranges");
    if (/[1-9k]/.test(c)) this.fail(start, "backreferences are not supported");
    const hex = /^(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\})/.exec(c + this.text.slice(this.at));
    let code = c in escapes ? escapes[c] : c.codePointAt(0)!;
    if (hex) {
      this.at += hex[0].length - 1;
      code = Number.parseInt(hex[0].replace(/[xu{}]/g, ""), 16);
      if (code > 0x10ffff) this.fail(start, "there is no such character");
    } else if (!(c in escapes) && /[A-Za-z]/.test(c)) this.fail(start, `the escape \\${c} is not supported`);
    return [[code, code]];
  }

  private next(): string {
    const c = String.fromCodePoint(this.text.codePointAt(this.at)!);
    this.at += c.length;
    return c;
  }
}

/** How large the grammar becomes with all bounds written out. */
function sizeOf(node: Node): number {
  if (node.kind === "sequence" || node.kind === "either")
    return node.parts.reduce((sum, part) => sum + sizeOf(part), 1);
  if (node.kind !== "repeat") return 1;
  return sizeOf(node.part) * Math.max(1, Number.isFinite(node.max) ? node.max : node.min + 1);
}

const anything: Node = {
  kind: "repeat",
  part: { kind: "set", set: everything },
  min: 0,
  max: Number.POSITIVE_INFINITY,
};

/** Takes the anchors away: each way through must have its own at its ends, where what may stand beside it is written. */
function anchored(tree: Node, anywhere: boolean, fail: Fail): Node {
  const ways = tree.kind === "either" ? tree.parts : [tree];
  const parts = ways.map((way): Node => {
    let inner = way.kind === "sequence" ? [...way.parts] : [way];
    const start = inner[0]?.kind === "start";
    const end = inner.at(-1)?.kind === "end";
    inner = inner.slice(start ? 1 : 0, end ? -1 : undefined);
    if (inner.some(hasAnchor)) fail(0, "^ and $ are supported at the two ends only");
    if (!anywhere) return { kind: "sequence", parts: inner };
    return { kind: "sequence", parts: [...(start ? [] : [anything]), ...inner, ...(end ? [] : [anything])] };
  });
  return parts.length === 1 ? parts[0] : { kind: "either", parts };
}

function hasAnchor(node: Node): boolean {
  if (node.kind === "start" || node.kind === "end") return true;
  if (node.kind === "repeat") return hasAnchor(node.part);
  return node.kind !== "set" && node.parts.some(hasAnchor);
}

/** undefined: nothing can match. */
function write(rules: Rules, node: Node, json: boolean): string | undefined {
  switch (node.kind) {
    case "set":
      return json ? jsonSet(node.set) : charClass(node.set);
    case "sequence": {
      const parts = node.parts.map((part) => write(rules, part, json));
      if (parts.includes(undefined)) return undefined;
      return parts.length === 0 ? '""' : parts.join(" ");
    }
    case "either": {
      const parts = node.parts.map((part) => write(rules, part, json)).filter((part) => part !== undefined);
      return parts.length === 0 ? undefined : `(${parts.join(" | ")})`;
    }
    case "repeat": {
      const { min, max } = node;
      const part = write(rules, node.part, json);
      if (part === undefined) return min === 0 ? '""' : undefined;
      return repeated(rules, `(${part})`, min, max);
    }
    default:
      return '""';
  }
}

function jsonSet(set: CharSet): string | undefined {
  const plain = charClass(without(textual(set), complement(plainStringSet)));
  const ways = plain === undefined ? [] : [plain];
  for (const [from, to] of textual(set)) {
    for (let code = from; code <= Math.min(to, 0x1f); code++) ways.push(literal(escaped(code)));
    for (const code of [0x22, 0x5c]) if (code >= from && code <= to) ways.push(literal(escaped(code)));
  }
  return ways.length === 0 ? undefined : `(${ways.join(" | ")})`;
}
