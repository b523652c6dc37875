// Owns: structural tags (xgrammar's and vLLM's) as grammar: text between whose tags something is of a form. Both spellings:
// the older list of tags with triggers, and the newer tree of formats. Fixed texts may spell the model's control tokens.
// Refuses by name what is not of text (token formats, other vendors' ways of writing arguments) and what no end bounds.
import { checkDepth } from "../../base/depth.js";
import { UserError } from "../../base/errors.js";
import type { Rules } from "./ebnf.js";
import { foreignRule } from "./foreign.js";
import { patternBody } from "./pattern.js";
import { repeated } from "./repeat.js";
import { schemaRule } from "./schema.js";

/** How fixed text and the marks that end free text are written: control tokens are not spelled as text. */
export interface Spelling {
  /** As a literal. */
  quoted(text: string): string;
  /** How it ends free text. */
  stop(mark: string): StopMark;
  /** As the grammar holds it: to see what begins with what. */
  spelled(text: string): string;
}

/** What free text cannot hold, and what follows it in the mark. */
export interface StopMark {
  readonly head: string;
  readonly rest: string;
}

const deepest = 32;
const mostRepeats = 1000;

type Fields = Readonly<Record<string, unknown>>;

/** What a format is made of beside its type. */
const fieldsOf: Readonly<Record<string, readonly string[]>> = {
  const_string: ["value"],
  json_schema: ["json_schema", "style"],
  any_text: [],
  grammar: ["grammar"],
  regex: ["pattern"],
  sequence: ["elements"],
  or: ["elements"],
  tag: ["begin", "content", "end"],
  triggered_tags: ["triggers", "tags", "at_least_one", "stop_after_first"],
  tags_with_separator: ["tags", "separator", "at_least_one", "stop_after_first"],
  optional: ["content"],
  star: ["content"],
  plus: ["content"],
  repeat: ["content", "min", "max"],
};
const unsupported = /token|dispatch|_parameter|xml/;

/** The tree of a request's structural tag, which may be JSON text, a whole tag or its format alone. Throws UserError. */
export function structuralFormat(given: object | string, param = "format"): object {
  const tag = typeof given === "string" ? parsed(given, param) : given;
  const { type, format, structures, triggers, ...rest } = tag as Fields;
  const beside = Object.keys(rest);
  if (type !== undefined && type !== "structural_tag") return tag;
  if (beside.length > 0) refuse("the structural tag", `has the unknown field ${JSON.stringify(beside[0])}`, param);
  if (format !== undefined && structures === undefined && triggers === undefined)
    return fieldsFrom(format, "format", param);
  if (format !== undefined || !Array.isArray(structures)) {
    refuse("the structural tag", 'must have "format", or the older "structures" and "triggers"', param);
  }
  const tags = (structures as unknown[]).map((one, i) => {
    const { begin, schema, end } = fieldsFrom(one, `structures[${i}]`, param);
    const json_schema = typeof schema === "string" ? parsed(schema, param) : schema;
    return { type: "tag", begin, end, content: { type: "json_schema", json_schema } };
  });
  return { type: "triggered_tags", triggers, tags };
}

/** A rule's name. close: what follows; empty: the answer ends there. */
export function structuralRule(
  rules: Rules,
  given: object | string,
  { spelling, close, param }: { spelling: Spelling; close: string; param: string },
): string {
  const ends = close === "" ? undefined : [close];
  const body = new Writer(rules, spelling, param).write(structuralFormat(given, param), "format", ends, 0);
  return rules.rule("structure", body);
}

/** Every fixed text in it, for the control tokens that they spell. */
export function structuralTexts(given: object | string, param = "format"): string[] {
  const texts: string[] = [];
  const walk = (value: unknown): void => {
    if (typeof value === "string") texts.push(value);
    else if (Array.isArray(value)) value.forEach(walk);
    else if (typeof value === "object" && value !== null) {
      for (const key of textKeys) walk((value as Fields)[key]);
    }
  };
  walk(structuralFormat(given, param));
  return texts;
}

