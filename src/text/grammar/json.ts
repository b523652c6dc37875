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
  const hex = "[0-9a-fA-F]";
  const unicode = `"u" ([0-9a-cA-Ce-fE-F] ${hex} ${hex} ${hex} | [dD] [0-7] ${hex} ${hex})`;
  const escapes = rules.rule("json_escape", `[\\"\\\\/bfnrt] | ${unicode}`);
  return rules.rule("json_char", `${charClass(plainStringSet)} | "\\\\" ${escapes}`);
}

export function anyString(rules: Rules): string {
  return rules.rule("json_string", `"\\"" ${stringChar(rules)}* "\\""`);
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
  const rest = rules.rule("key_rest", `${stringChar(rules)}* "\\""`);
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
