// Owns: what Python's strings and Jinja's filters do where @huggingface/jinja does something else or nothing: pure
// functions on plain values. A filter that is not concerned returns undefined and leaves the value to the interpreter.
import type { RuntimeValue } from "./jinja.js";

type StringMethod = (text: string, ...args: unknown[]) => unknown;
/** Undefined: not ours. */
type Filter = (operand: RuntimeValue, args: readonly unknown[]) => { value: unknown } | undefined;

/** Python's str.strip without characters strips what Python calls white space. */
const pythonSpace = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const spaceStart = new RegExp(`^[${pythonSpace}]+`);
const spaceEnd = new RegExp(`[${pythonSpace}]+$`);

function stripStart(text: string, characters: unknown): string {
  if (typeof characters !== "string") return text.replace(spaceStart, "");
  const set = new Set(characters);
  const all = Array.from(text);
  let at = 0;
  while (at < all.length && set.has(all[at])) at++;
  return all.slice(at).join("");
}

function stripEnd(text: string, characters: unknown): string {
  if (typeof characters !== "string") {
    let end = text.length;
    while (end > 0 && spaceEnd.test(text[end - 1])) end--;
    return text.slice(0, end);
  }
  const set = new Set(characters);
  const all = Array.from(text);
  let end = all.length;
  while (end > 0 && set.has(all[end - 1])) end--;
  return all.slice(0, end).join("");
}

function splitRight(text: string, separator: unknown, most: unknown): string[] {
  if (typeof separator !== "string") return text.split(spaceRun).filter((part) => part !== "");
  const parts = text.split(separator);
  const limit = typeof most === "number" && most >= 0 ? most : parts.length;
  if (parts.length - 1 <= limit) return parts;
  return [parts.slice(0, parts.length - limit).join(separator), ...parts.slice(parts.length - limit)];
}

const lineEnds = "\\r\\n|[\\n-\\r\\x1c-\\x1e\\x85\\u2028\\u2029]";
const lineEnd = new RegExp(lineEnds);
const lastLineEnd = new RegExp(`(?:${lineEnds})$`);

/** str.format with {} and {0}; a format after a colon is not supported and stays as it is. */
function formatted(text: string, values: readonly unknown[]): string {
  let next = 0;
  return text.replace(/\{\{|\}\}|\{(\d*)\}/g, (whole, index: string | undefined) => {
    if (index === undefined) return whole[0];
    return String(values[index === "" ? next++ : Number(index)]);
  });
}

const spaceRun = new RegExp(`[${pythonSpace}]+`);

const capitalize = (text: string) => text.charAt(0).toUpperCase() + text.slice(1).toLowerCase();

export const stringMethods: ReadonlyMap<string, StringMethod> = new Map<string, StringMethod>([
  ["strip", (text, characters) => stripStart(stripEnd(text, characters), characters)],
  ["lstrip", stripStart],
  ["rstrip", stripEnd],
  ["capitalize", capitalize],
  ["rsplit", splitRight],
  ["splitlines", (text) => text.replace(lastLineEnd, "").split(lineEnd)],
  ["format", (text, ...values) => formatted(text, values)],
  ["find", (text, part) => text.indexOf(String(part))],
  ["rfind", (text, part) => text.lastIndexOf(String(part))],
  ["count", (text, part) => text.split(String(part)).length - 1],
  ["removeprefix", (text, part) => (text.startsWith(String(part)) ? text.slice(String(part).length) : text)],
  [
    "removesuffix",
    (text, part) => (part !== "" && text.endsWith(String(part)) ? text.slice(0, -String(part).length) : text),
  ],
  ["join", (text, parts) => (parts as readonly unknown[]).map(String).join(text)],
  ["isdigit", (text) => /^\p{Nd}+$/u.test(text)],
  ["isnumeric", (text) => /^\p{N}+$/u.test(text)],
  ["isalpha", (text) => /^\p{L}+$/u.test(text)],
  ["isalnum", (text) => /^[\p{L}\p{N}]+$/u.test(text)],
  ["isspace", (text) => text !== "" && stripStart(text, undefined) === ""],
  ["isupper", (text) => text !== text.toLowerCase() && text === text.toUpperCase()],
  ["islower", (text) => text !== text.toUpperCase() && text === text.toLowerCase()],
]);