const textKeys = ["value", "begin", "end", "triggers", "separator", "content", "tags", "elements"];

/** Whether a caller's own grammar is in it. */
export function holdsGrammar(given: object | string, param = "format"): boolean {
  const within = (value: unknown): boolean =>
    typeof value === "object" &&
    value !== null &&
    ((value as Fields).type === "grammar" ||
      ["content", "tags", "elements"].some((key) => within((value as Fields)[key])) ||
      (Array.isArray(value) && value.some(within)));
  return within(structuralFormat(given, param));
}

class Writer {
  constructor(
    private readonly rules: Rules,
    private readonly spelling: Spelling,
    private readonly param: string,
  ) {}

  /** A body, with one of `ends` after it; undefined: the answer ends there. */
  write(value: unknown, at: string, ends: readonly string[] | undefined, depth: number): string {
    const { rules, spelling, param } = this;
    if (depth > deepest) this.fail(at, `is nested more than ${deepest} deep`);
    const format = this.known(value, at);
    const end = this.ended(ends);
    switch (format.type) {
      case "const_string":
        return `${spelling.quoted(this.text(format.value, `${at}.value`))} ${end}`;
      case "json_schema":
        return `${schemaRule(rules, this.schema(format, at), { param })} ${end}`;
      case "regex":
        return `(${patternBody(this.rules, this.text(format.pattern, `${at}.pattern`), { param })}) ${end}`;
      case "grammar":
        return `${foreignRule(rules, this.text(format.grammar, `${at}.grammar`), param)} ${end}`;
      case "any_text":
        return this.free("", ends, false);
      case "sequence":
        return this.sequence(format, at, ends, depth);
      case "or": {
        const ways = this.list(format.elements, `${at}.elements`);
        return `(${ways.map((way, i) => this.write(way, `${at}.elements[${i}]`, ends, depth + 1)).join(" | ")})`;
      }
      case "tag":
        return this.tag(format, "", at, ends, depth);
      case "triggered_tags":
        return this.triggered(format, at, ends, depth);
      case "tags_with_separator":
        return `${this.separated(format, at, depth)} ${end}`;
      default:
        return `${this.repeated(format, at, depth)} ${end}`;
    }
  }

  private known(value: unknown, at: string): Fields {
    const format = fieldsFrom(value, at, this.param);
    const { type, ...rest } = format;
    const fields = typeof type === "string" && Object.hasOwn(fieldsOf, type) ? fieldsOf[type] : undefined;
    if (fields === undefined) {
      const known = Object.keys(fieldsOf).join(", ");
      const why = typeof type === "string" && unsupported.test(type) ? "is not supported" : "is unknown";
      return this.fail(at, `has a type that ${why}: ${JSON.stringify(type)}; supported are ${known}`);
    }
    const stray = Object.keys(rest).find((key) => !fields.includes(key));
    if (stray !== undefined) this.fail(at, `has ${JSON.stringify(stray)}, which is not supported in ${type as string}`);
    return format;
  }

  private schema({ json_schema, style }: Fields, at: string): object | boolean {
    if (style !== undefined && style !== "json") this.fail(at, `has a style other than "json", which is not supported`);
    if (typeof json_schema === "boolean") return json_schema;
    return fieldsFrom(json_schema, `${at}.json_schema`, this.param);
  }

  private sequence(format: Fields, at: string, ends: readonly string[] | undefined, depth: number): string {
    const parts = this.list(format.elements, `${at}.elements`);
    return parts
      .map((part, i) => {
        const where = `${at}.elements[${i}]`;
        const last = i === parts.length - 1;
        if (!last && this.endless(part))
          this.fail(where, "is free text, which may only be the last of a sequence; put it in a tag");
        return this.write(part, where, last ? ends : [], depth + 1);
      })
      .join(" ");
  }

