// Owns: JSON Schema as grammar. Every text of the grammar is JSON that satisfies the schema; not every such text is in the
// grammar: white space is fixed, properties come in the schema's order, and objects that name their properties have no
// others unless the schema allows them by name. A keyword whose promise a grammar cannot keep is refused by name;
// annotations (title, description, default, examples, unknown formats) are read over, as JSON Schema has it.
import { UserError } from "../../base/errors.js";
import { literal, type Rules } from "./ebnf.js";
import {
  anyArray,
  anyInteger,
  anyNumber,
  anyObject,
  anyString,
  anyValue,
  boundedString,
  exactly,
  otherKey,
  spell,
} from "./json.js";
import { patternBody } from "./pattern.js";
import { integerRange, numberRange } from "./range.js";
import { repeated } from "./repeat.js";

export interface SchemaOptions {
  /** The field of the request that holds the schema: for errors. */
  readonly param?: string;
  /** false: objects may have properties that they do not name, unless the schema forbids it. */
  readonly strict?: boolean;
}

const largestSchema = 128 * 1024;
const deepest = 64;
const largestCount = 1000;
const longestText = 4000;

type Schema = Readonly<Record<string, unknown>>;

const annotations = new Set([
  ...["title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$anchor", "deprecated"],
  ...["readOnly", "writeOnly", "contentEncoding", "contentMediaType", "nullable", "$defs", "definitions", "format"],
  ...["strict", "name", "discriminator", "xml", "externalDocs", "enumNames", "x-order"],
]);