const container = (value: RuntimeValue) => ["ArrayValue", "TupleValue", "ObjectValue"].includes(value.type);

function extreme(sign: number): Filter {
  return (operand) => {
    if (!Array.isArray(operand.value) || operand.value.length === 0) return undefined;
    const values = operand.value.map((v: RuntimeValue) => v.value as number | string);
    return { value: values.reduce((a, b) => ((sign > 0 ? b > a : b < a) ? b : a)) };
  };
}

export const filterMethods: ReadonlyMap<string, Filter> = new Map<string, Filter>([
  ["string", (operand) => (container(operand) ? { value: pythonText(operand) } : undefined)],
  [
    "trim",
    (operand, [characters]) => textFilter(operand, (text) => stripStart(stripEnd(text, characters), characters)),
  ],
  ["capitalize", (operand) => textFilter(operand, capitalize)],
  ["min", extreme(-1)],
  ["max", extreme(1)],
  [
    "sum",
    (operand) =>
      Array.isArray(operand.value) ? { value: operand.value.reduce((a, v) => a + Number(v.value), 0) } : undefined,
  ],
  ["round", (operand, [digits]) => ({ value: roundTo(Number(operand.value), Number(digits ?? 0)) })],
  ["escape", escaped],
  ["e", escaped],
  // None and undefined are empty where a template looks through them.
  ["selectattr", nothing],
  ["rejectattr", nothing],
  [
    "list",
    (operand) =>
      operand.type === "StringValue" ? { value: Array.from(operand.value as string) } : nothing(operand, []),
  ],
]);

function textFilter(operand: RuntimeValue, change: (text: string) => string): { value: unknown } | undefined {
  if (operand.type === "UndefinedValue") return { value: "" };
  if (operand.type === "NullValue") return { value: "None" };
  return operand.type === "StringValue" ? { value: change(operand.value as string) } : undefined;
}

function nothing(operand: RuntimeValue, _args: readonly unknown[]): { value: unknown } | undefined {
  return operand.type === "NullValue" || operand.type === "UndefinedValue" ? { value: [] } : undefined;
}

function escaped(operand: RuntimeValue): { value: unknown } {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;" };
  return { value: pythonText(operand).replace(/[&<>"']/g, (c) => names[c]) };
}

function roundTo(value: number, digits: number): number {
  const scale = 10 ** digits;
  return Math.round(value * scale) / scale;
}

/** Python's str() of a value: containers as their literals. */
export function pythonText(value: RuntimeValue): string {
  return value.type === "StringValue" ? String(value.value) : pythonRepr(value);
}

function pythonRepr(value: RuntimeValue): string {
  if (value.value instanceof Map) {
    const entries = [...value.value].map(([key, v]) => `${quoted(String(key))}: ${pythonRepr(v)}`);
    return `{${entries.join(", ")}}`;
  }
  if (Array.isArray(value.value)) {
    const items = value.value.map(pythonRepr).join(", ");
    if (value.type !== "TupleValue") return `[${items}]`;
    return value.value.length === 1 ? `(${items},)` : `(${items})`;
  }
  switch (value.type) {
    case "StringValue":
      return quoted(String(value.value));
    case "NullValue":
      return "None";
    case "UndefinedValue":
      return "";
    case "BooleanValue":
      return value.value === true ? "True" : "False";
    case "FloatValue":
      return Number.isInteger(value.value) ? `${String(value.value)}.0` : String(value.value);
  }
  return String(value.value);
}

function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const named: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };
  const escaped = text.replace(/[\\\p{Cc}\p{Zl}\p{Zp}]|['"]/gu, (c) => {
    if (c === "'" || c === '"') return c === quote ? `\\${c}` : c;
    const code = c.charCodeAt(0);
    if (c in named) return named[c];
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
  return quote + escaped + quote;
}