  /** begun: how much of its beginning has been written. */
  private tag(format: Fields, begun: string, at: string, ends: readonly string[] | undefined, depth: number): string {
    const begin = this.text(format.begin, `${at}.begin`);
    const own = [format.end ?? ""].flat().map((end, i) => this.text(end, `${at}.end[${i}]`, true));
    // Without an end of its own it ends where what holds it does.
    const open = own.every((end) => end === "");
    if (!open && own.includes("") && this.endless(format.content))
      this.fail(at, "has free text that an empty end cannot bound");
    const inner = this.write(format.content, `${at}.content`, open ? ends : own, depth + 1);
    const rest = begin.slice(begun.length);
    const opening = rest === "" ? "" : this.spelling.quoted(rest);
    return `${opening} ${inner} ${open ? "" : this.ended(ends)}`;
  }

  private triggered(format: Fields, at: string, ends: readonly string[] | undefined, depth: number): string {
    const tags = this.tags(format, at);
    const triggers = this.list(format.triggers, `${at}.triggers`).map((one, i) =>
      this.text(one, `${at}.triggers[${i}]`),
    );
    const byTrigger = new Map<string, string[]>();
    const all: string[] = [];
    const idle = new Set(triggers);
    tags.forEach((tag, i) => {
      const where = `${at}.tags[${i}]`;
      const begin = this.text(tag.begin, `${where}.begin`);
      const { spelling } = this;
      const found = triggers.filter((one) => spelling.spelled(begin).startsWith(spelling.spelled(one)));
      if (found.length !== 1) {
        this.fail(
          where,
          `must begin with exactly one of the triggers; ${JSON.stringify(begin)} does with ${found.length}`,
        );
      }
      const { head } = spelling.stop(found[0]);
      const body = this.rules.rule("tag", this.tag(tag, head, where, [], depth + 1));
      byTrigger.set(head, [...(byTrigger.get(head) ?? []), body]);
      idle.delete(found[0]);
      all.push(`${spelling.quoted(head)} ${body}`);
    });
    const [unused] = idle;
    if (unused !== undefined) this.fail(at, `has the trigger ${JSON.stringify(unused)}, with which no tag begins`);
    const first = `(${all.join(" | ")})`;
    const [some, once] = [format.at_least_one === true, format.stop_after_first === true];
    if (some && once) return `${first} ${this.ended(ends)}`;
    const ways = [...byTrigger].map(([trigger, bodies]) => {
      return `(${this.spelling.quoted(trigger)}, ${this.rules.rule("tags", bodies.join(" | "))})`;
    });
    return `${some ? first : ""} ${this.free(ways.join(", "), ends, !once)}`;
  }

  private separated(format: Fields, at: string, depth: number): string {
    const tags = this.tags(format, at);
    const ways = tags.map((tag, i) => this.tag(tag, "", `${at}.tags[${i}]`, [], depth + 1));
    const one = this.rules.rule("tags", ways.join(" | "));
    const separator = this.text(format.separator, `${at}.separator`, true);
    const next = separator === "" ? one : `${this.spelling.quoted(separator)} ${one}`;
    const list = format.stop_after_first === true ? one : `${one} (${next})*`;
    return format.at_least_one === true ? list : `(${list})?`;
  }

  /** Tags that free text or others follow: each must end by itself. */
  private tags(format: Fields, at: string): Fields[] {
    for (const key of ["at_least_one", "stop_after_first"]) {
      if (format[key] !== undefined && typeof format[key] !== "boolean")
        this.fail(`${at}.${key}`, "must be true or false");
    }
    return this.list(format.tags, `${at}.tags`).map((tag, i) => {
      const where = `${at}.tags[${i}]`;
      const one = this.known({ type: "tag", ...fieldsFrom(tag, where, this.param) }, where);
      if (one.type !== "tag") this.fail(where, "must be a tag");
      if (this.endless(one)) this.fail(where, "holds free text and has no end");
      return one;
    });
  }

