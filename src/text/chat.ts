// Owns: messages → prompt text by the model's chat template, with the variables that Hugging Face passes, and knowledge of
// which parts of that text are the caller's: a special token spelled in a message stays text.
//
// How: the messages are rendered as they are (that is the text) and once more with two private-use characters around each
// spelling of a control token in the caller's strings. Where the second text without these marks equals the first, the
// marks say which spellings are the caller's. Templates that look for text in a message find it in both; where one takes
// a spelling apart so that the texts differ, all tokens whose spellings the caller used stay text in this prompt, the
// template's own too: worse for the answer, but no door. Strings that could be cut so that a spelling arises are rendered
// once more without their fragments, and where this changes which control tokens the prompt has, it is refused.
import { checkDepth } from "../base/depth.js";
import { UserError } from "../base/errors.js";
import { parseTemplate, type TemplateEngine } from "./any-template.js";
import { SpecialMatcher } from "./special-matcher.js";
import type { TemplateKind } from "./template-kind.js";
import type { Tokenizer } from "./tokenizer.js";

/** OpenAI's and Hugging Face's form; further fields reach the template as they are. */
export interface TemplateMessage {
  readonly role: string;
  /** Parts: {type: "text", text}. */
  readonly content?: string | readonly Readonly<Record<string, unknown>>[] | null;
  /** arguments: JSON text or the object itself. */
  readonly tool_calls?: readonly Readonly<Record<string, unknown>>[] | null;
  readonly [field: string]: unknown;
}

export interface RenderOptions {
  readonly messages: readonly TemplateMessage[];
  /** {type: "function", function: {name, description, parameters}}, or that function alone. */
  readonly tools?: readonly Readonly<Record<string, unknown>>[];
  readonly documents?: readonly unknown[];
  /** Ends the prompt where the assistant's answer begins. Default true. */
  readonly addGenerationPrompt?: boolean;
  /** Further variables for the template. */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** A named template; by default "tool_use" where there are tools and the model has it. */
  readonly name?: string;
  readonly now?: Date;
}

export interface RenderedChat {
  readonly text: string;
  /** Ranges of text (UTF-16 units, ascending) in which no control token is meant. */
  readonly literals: readonly (readonly [start: number, end: number])[];
}

export interface ChatTemplateSource {
  readonly template: string;
  /** Default "jinja". */
  readonly kind?: TemplateKind;
  readonly named?: Readonly<Record<string, string>>;
  /** bos_token, eos_token…, as they are spelled. */
  readonly specialTokens?: Readonly<Record<string, string>>;
  readonly controlSpellings?: readonly string[];
}

export class ChatTemplate {
  readonly source: string;
  private readonly fallback: TemplateEngine;
  private readonly named = new Map<string, TemplateEngine>();
  private readonly specialTokens: Readonly<Record<string, string>>;
  private readonly spellings: Spellings;
  private readonly takesParts = new Map<TemplateEngine, boolean>();

  constructor({ template, kind = "jinja", named = {}, specialTokens = {}, controlSpellings = [] }: ChatTemplateSource) {
    this.source = template;
    this.fallback = parseTemplate(template, kind);
    for (const [name, text] of Object.entries(named)) this.named.set(name, parseTemplate(text, kind));
    this.specialTokens = specialTokens;
    this.spellings = new Spellings(controlSpellings);
  }

  namedSource(name: string): string | undefined {
    return this.named.get(name)?.source;
  }

  get names(): readonly string[] {
    return ["default", ...this.named.keys()];
  }

  render(options: RenderOptions): RenderedChat {
    const template = this.choose(options);
    const variables = this.variables(template, options);
    const run = (changed: unknown) => template.render({ ...variables, ...(changed as object) }, options.now);
    const text = run({});
    const { messages, tools, documents } = variables;
    const caller = { messages, tools, documents };
    if (!this.spellings.threatens(caller)) return { text, literals: [] };
    return this.spellings.separate(text, caller, run);
  }

  /** The prompt for a text between prompt and suffix; undefined: the template has no place for what comes after. */
  renderInfill(prompt: string, suffix: string, now?: Date): RenderedChat | undefined {
    const template = this.fallback;
    if (!template.takesSuffix) return undefined;
    const caller = { prompt, suffix };
    const run = (changed: unknown) => {
      const { prompt: before, suffix: after } = changed as typeof caller;
      return template.renderInfill!(before, after, now);
    };
    const text = run(caller);
    return this.spellings.threatens(caller) ? this.spellings.separate(text, caller, run) : { text, literals: [] };
  }

