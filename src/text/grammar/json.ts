// Owns: JSON as grammar: strings, numbers, any value. One spelling of white space (", " and ": ", as most training data has
// it), so that an answer cannot wander off into blanks, and digits are bounded for the same reason.
import { charClass, literal, type Rules, textual } from "./ebnf.js";

/** What a JSON string holds unescaped. */
export const plainStringSet = textual([
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0x10ffff],
]);

/** Characters that JSON has a short escape for. */
const shortEscapes = new Map<number, string>([
  [0x22, '\\"'],
  [0x5c, "\\\\"],
  [0x08, "\\b"],
  [0x0c, "\\f"],
  [0x0a, "\\n"],
  [0x0d, "\\r"],
  [0x09, "\\t"],
]);

/** A character that must be escaped, as it is spelled in a JSON string. */
export function escaped(code: number): string {
  return shortEscapes.get(code) ?? `\\u${code.toString(16).padStart(4, "0")}`;
}

/** Halves of surrogate pairs are left out: an escaped pair would be one character that counts as two. */
export function stringChar(rules: Rules): string {
  return rules.rule("json_char", `${charClass(plainStringSet)} | "\\\\" ${escapeRule(rules)}`);
}

function escapeRule(rules: Rules): string {
  const hex = "[0-9a-fA-F]";
  const unicode = `"u" ([0-9a-cA-Ce-fE-F] ${hex} ${hex} ${hex} | [dD] [0-7] ${hex} ${hex})`;
  return rules.rule("json_escape", `[\\"\\\\/bfnrt] | ${unicode}`);
}

export function anyString(rules: Rules): string {
  return rules.rule("json_string", `"\\"" ${stringRest(rules)}`);
}

/**
 * Any string from within, to its closing quote. One rule that ends with itself: the compiler knows beforehand which tokens
 * stay in a rule, and looks anew, at every step, at those that leave it. Characters as a rule of their own cost 190 ms a
 * mask where this costs 0.05.
 */
export function stringRest(rules: Rules): string {
  const known = restNames.get(rules);
  if (known !== undefined) return known;
  const name = rules.fresh("json_rest");
  restNames.set(rules, name);
  return rules.define(name, oneMore(rules, name, true));
}

const restNames = new WeakMap<Rules, string>();

/**
 * Characters that are counted by a rule each; longer strings are made of blocks of so many, which share their rules.
 * Counting them by a repetition costs hundreds of milliseconds a mask, as stringRest says.
 */
const block = 32;

/** A string of min to max characters, quotes included. */
export function boundedString(rules: Rules, min: number, max: number): string {
  return rules.rule("text", `"\\"" ${atLeast(rules, min, max)}`);
}

/** min to max characters and the closing quote. */
function atLeast(rules: Rules, min: number, max: number): string {
  if (min > block) return `${exactlyBlock(rules)} ${rules.rule("text", atLeast(rules, min - block, max - block))}`;
  // From the last character to the first: what may stand when so many have been.
  let rest = Number.isFinite(max) ? upTo(rules, max - min) : stringRest(rules);
  for (let count = min; count > 0; count--) rest = rules.rule("text", oneMore(rules, rest, false));
  return rest;
}

/** At most so many characters and the closing quote. */
function upTo(rules: Rules, most: number): string {
  if (most > block) {
    const more = `${exactlyBlock(rules)} ${upTo(rules, most - block)}`;
    return rules.rule("text", `${upTo(rules, block - 1)} | ${more}`);
  }
  let rest = rules.rule("quote", '"\\""');
  for (let count = 0; count < most; count++) rest = rules.rule("text", oneMore(rules, rest, true));
  return rest;
}

/** A block of characters, no quotes. */
function exactlyBlock(rules: Rules): string {
  let rest = '""';
  for (let count = 0; count < block; count++) rest = rules.rule("block", oneMore(rules, rest, false));
  return rest;
}

/** A character and what follows it, or the closing quote where that may come. */
function oneMore(rules: Rules, rest: string, mayEnd: boolean): string {
  const more = `${charClass(plainStringSet)} ${rest} | "\\\\" ${escapeRule(rules)} ${rest}`;
  return mayEnd ? `"\\"" | ${more}` : more;
}

/** At most 15 digits: exact in double precision. */
export function anyInteger(rules: Rules): string {
  return rules.rule("json_integer", `"-"? ("0" | [1-9] [0-9]{0,14})`);
}

export function anyNumber(rules: Rules): string {
  return rules.rule("json_number", `"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [+\\-]? [0-9]{1,2})?`);
}

export function anyObject(rules: Rules): string {
  const value = anyValue(rules);
  const pair = rules.rule("json_pair", `${anyString(rules)} ": " ${value}`);
  return rules.rule("json_object", `"{" (${pair} (", " ${pair})*)? "}"`);
}

export function anyArray(rules: Rules): string {
  const value = anyValue(rules);
  return rules.rule("json_array", `"[" (${value} (", " ${value})*)? "]"`);
}

const anyNames = new WeakMap<Rules, string>();

export function anyValue(rules: Rules): string {
  const known = anyNames.get(rules);
  if (known !== undefined) return known;
  const name = rules.fresh("json_value");
  anyNames.set(rules, name);
  const kinds = [anyString(rules), anyNumber(rules), anyObject(rules), anyArray(rules)];
  return rules.define(name, [...kinds, '"true"', '"false"', '"null"'].join(" | "));
}

/** A value with the white space of these grammars. */
export function spell(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spell).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    const pairs = Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}: ${spell(inner)}`);
    return `{${pairs.join(", ")}}`;
  }
  return JSON.stringify(value);
}

export function exactly(values: readonly unknown[]): string {
  return values.map((value) => literal(spell(value))).join(" | ");
}

/** Any key but these, quotes included: escapes only after it differs, so that none can spell one of them. */
export function otherKey(rules: Rules, taken: readonly string[]): string {
  if (taken.length === 0) return anyString(rules);
  const rest = stringRest(rules);
  const walk = (keys: readonly string[]): string => {
    const next = new Map<number, string[]>();
    for (const key of keys) {
      const code = key.codePointAt(0);
      if (code === undefined) continue;
      const tail = key.slice(String.fromCodePoint(code).length);
      next.set(code, [...(next.get(code) ?? []), tail]);
    }
    const ways = keys.includes("") ? [] : ['"\\""'];
    const others = charClass(withoutCodes(next.keys()));
    if (others !== undefined) ways.push(`${others} ${rest}`);
    for (const [code, tails] of next) {
      // A name with characters that JSON escapes is left to the others: it cannot come unescaped.
      if (code < 0x20 || code === 0x22 || code === 0x5c) continue;
      ways.push(`${literal(String.fromCodePoint(code))} ${rules.rule("key", walk(tails))}`);
    }
    return ways.join(" | ");
  };
  return rules.rule("other_key", `"\\"" (${walk(taken)})`);
}

function withoutCodes(codes: Iterable<number>) {
  let set = plainStringSet;
  for (const code of codes) set = set.flatMap(([from, to]): [number, number][] => cut(from, to, code));
  return set;
}

function cut(from: number, to: number, code: number): [number, number][] {
  if (code < from || code > to) return [[from, to]];
  const parts: [number, number][] = [
    [from, code - 1],
    [code + 1, to],
  ];
  return parts.filter(([a, b]) => a <= b);
}
