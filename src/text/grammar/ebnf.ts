// Owns: writing grammars in xgrammar's EBNF: rules with fresh names, literals and character sets quoted. A grammar is text
// until the grammar worker compiles it.
//
// Control tokens (special tokens that delimit tool calls or reasoning) are part of a grammar as U+0001, the id, "~". No
// character set made here contains U+0001, so a caller's pattern can never stand for one of them.
import { UserError } from "../../base/errors.js";

/** Inclusive ranges of code points, ascending and apart. */
export type CharSet = readonly (readonly [from: number, to: number])[];

export const lastCodePoint = 0x10ffff;

/** All rules of a grammar in the making. A rule's name stands for it in bodies of others. */
export class Rules {
  private readonly lines: string[] = [];
  private readonly names = new Set<string>();
  private readonly shared = new Map<string, string>();
  private size = 0;

  constructor(
    /** Of the text, in characters: what one caller may make the compiler read. */
    private readonly most = 400_000,
    private readonly param = "format",
  ) {}

  /** Its body may follow later with define(): rules may be recursive. */
  fresh(hint: string): string {
    const base = hint
      .replace(/[^a-zA-Z0-9_]/g, "_")
      .replace(/^(?![a-zA-Z_])/, "_")
      .slice(0, 40);
    let name = base;
    for (let i = 2; this.names.has(name); i++) name = `${base}_${i}`;
    this.names.add(name);
    return name;
  }

  define(name: string, body: string): string {
    this.size += name.length + body.length + 8;
    if (this.size > this.most) {
      throw new UserError(
        `The ${this.param} makes a grammar of more than ${this.most} characters; make it smaller or less repetitive.`,
        { code: "grammar_too_large", param: this.param },
      );
    }
    this.lines.push(`${name} ::= ${body}`);
    return name;
  }

  /** The same body again is the same rule. */
  rule(hint: string, body: string): string {
    const known = this.shared.get(body);
    if (known !== undefined) return known;
    const name = this.define(this.fresh(hint), body);
    this.shared.set(body, name);
    return name;
  }

  /** The grammar's text; `root` is its first rule. */
  text(root: string): string {
    return `root ::= ${root}\n${this.lines.join("\n")}\n`;
  }
}

export function literal(text: string): string {
  const wrong = Array.from(text).find((c) => c !== markStart && isControl(c.codePointAt(0)!));
  if (wrong !== undefined) {
    const code = wrong.codePointAt(0)!.toString(16).padStart(4, "0").toUpperCase();
    throw new UserError(`The control character U+${code} cannot be part of an answer's fixed text.`, {
      code: "unsupported_character",
      param: "format",
    });
  }
  return `"${Array.from(text, (c) => spelled(c.codePointAt(0)!, '"\\')).join("")}"`;
}

/**
 * A set as a bracket expression, or an alternative of them; undefined where it is empty. xgrammar's brackets know ASCII
 * only: negated they hold all other characters, else none. So of these a set must have all, or few enough to list.
 */
export function charClass(set: CharSet): string | undefined {
  const kept = textual(set);
  const inside = within(kept, 0, 0x7f);
  const beyond = within(kept, 0x80, lastCodePoint);
  const count = beyond.reduce((sum, [from, to]) => sum + to - from + 1, 0);
  if (count === allBeyond) return `[^${brackets(within(complement(inside), 0, 0x7f))}]`;
  if (count > mostListed) {
    throw new UserError(
      `A character class has ${count} characters beyond ASCII; supported are all of them, or up to ${mostListed}.`,
      { code: "unsupported_pattern", param: "format" },
    );
  }
  const ways = inside.length === 0 ? [] : [`[${brackets(inside)}]`];
  for (const [from, to] of beyond) {
    for (let code = from; code <= to; code++) ways.push(literal(String.fromCodePoint(code)));
  }
  if (ways.length === 0) return undefined;
  return ways.length === 1 ? ways[0] : `(${ways.join(" | ")})`;
}

const mostListed = 1000;
/** Characters beyond ASCII: without halves of surrogate pairs. */
const allBeyond = lastCodePoint + 1 - 0x80 - 0x800;

function within(set: CharSet, low: number, high: number): CharSet {
  return set.flatMap(([from, to]): [number, number][] =>
    to < low || from > high ? [] : [[Math.max(from, low), Math.min(to, high)]],
  );
}

/** Ranges of control characters last: no digit follows them there. */
function brackets(set: CharSet): string {
  const last = (range: CharSet[number]) => Number(isControl(range[1]));
  const sorted = [...set].sort((a, b) => last(a) - last(b));
  const spell = (code: number) => spelled(code, '[]\\^-"');
  return sorted.map(([from, to]) => (from === to ? spell(from) : `${spell(from)}-${spell(to)}`)).join("");
}

export function union(...sets: readonly CharSet[]): CharSet {
  const sorted = sets.flat().sort((a, b) => a[0] - b[0]);
  const out: [number, number][] = [];
  for (const [from, to] of sorted) {
    const last = out.at(-1);
    if (last && from <= last[1] + 1) last[1] = Math.max(last[1], to);
    else out.push([from, to]);
  }
  return out;
}

export function complement(set: CharSet): CharSet {
  const out: [number, number][] = [];
  let at = 0;
  for (const [from, to] of union(set)) {
    if (from > at) out.push([at, from - 1]);
    at = to + 1;
  }
  if (at <= lastCodePoint) out.push([at, lastCodePoint]);
  return out;
}

export function without(set: CharSet, minus: CharSet): CharSet {
  return complement(union(complement(set), minus));
}

/** What no text may hold: the beginning of a control token, and halves of characters. */
const never: CharSet = [
  [1, 1],
  [0xd800, 0xdfff],
];

/** What of a set may be text. */
export function textual(set: CharSet): CharSet {
  return without(set, never);
}

const markStart = "\u0001";
const markEnd = "~";
/** A digit of an id is a letter from g on: see spelled(). */
const firstDigit = 103;

/** A control token within a grammar, and within the text that the router reads: U+0001, its id in letters, "~". */
export function controlSpelling(id: number): string {
  const digits = Array.from(String(id), (digit) => String.fromCharCode(firstDigit + Number(digit)));
  return markStart + digits.join("") + markEnd;
}

/** A text with such spellings as pieces of text and ids; undefined where one is cut off. */
export function splitControls(text: string): (string | number)[] | undefined {
  const [first, ...rest] = text.split(markStart);
  const out: (string | number)[] = first === "" ? [] : [first];
  for (const part of rest) {
    const end = part.indexOf(markEnd);
    if (end < 0) return undefined;
    out.push(Number(Array.from(part.slice(0, end), (c) => c.charCodeAt(0) - firstDigit).join("")));
    if (end + 1 < part.length) out.push(part.slice(end + 1));
  }
  return out;
}

/**
 * A character within quotes or brackets. xgrammar takes as many hex digits after \u as there are: what follows an escaped
 * control character must be no such digit.
 */
function spelled(code: number, special: string): string {
  const short = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
  if (short !== undefined) return short;
  const c = String.fromCodePoint(code);
  if (isControl(code)) return `\\u${code.toString(16).padStart(4, "0")}`;
  return special.includes(c) ? `\\${c}` : c;
}

function isControl(code: number): boolean {
  return (code < 0x20 && code !== 9 && code !== 10 && code !== 13) || code === 0x7f;
}