  private choose({ name, tools }: RenderOptions): TemplateEngine {
    if (name === undefined || name === "default") {
      return (name === undefined && tools !== undefined && this.named.get("tool_use")) || this.fallback;
    }
    const found = this.named.get(name);
    if (found !== undefined) return found;
    throw new UserError(`the model has no chat template "${name}"; it has: ${this.names.join(", ")}`);
  }

  private variables(template: TemplateEngine, options: RenderOptions): Record<string, unknown> {
    const { messages, tools, documents, addGenerationPrompt = true, variables = {} } = options;
    return {
      ...this.specialTokens,
      documents: documents ?? null,
      ...variables,
      messages: messages.map((m, i) => templateMessage(m, i, template.source, this.wantsParts(template))),
      tools: tools === undefined || tools.length === 0 ? null : tools.map(asFunction),
      add_generation_prompt: addGenerationPrompt,
    };
  }

  /** Some templates read only lists of parts: seen by whether a message's text comes out. */
  private wantsParts(template: TemplateEngine): boolean {
    const known = this.takesParts.get(template);
    if (known !== undefined) return known;
    const probe = "\uE0F0probe\uE0F0";
    const shows = (content: unknown) => {
      try {
        const messages = [{ role: "user", content }];
        const rest = { tools: null, documents: null, add_generation_prompt: true };
        return template.render({ ...this.specialTokens, ...rest, messages }).includes(probe);
      } catch {
        return false;
      }
    };
    const parts = !shows(probe) && shows([{ type: "text", text: probe }]);
    this.takesParts.set(template, parts);
    return parts;
  }
}

/** Token ids of a rendered prompt. The model's BOS is put before it where the template did not write it. */
export function encodeChat(tokenizer: Tokenizer, { text, literals }: RenderedChat): Int32Array {
  return tokenizer.encode(text, { addSpecial: "begin", parseSpecial: true, literals });
}

function templateMessage(
  message: TemplateMessage,
  index: number,
  source: string,
  parts: boolean,
): Record<string, unknown> {
  if (typeof message !== "object" || message === null || typeof message.role !== "string") {
    throw new UserError(`message ${index} must be an object with a role`, { param: `messages[${index}]` });
  }
  const content = flatContent(message.content, index);
  const out: Record<string, unknown> = { ...message, content: parts ? [{ type: "text", text: content }] : content };
  if (message.role === "developer" && !source.includes("developer")) out.role = "system";
  if (Array.isArray(message.tool_calls)) out.tool_calls = message.tool_calls.map(toolCall);
  else delete out.tool_calls;
  return out;
}

function flatContent(content: TemplateMessage["content"], index: number): string {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  const where = `messages[${index}].content`;
  if (!Array.isArray(content)) throw new UserError(`${where} must be text or a list of parts`, { param: where });
  const texts = content.map((part: unknown) => {
    if (typeof part === "string") return part;
    const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
    if (type === "text" && typeof text === "string") return text;
    throw new UserError(`${where}: parts of type ${JSON.stringify(type)} are not supported; parts must be text`, {
      param: where,
    });
  });
  return texts.join("\n");
}

/** Templates expect the arguments as an object; the API gives JSON text. */
function toolCall(call: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const inner = call.function;
  if (typeof inner !== "object" || inner === null) return { ...call };
  const { arguments: given, ...rest } = inner as Record<string, unknown>;
  return { ...call, function: { ...rest, arguments: parsedArguments(given) } };
}

function parsedArguments(given: unknown): unknown {
  if (typeof given !== "string") return given ?? {};
  if (given.trim() === "") return {};
  checkDepth(given);
  try {
    const value: unknown = JSON.parse(given);
    return typeof value === "object" && value !== null ? value : given;
  } catch {
    return given;
  }
}

function asFunction(tool: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  return "function" in tool || "type" in tool ? tool : { type: "function", function: tool };
}

type Render = (changed: unknown) => string;

/** The spellings of control tokens, and how to tell the caller's from the template's. */
class Spellings {
  private readonly matcher: SpecialMatcher;