  private repeated(format: Fields, at: string, depth: number): string {
    if (this.endless(format.content)) this.fail(at, "repeats free text; put it in a tag");
    const inner = this.rules.rule("part", this.write(format.content, `${at}.content`, [], depth + 1));
    if (format.type !== "repeat") return `${inner}${{ optional: "?", star: "*", plus: "+" }[format.type as string]}`;
    const count = (value: unknown, key: string): number => {
      if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= mostRepeats) return value;
      return this.fail(`${at}.${key}`, `must be a whole number up to ${mostRepeats}`);
    };
    const min = count(format.min ?? 0, "min");
    const endless = format.max === undefined || format.max === null || format.max === -1;
    const max = endless ? Number.POSITIVE_INFINITY : count(format.max, "max");
    if (max < min) this.fail(at, "has max below min");
    return repeated(this.rules, inner, min, max);
  }

  /** Text in which `tags` (a dispatch's) may come, to the end. */
  private free(tags: string, ends: readonly string[] | undefined, again: boolean): string {
    const stops = (ends ?? []).map((end) => this.spelling.stop(end));
    const rest = stops.find((stop) => stop.rest !== "")?.rest ?? "";
    if (rest !== "" && stops.length > 1) {
      refuse("free text", "has several ends, of which one goes on after a special token", this.param);
    }
    const marks = stops.map(({ head }) => this.spelling.quoted(head)).join(", ");
    const parts = [
      ...(tags === "" ? [] : [tags]),
      `stop_eos=${ends === undefined}`,
      `stop_str=(${marks})`,
      `loop_after_dispatch=${tags !== "" && again}`,
    ];
    const text = this.rules.rule("free", `TagDispatch(${parts.join(", ")})`);
    return rest === "" ? text : `${text} ${this.spelling.quoted(rest)}`;
  }

  /** Whether only an end bounds it. */
  private endless(value: unknown): boolean {
    const format = (typeof value === "object" && value !== null ? value : {}) as Fields;
    const parts = Array.isArray(format.elements) ? format.elements : [];
    if (format.type === "any_text") return true;
    if (format.type === "triggered_tags") return !(format.at_least_one === true && format.stop_after_first === true);
    if (format.type === "sequence") return parts.some((part) => this.endless(part));
    if (format.type === "or") return parts.some((part) => this.endless(part));
    if (format.type !== "tag") return false;
    return [format.end ?? ""].flat().every((end) => end === "") && this.endless(format.content);
  }

  private ended(ends: readonly string[] | undefined): string {
    if (ends === undefined || ends.length === 0) return "";
    const ways = ends.map((end) => (end === "" ? '""' : this.spelling.quoted(end)));
    return ways.length === 1 ? ways[0] : `(${ways.join(" | ")})`;
  }

  private text(value: unknown, at: string, mayBeEmpty = false): string {
    if (typeof value === "string" && (mayBeEmpty || value !== "")) return value;
    return this.fail(at, mayBeEmpty ? "must be a string" : "must be a string that is not empty");
  }

  private list(value: unknown, at: string): readonly unknown[] {
    if (Array.isArray(value) && value.length > 0) return value;
    return this.fail(at, "must be a list that is not empty");
  }

  private fail(at: string, what: string): never {
    return refuse(at, what, this.param);
  }
}

function fieldsFrom(value: unknown, at: string, param: string): Fields {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Fields;
  return refuse(at, "must be an object", param);
}

function parsed(text: string, param: string): object {
  checkDepth(text);
  try {
    return fieldsFrom(JSON.parse(text), "the structural tag", param);
  } catch (error) {
    if (error instanceof UserError) throw error;
    return refuse("the structural tag", "is text that is no JSON", param);
  }
}

function refuse(at: string, what: string, param: string): never {
  throw new UserError(`In the structural tag, ${at} ${what}.`, { code: "unsupported_structural_tag", param });
}
