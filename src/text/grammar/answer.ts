// Owns: one grammar for a whole answer: reasoning, then the text (free, or of a format), then tool calls, in the model's own
// spelling (text/dialect.ts). It drives decoding; session/router.ts takes the answer apart by the same dialect.
import { UserError } from "../../base/errors.js";
import type { Dialect } from "../dialect.js";
import { controlSpelling, literal, Rules } from "./ebnf.js";
import { formatBody, isForeign, type OutputFormat } from "./format.js";
import { anyObject } from "./json.js";
import { schemaRule } from "./schema.js";
import type { StopMark } from "./structural.js";

export interface ToolSpec {
  readonly name: string;
  /** JSON Schema of an object; undefined: any object. */
  readonly parameters?: object;
  readonly strict?: boolean;
}

/** How reasoning stands when the answer begins. */
export type ReasoningStart =
  /** The prompt has opened it. */
  | "inside"
  /** The model opens it, or not. */
  | "optional"
  /** The model opens it. */
  | "required"
  /** There is none. */
  | "none";

export interface AnswerSpec {
  readonly dialect: Dialect;
  readonly reasoning: ReasoningStart;
  readonly tools: readonly ToolSpec[];
  /** At least one call, and no text beside it. */
  readonly mustCall: boolean;
  readonly parallel: boolean;
  readonly format?: OutputFormat;
  /** The field that holds the format: for errors. */
  readonly param?: string;
  /** Spellings of control tokens, by id. */
  readonly controls: ReadonlyMap<string, number>;
}

export interface AnswerGrammar {
  readonly text: string;
  readonly controls: readonly number[];
  readonly triggers: readonly number[];
  readonly foreign: boolean;
}

/** Calls an answer where each has its number in it, or a grammar would have no end. */
const mostNumbered = 8;

export function answerGrammar(spec: AnswerSpec): AnswerGrammar {
  return new Composer(spec).compose();
}

/** Text with its control tokens as grammars and the router see them. */
export function withControls(text: string, controls: ReadonlyMap<string, number>): string {
  for (const [spelling, id] of controls) text = text.replaceAll(spelling, controlSpelling(id));
  return text;
}

class Composer {
  private readonly rules: Rules;
  private readonly triggers = new Set<number>();

  constructor(private readonly spec: AnswerSpec) {
    this.rules = new Rules(undefined, spec.param ?? (spec.format ? "format" : "tools"));
  }

  compose(): AnswerGrammar {
    const { spec, rules } = this;
    const after = this.afterReasoning();
    const { reasoning } = spec.dialect;
    let root = after;
    if (reasoning !== undefined && spec.reasoning !== "none") {
      const close = this.until(reasoning.close);
      // Whatever white space the model is used to.
      const gap = spec.format || spec.mustCall || spec.dialect.content ? "[ \\n]{0,4} " : "";
      const opened = `${this.quoted(reasoning.open)} ${close} ${gap}${after}`;
      if (spec.reasoning === "inside") root = `${close} ${gap}${after}`;
      else if (spec.reasoning === "required") root = opened;
      else root = rules.rule("begin", `${opened} | ${after}`);
    }
    return {
      text: rules.text(root),
      controls: [...spec.controls.values()],
      triggers: [...this.triggers],
      foreign: spec.format !== undefined && isForeign(spec.format),
    };
  }

  private afterReasoning(): string {
    const { spec, rules } = this;
    const { content, calls } = spec.dialect;
    const begin = calls.open + calls.before.replace("{i}", "0");
    if (spec.mustCall) return rules.rule("must_call", `${this.quoted(begin)} ${this.calls()}`);
    const close = content?.close ?? "";
    const spelling = {
      quoted: (text: string) => this.quoted(text),
      stop: (mark: string) => this.stop(mark),
      spelled: (text: string) => withControls(text, spec.controls),
    };
    const text = spec.format && formatBody(rules, spec.format, { spelling, close, param: spec.param ?? "format" });
    if (content !== undefined) {
      const inner = text ?? this.until(close);
      const marked = `${this.quoted(content.open)} ${inner}`;
      return rules.rule("answer", this.hasTools() ? `${marked} | ${this.quoted(begin)} ${this.calls()}` : marked);
    }
    if (text !== undefined) {
      return this.hasTools() ? rules.rule("answer", `${text} | ${this.quoted(begin)} ${this.calls()}`) : text;
    }
    if (!this.hasTools()) return this.until("");
    const { head, rest } = this.stop(calls.trigger);
    const opened = rules.rule("calls", `${this.quoted(rest + begin.slice(calls.trigger.length))} ${this.calls()}`);
    return rules.rule(
      "text",
      `TagDispatch((${this.quoted(head)}, ${opened}), stop_eos=true, stop_str=(), loop_after_dispatch=false)`,
    );
  }

  private hasTools(): boolean {
    return this.spec.tools.length > 0;
  }

  /** From the first call's name to the end of the last. */
  private calls(): string {
    const { rules, spec } = this;
    const { before, after, between, close } = spec.dialect.calls;
    const call = rules.rule("call", spec.tools.map((tool) => this.call(tool)).join(" | "));
    const end = this.quoted(after);
    const next = (i: number) => `${this.quoted((between ?? "") + before.replace("{i}", String(i)))} ${call} ${end}`;
    let more = "";
    if (spec.parallel && between !== undefined) {
      if (before.includes("{i}")) {
        for (let i = mostNumbered - 1; i > 0; i--) more = `(${next(i)} ${more})?`;
      } else more = `(${next(1)})*`;
    }
    return `${call} ${end} ${more} ${this.quoted(close)}`;
  }

  private call({ name, parameters, strict }: ToolSpec): string {
    if (!/^[a-zA-Z0-9_.:/-]{1,128}$/.test(name)) {
      throw new UserError(
        `The tool's name ${JSON.stringify(name)} must be of letters, digits, "_", "-", "." (at most 128).`,
        { code: "invalid_tool", param: "tools" },
      );
    }
    const free = parameters === undefined || Object.keys(parameters).length === 0;
    const schema = { type: "object", ...parameters };
    const body = free ? anyObject(this.rules) : schemaRule(this.rules, schema, { param: `tools (${name})`, strict });
    return `${this.quoted(name + this.spec.dialect.calls.middle)} ${body}`;
  }

  /** Free text up to and with the mark; to the end where there is none. */
  private until(mark: string): string {
    if (mark === "") {
      return this.rules.rule("free", "TagDispatch(stop_eos=true, stop_str=(), loop_after_dispatch=false)");
    }
    const { head, rest } = this.stop(mark);
    const dispatch = `TagDispatch(stop_eos=false, stop_str=(${this.quoted(head)}), loop_after_dispatch=false)`;
    const text = this.rules.rule("until", dispatch);
    return rest === "" ? text : `${text} ${this.quoted(rest)}`;
  }

  /** A mark that ends free text. No text begins with a control token, so where one begins the mark, it ends the text. */
  private stop(mark: string): StopMark {
    const { controls } = this.spec;
    const first = [...controls].find(([spelling]) => mark.startsWith(spelling));
    for (const [spelling, id] of controls) {
      if (first === undefined ? mark.includes(spelling) : spelling === first[0]) this.triggers.add(id);
    }
    const head = first === undefined ? mark : first[0];
    return { head, rest: mark.slice(head.length) };
  }

  private quoted(text: string): string {
    return literal(withControls(text, this.spec.controls));
  }
}