  constructor(spellings: readonly string[]) {
    this.matcher = new SpecialMatcher(
      spellings.map((text, id) => ({
        id,
        text,
        control: true,
        stripLeft: false,
        stripRight: false,
        singleWord: false,
      })),
    );
  }

  /** Whether a string in there holds a spelling or the beginning of one. */
  threatens(value: unknown): boolean {
    let found = false;
    mapStrings(value, (text) => {
      if (!found && this.matcher.fragments(text).length > 0) found = true;
      return text;
    });
    return found;
  }

  separate(text: string, caller: unknown, run: Render): RenderedChat {
    const [open, close, filler] = unusedCharacters(text + JSON.stringify(caller));
    const used = new Set<string>();
    const marked = run(mapStrings(caller, (s) => this.mark(s, open, close, used)));
    const literals = readMarks(marked, open, close, text) ?? this.everywhere(text, used);
    const emptied = run(
      mapStrings(caller, (s) => replaceRanges(s, this.matcher.fragments(s), (part) => filler.repeat(part.length))),
    );
    const own = this.found(text, literals);
    const without = this.found(emptied, []);
    if (own.length > without.length) {
      throw new UserError(
        "a message holds pieces of a special token's spelling that the model's chat template would put together; " +
          "change the message's text",
        { code: "unsafe_special_token", param: "messages" },
      );
    }
    return { text, literals };
  }

  private mark(text: string, open: string, close: string, used: Set<string>): string {
    const ranges: [number, number][] = this.matches(text);
    for (const [start, end] of ranges) used.add(text.slice(start, end));
    const last = ranges.at(-1)?.[1] ?? 0;
    const trimmed = text.trimEnd().length;
    const tail = this.matcher.fragments(text).find(([start, end]) => end === trimmed && start >= last);
    if (tail !== undefined) ranges.push([tail[0], tail[1]]);
    return replaceRanges(text, ranges, (part) => open + part + close);
  }

  private matches(text: string): [number, number][] {
    const ranges: [number, number][] = [];
    let at = 0;
    this.matcher.partition(
      text,
      true,
      [],
      (_start, end) => {
        at = end;
      },
      (special) => {
        ranges.push([at, at + special.text.length]);
        at += special.text.length;
      },
    );
    return ranges;
  }

  /** Control tokens of a text outside these ranges, by number. */
  private found(text: string, literals: RenderedChat["literals"]): number[] {
    const ids: number[] = [];
    this.matcher.partition(text, true, literals, ignore, (special) => ids.push(special.id));
    return ids;
  }

  private everywhere(text: string, used: ReadonlySet<string>): [number, number][] {
    return this.matches(text).filter(([start, end]) => used.has(text.slice(start, end)));
  }
}

function ignore(): void {}

/** The marked ranges in terms of the text without marks; undefined where that is not `text` or a mark lost its pair. */
function readMarks(marked: string, open: string, close: string, text: string): [number, number][] | undefined {
  const ranges: [number, number][] = [];
  let plain = "";
  let start = -1;
  for (const part of marked.split(new RegExp(`([${open}${close}])`))) {
    if (part === open) {
      if (start >= 0) return undefined;
      start = plain.length;
    } else if (part === close) {
      if (start < 0) return undefined;
      if (plain.length > start) ranges.push([start, plain.length]);
      start = -1;
    } else plain += part;
  }
  return start < 0 && plain === text ? ranges : undefined;
}

function replaceRanges(
  text: string,
  ranges: readonly (readonly [number, number])[],
  change: (part: string) => string,
): string {
  let out = "";
  let at = 0;
  for (const [start, end] of ranges) {
    out += text.slice(at, start) + change(text.slice(start, end));
    at = end;
  }
  return out + text.slice(at);
}

/** Three private-use characters that do not occur in `text`. */
function unusedCharacters(text: string): string[] {
  const unused: string[] = [];
  for (let code = 0xe000; unused.length < 3 && code < 0xf900; code++) {
    if (!text.includes(String.fromCharCode(code))) unused.push(String.fromCharCode(code));
  }
  if (unused.length < 3) throw new UserError("the messages use every private-use character; some must be left out");
  return unused;
}

/** A copy with every string, object keys among them, changed. */
function mapStrings(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === "string") return change(value);
  if (Array.isArray(value)) return value.map((v) => mapStrings(v, change));
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, v]) => [change(key), mapStrings(v, change)]));
  }
  return value;
}