const understood = new Set([
  ...["type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"],
  ...["properties", "required", "additionalProperties", "unevaluatedProperties", "minProperties", "maxProperties"],
  ...["items", "prefixItems", "minItems", "maxItems", "uniqueItems", "additionalItems", "unevaluatedItems"],
  ...["minLength", "maxLength", "pattern"],
  ...["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
]);

/** The keywords that only make sense of one type: where no type is said, they say it. */
const byType: Readonly<Record<string, readonly string[]>> = {
  object: ["properties", "required", "additionalProperties", "minProperties", "maxProperties"],
  array: ["items", "prefixItems", "minItems", "maxItems"],
  string: ["minLength", "maxLength", "pattern"],
  number: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
};
const allTypes = ["object", "array", "string", "number", "boolean", "null"];

const hour = "([01]\\d|2[0-3])";
const date = "\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])";
const time = `${hour}:[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]${hour}:[0-5]\\d)`;
const octet = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const host = "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?){0,5}";
const formats: Readonly<Record<string, string>> = {
  // Days after the 28th depend on the month.
  date,
  time,
  "date-time": `${date}T${time}`,
  uuid: "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
  ipv4: `${octet}\\.${octet}\\.${octet}\\.${octet}`,
  hostname: host,
  email: `[A-Za-z0-9_+-]{1,30}(\\.[A-Za-z0-9_+-]{1,30}){0,3}@${host}\\.[A-Za-z]{2,10}`,
  uri: `https?://${host}(/[A-Za-z0-9._~-]{0,60}){0,8}`,
};

/** Adds the schema to the rules; the name of the rule that stands for it. */
export function schemaRule(rules: Rules, schema: object | boolean, options: SchemaOptions = {}): string {
  const param = options.param ?? "format";
  let text: string | undefined;
  try {
    text = JSON.stringify(schema);
  } catch {
    text = undefined;
  }
  if (text === undefined) throw new UserError("The schema is no JSON value.", { code: "invalid_schema", param });
  if (text.length > largestSchema) {
    throw new UserError(`The schema has ${text.length} characters; at most ${largestSchema} are taken.`, {
      code: "schema_too_large",
      param,
    });
  }
  return new Compiler(rules, JSON.parse(text) as Schema, param, options.strict !== false).root();
}

class Compiler {
  /** By pointer: rules may refer to each other and to themselves. */
  private readonly refs = new Map<string, string>();

  constructor(
    private readonly rules: Rules,
    private readonly document: Schema,
    private readonly param: string,
    private readonly closed: boolean,
  ) {}

  root(): string {
    return this.ref("#", "#", 0);
  }

  /** A rule's name or body. path: where in the document, for errors. */
  private value(schema: unknown, path: string, depth: number): string {
    if (schema === true) return anyValue(this.rules);
    if (schema === false) this.refuse(path, "allows nothing (false)", "unsatisfiable_schema");
    if (typeof schema !== "object" || schema === null || Array.isArray(schema)) {
      this.refuse(path, "must be an object", "invalid_schema");
    }
    if (depth > deepest) this.refuse(path, `is nested more than ${deepest} deep`, "schema_too_large");
    const s = schema as Schema;
    for (const key of Object.keys(s)) {
      if (!annotations.has(key) && !understood.has(key)) {
        this.refuse(path, `uses ${JSON.stringify(key)}, which is not supported`, "unsupported_schema");
      }
    }
    if (s.$ref !== undefined) return this.reference(s, path, depth);
    if (s.allOf !== undefined) return this.value(this.merged(s, path), path, depth + 1);
    for (const key of ["anyOf", "oneOf"]) if (s[key] !== undefined) return this.alternatives(s, key, path, depth);
    if (s.const !== undefined) return this.fixed(s, [s.const], path);
    if (s.enum !== undefined) return this.fixed(s, this.list(s.enum, `${path}/enum`), path);
    const types = this.types(s, path);
    const ways = types.map((type) => this.typed(s, type, path, depth));
    return ways.length === 1 ? ways[0] : this.rules.rule("types", ways.join(" | "));
  }

  private typed(s: Schema, type: string, path: string, depth: number): string {
    switch (type) {
      case "object":
        return this.object(s, path, depth);
      case "array":
        return this.array(s, path, depth);
      case "string":
        return this.string(s, path);
      case "integer":
      case "number":
        return this.number(s, type, path);
      case "boolean":
        return this.rules.rule("json_boolean", '"true" | "false"');
      case "null":
        return this.rules.rule("json_null", '"null"');
      default:
        return this.refuse(path, `has the unknown type ${JSON.stringify(type)}`, "invalid_schema");
    }
  }

  private types(s: Schema, path: string): readonly string[] {
    if (s.type !== undefined) {
      const types = Array.isArray(s.type) ? (s.type as unknown[]) : [s.type];
      if (types.length === 0) this.refuse(path, "has an empty list of types", "invalid_schema");
      const nullable = s.nullable === true && !types.includes("null") ? ["null"] : [];
      return [...new Set([...types.map(String), ...nullable])];
    }
    const said = Object.entries(byType).filter(([, keys]) => keys.some((key) => s[key] !== undefined));
    return said.length > 0 ? said.map(([type]) => type) : allTypes;
  }

  // ---- references and combinations

  private reference(s: Schema, path: string, depth: number): string {
    const pointer = this.local(s.$ref, path);
    const beside = Object.keys(s).filter((key) => key !== "$ref" && !annotations.has(key));
    if (beside.length > 0) this.refuse(path, `has ${beside.join(", ")} beside $ref, which is not supported`);
    return this.ref(pointer, path, depth + 1);
  }

  private local(pointer: unknown, path: string): string {
    if (typeof pointer === "string" && /^#(\/|$)/.test(pointer)) return pointer;
    const what = `refers to ${JSON.stringify(pointer)}; only references within the schema (#/…) are supported`;
    return this.refuse(path, what);
  }

  private ref(pointer: string, path: string, depth: number): string {
    const known = this.refs.get(pointer);
    if (known !== undefined) return known;
    let target = this.resolve(pointer, path);
    const seen = new Set([pointer]);
    // A reference to a reference: followed here, so that a circle of nothing but references is seen.
    while (typeof target === "object" && target !== null && typeof (target as Schema).$ref === "string") {
      const next = this.local((target as Schema).$ref, path);
      if (seen.has(next)) this.refuse(path, `refers to itself without end (${next})`, "invalid_schema");
      seen.add(next);
      if (Object.keys(target).some((key) => key !== "$ref" && !annotations.has(key))) break;
      target = this.resolve(next, path);
    }
    const name = this.rules.fresh(pointer === "#" ? "schema" : (pointer.split("/").at(-1) ?? "ref"));
    this.refs.set(pointer, name);
    return this.rules.define(name, this.value(target, pointer, depth));
  }

  private resolve(pointer: string, path: string): unknown {
    let at: unknown = this.document;
    for (const part of pointer.split("/").slice(1)) {
      const key = decodeURIComponent(part).replace(/~1/g, "/").replace(/~0/g, "~");
      at = typeof at === "object" && at !== null && Object.hasOwn(at, key) ? (at as Schema)[key] : undefined;
    }
    if (at === undefined) this.refuse(path, `refers to ${pointer}, which is not there`, "invalid_schema");
    return at;
  }

  private alternatives(s: Schema, key: string, path: string, depth: number): string {
    const { [key]: branches, ...rest } = s;
    const list = this.list(branches, `${path}/${key}`);
    const base = Object.keys(rest).some((name) => !annotations.has(name)) ? rest : undefined;
    const whole = list.map((branch, i) =>
      base === undefined ? branch : this.combined([base, this.followed(branch, path)], `${path}/${key}/${i}`),
    );
    if (key === "oneOf") this.checkApart(whole, path);
    return this.rules.rule(
      key,
      whole.map((branch, i) => this.value(branch, `${path}/${key}/${i}`, depth + 1)).join(" | "),
    );
  }

  /** oneOf is anyOf where no value can satisfy two of the branches; where that is not plain it is refused. */
  private checkApart(branches: readonly unknown[], path: string): void {
    const seen = branches.map((branch) => this.followed(branch, path));
    for (let i = 0; i < seen.length; i++) {
      for (let j = 0; j < i; j++) {
        if (!this.apart(seen[i], seen[j], path)) {
          this.refuse(path, `has oneOf whose branches ${j} and ${i} may both hold; use anyOf`);
        }
      }
    }
  }

  private apart(a: Schema, b: Schema, path: string): boolean {
    const values = (s: Schema) => (s.const !== undefined ? [s.const] : Array.isArray(s.enum) ? s.enum : undefined);
    const [fixedA, fixedB] = [values(a), values(b)];
    if (fixedA && fixedB) return !fixedA.some((value) => fixedB.some((other) => spell(other) === spell(value)));
    if ("anyOf" in a || "anyOf" in b || "oneOf" in a || "oneOf" in b || "allOf" in a || "allOf" in b) return false;
    const typesOf = (s: Schema, fixed: unknown[] | undefined) => (fixed ? fixed.map(typeOf) : this.types(s, path));
    const wide = (types: readonly string[]) => new Set(types.map((type) => (type === "integer" ? "number" : type)));
    const [typesA, typesB] = [wide(typesOf(a, fixedA)), wide(typesOf(b, fixedB))];
    const common = [...typesA].filter((type) => typesB.has(type));
    if (common.length === 0) return true;
    if (common.length > 1 || common[0] !== "object") return false;
    const required = (s: Schema) => (Array.isArray(s.required) ? s.required : []) as string[];
    return required(a)
      .filter((name) => required(b).includes(name))
      .some((name) => {
        const inner = [a, b].map((s) => values(((s.properties as Schema | undefined)?.[name] ?? {}) as Schema));
        return inner[0] && inner[1] && !inner[0].some((value) => inner[1]!.some((o) => spell(o) === spell(value)));
      });
  }

  private followed(branch: unknown, path: string): Schema {
    let at = branch;
    for (
      let i = 0;
      i < deepest && typeof at === "object" && at !== null && typeof (at as Schema).$ref === "string";
      i++
    ) {
      at = this.resolve(this.local((at as Schema).$ref, path), path);
    }
    if (typeof at !== "object" || at === null || Array.isArray(at)) {
      this.refuse(path, "has an alternative that is no object", "invalid_schema");
    }
    return at as Schema;
  }

  private merged(s: Schema, path: string): Schema {
    const { allOf, ...rest } = s;
    const parts = this.list(allOf, `${path}/allOf`).map((part) => this.followed(part, path));
    return this.combined([rest, ...parts], `${path}/allOf`);
  }

  /** One schema that asks for all of them. Properties are joined; any other keyword may be said once, or twice alike. */
  private combined(parts: readonly Schema[], path: string): Schema {
    const out: Record<string, unknown> = {};
    for (const part of parts) {
      for (const [key, value] of Object.entries(part)) {
        const before = out[key];
        if (before === undefined || annotations.has(key)) out[key] = value;
        else if (key === "properties") out[key] = this.joined(before as Schema, value as Schema, path);
        else if (key === "required") out[key] = [...new Set([...(before as string[]), ...(value as string[])])];
        else if (JSON.stringify(before) !== JSON.stringify(value)) {
          this.refuse(path, `combines two different ${JSON.stringify(key)}, which is not supported`);
        }
      }
    }
    return out;
  }

  private joined(a: Schema, b: Schema, path: string): Schema {
    for (const key of Object.keys(b)) {
      if (Object.hasOwn(a, key) && JSON.stringify(a[key]) !== JSON.stringify(b[key])) {
        this.refuse(path, `combines two different schemas of ${JSON.stringify(key)}, which is not supported`);
      }
    }
    return { ...a, ...b };
  }

  /** const and enum; what else the schema says of the value must allow it, as far as its type goes. */
  private fixed(s: Schema, values: readonly unknown[], path: string): string {
    const types = s.type === undefined ? undefined : this.types(s, path);
    const fits = values.filter((value) => {
      const type = typeOf(value);
      return types === undefined || types.includes(type) || (type === "integer" && types.includes("number"));
    });
    if (fits.length === 0) this.refuse(path, "has no value of its type", "unsatisfiable_schema");
    if (fits.length > largestCount) this.refuse(path, `lists more than ${largestCount} values`, "schema_too_large");
    const beside = Object.keys(s).filter((key) => !annotations.has(key) && !["type", "const", "enum"].includes(key));
    if (beside.length > 0) this.refuse(path, `has ${beside.join(", ")} beside fixed values, which is not supported`);
    return this.rules.rule("values", exactly(fits));
  }

  // ---- objects and arrays

  private object(s: Schema, path: string, depth: number): string {
    for (const key of ["minProperties", "maxProperties"]) {
      if (s[key] !== undefined) this.refuse(path, `uses ${JSON.stringify(key)}, which is not supported`);
    }
    const properties = this.record(s.properties ?? {}, `${path}/properties`);
    const names = Object.keys(properties);
    const required = new Set(this.list(s.required ?? [], `${path}/required`, true) as string[]);
    const more = s.additionalProperties ?? s.unevaluatedProperties;
    const extra = more === undefined ? (names.length === 0 || !this.closed ? true : undefined) : more;
    const missing = [...required].filter((name) => !names.includes(name));
    if (missing.length > 0) {
      if (extra === undefined || extra === false) {
        this.refuse(path, `requires ${JSON.stringify(missing[0])}, which it does not allow`, "unsatisfiable_schema");
      }
      return this.object(
        { ...s, properties: { ...properties, ...Object.fromEntries(missing.map((n) => [n, extra])) } },
        path,
        depth,
      );
    }
    if (names.length === 0 && extra === true) return anyObject(this.rules);
    const pairs = names.map((name) => {
      const value = this.value(properties[name], `${path}/properties/${name}`, depth + 1);
      return `${literal(`${JSON.stringify(name)}: `)} ${value}`;
    });
    const pair =
      extra === undefined || extra === false
        ? undefined
        : `${otherKey(this.rules, names)} ": " ${this.value(extra, `${path}/additionalProperties`, depth + 1)}`;
    // after: what may follow a property; first: what may come where none has.
    let after = pair === undefined ? '""' : this.rules.rule("more", `(", " ${pair})*`);
    let first = pair === undefined ? '""' : this.rules.rule("first", `(${pair} ${after})?`);
    for (let i = names.length - 1; i >= 0; i--) {
      const optional = !required.has(names[i]);
      const here = `${pairs[i]} ${after}`;
      const firstHere = optional ? this.rules.rule("first", `${here} | ${first}`) : here;
      after = this.rules.rule("after", optional ? `", " ${here} | ${after}` : `", " ${here}`);
      first = firstHere;
    }
    return this.rules.rule("object", `"{" ${first.includes(" ") ? `(${first})` : first} "}"`);
  }

  private array(s: Schema, path: string, depth: number): string {
    if (s.uniqueItems === true) this.refuse(path, 'uses "uniqueItems", which is not supported');
    const tuple = Array.isArray(s.items) ? s.items : this.list(s.prefixItems ?? [], `${path}/prefixItems`);
    const rest = Array.isArray(s.items) ? s.additionalItems : (s.items ?? s.unevaluatedItems);
    const min = this.count(s.minItems ?? 0, `${path}/minItems`);
    const max = s.maxItems === undefined ? Number.POSITIVE_INFINITY : this.count(s.maxItems, `${path}/maxItems`);
    if (max < min) this.refuse(path, "has maxItems below minItems", "unsatisfiable_schema");
    if (tuple.length === 0 && rest === undefined && min === 0 && max === Number.POSITIVE_INFINITY)
      return anyArray(this.rules);
    const parts = tuple.map((item, i) => this.value(item, `${path}/prefixItems/${i}`, depth + 1));
    const open = rest !== false && (rest !== undefined || parts.length === 0 || !this.closed);
    if (!open && min > parts.length) this.refuse(path, "has minItems above its items", "unsatisfiable_schema");
    const item = open ? this.value(rest ?? true, `${path}/items`, depth + 1) : undefined;
    // From the last position to the first: what may stand from here on, with and without an item before.
    const used = parts.slice(0, max);
    const left = max - used.length;
    const least = Math.max(0, min - used.length);
    const more = (from: number, to: number) => repeated(this.rules, `(", " ${item})`, from, to);
    let after = item === undefined || left === 0 ? '""' : more(least, left);
    if (used.length === 0) {
      const first = item === undefined || max === 0 ? '""' : `${item} ${more(Math.max(0, min - 1), max - 1)}`;
      return this.rules.rule("array", min === 0 ? `"[" (${first})? "]"` : `"[" ${first} "]"`);
    }
    for (let i = used.length - 1; i > 0; i--) {
      const here = `", " ${used[i]} ${after}`;
      after = min > i ? here : `(${here})?`;
    }
    const first = `${used[0]} ${after}`;
    return this.rules.rule("array", min > 0 ? `"[" ${first} "]"` : `"[" (${first})? "]"`);
  }

  // ---- strings and numbers

  private string(s: Schema, path: string): string {
    const min = this.count(s.minLength ?? 0, `${path}/minLength`, longestText);
    const max = s.maxLength === undefined ? Number.POSITIVE_INFINITY : this.count(s.maxLength, `${path}/maxLength`, -1);
    if (max < min) this.refuse(path, "has maxLength below minLength", "unsatisfiable_schema");
    const bounded = min > 0 || max !== Number.POSITIVE_INFINITY;
    if (typeof s.pattern === "string") {
      if (bounded) this.refuse(path, "has both a pattern and a length; write the length into the pattern");
      const body = patternBody(this.rules, s.pattern, { json: true, anywhere: true, param: this.param });
      return this.rules.rule("pattern", `"\\"" ${body} "\\""`);
    }
    if (s.pattern !== undefined) this.refuse(path, "has a pattern that is no text", "invalid_schema");
    const known = typeof s.format === "string" && Object.hasOwn(formats, s.format) ? formats[s.format] : undefined;
    if (known !== undefined && !bounded)
      return this.rules.rule("format", `"\\"" ${patternBody(this.rules, known, { json: true })} "\\""`);
    if (known !== undefined) this.refuse(path, "has both a format and a length, which is not supported");
    if (!bounded) return anyString(this.rules);
    // A bound that no answer comes near is none: its grammar would be large for nothing.
    return boundedString(this.rules, min, max > longestText ? Number.POSITIVE_INFINITY : max);
  }

  private number(s: Schema, type: string, path: string): string {
    const whole = type === "integer" || s.multipleOf === 1;
    if (s.multipleOf !== undefined && s.multipleOf !== 1)
      this.refuse(path, 'uses "multipleOf", which is not supported');
    const bound = (key: string): number | undefined => {
      const value = s[key];
      if (value === undefined || (typeof value === "number" && Number.isFinite(value))) return value;
      return this.refuse(path, `has a ${key} that is no number`, "invalid_schema");
    };
    let min = bound("minimum") ?? Number.NEGATIVE_INFINITY;
    let max = bound("maximum") ?? Number.POSITIVE_INFINITY;
    const above = bound("exclusiveMinimum");
    const below = bound("exclusiveMaximum");
    if (whole) {
      if (above !== undefined) min = Math.max(min, Math.floor(above) + 1);
      if (below !== undefined) max = Math.min(max, Math.ceil(below) - 1);
    } else {
      // The next representable decimal is close enough to the edge, and inside.
      const step = 1e-6;
      if (above !== undefined) min = Math.max(min, Number((above + step).toFixed(6)));
      if (below !== undefined) max = Math.min(max, Number((below - step).toFixed(6)));
    }
    if (min === Number.NEGATIVE_INFINITY && max === Number.POSITIVE_INFINITY) {
      return whole ? anyInteger(this.rules) : anyNumber(this.rules);
    }
    const where = `${this.param}: ${path}`;
    return whole ? integerRange(this.rules, { min, max }, where) : numberRange(this.rules, { min, max }, where);
  }

  // ---- reading

  private list(value: unknown, path: string, mayBeEmpty = false): readonly unknown[] {
    if (!Array.isArray(value)) return this.refuse(path, "must be a list", "invalid_schema");
    const optional = mayBeEmpty || path.endsWith("/prefixItems");
    if (value.length === 0 && !optional) this.refuse(path, "must not be empty", "invalid_schema");
    return value;
  }

  private record(value: unknown, path: string): Schema {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      this.refuse(path, "must be an object", "invalid_schema");
    }
    return value as Schema;
  }

  private count(value: unknown, path: string, most = largestCount): number {
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0) {
      this.refuse(path, "must be a whole number", "invalid_schema");
    }
    if (most >= 0 && (value as number) > most) this.refuse(path, `may be at most ${most}`, "schema_too_large");
    return value as number;
  }

  private refuse(path: string, what: string, code = "unsupported_schema"): never {
    throw new UserError(`The schema at ${path} ${what}.`, { code, param: this.param });
  }
}

function typeOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "number") return Number.isInteger(value) ? "integer" : "number";
  return typeof value;
}
