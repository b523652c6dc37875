// Owns: from what a job asks of its answer (format, tools, thinking) to a plan: the template's variables, the grammar that
// binds the tokens, and how the answer is taken apart. Refuses what the model cannot do, by the field's name.
import { UserError } from "../base/errors.js";
import type { TokenGrammar } from "../engine/types.js";
import { type Dialect, dialectOf, markSpellings, marksIn, partMarks } from "../text/dialect.js";
import { answerGrammar, type ReasoningStart, type ToolSpec } from "../text/grammar/answer.js";
import { markTexts, type OutputFormat } from "../text/grammar/format.js";
import type { TextModel, TextTokenizer } from "./needs.js";
import type { RouterOptions } from "./router.js";
import type { ChatJob, Tool } from "./types.js";

/** How a job's messages are rendered. */
export interface AnswerVariables {
  readonly dialect: Dialect;
  /** Those that the template is told of. */
  readonly tools: readonly Tool[] | undefined;
  readonly variables: Readonly<Record<string, unknown>> | undefined;
}

export interface AnswerPlan {
  readonly grammar?: TokenGrammar;
  /** Absent: the answer is all text. */
  readonly router?: RouterOptions;
}

export function answerVariables(job: ChatJob, text: TextModel): AnswerVariables {
  const tools = offered(job);
  const dialect = dialectOf(tools ? (text.template?.toolSource ?? text.template?.source) : text.template?.source);
  const { reasoning } = dialect;
  const { think, templateVariables } = job;
  if (think === undefined) return { dialect, tools, variables: templateVariables };
  if (think !== false && reasoning === undefined) {
    throw new UserError("This model does not reason before it answers; leave out think (reasoning_effort).", {
      code: "unsupported_field",
      param: "think",
    });
  }
  const own: Record<string, unknown> = {};
  if (reasoning?.variable !== undefined) own[reasoning.variable] = think !== false;
  if (reasoning?.effort !== undefined && typeof think === "string")
    own[reasoning.effort] = think === "max" ? "high" : think;
  return { dialect, tools, variables: { ...own, ...templateVariables } };
}

/** tail: how the prompt ends, special tokens spelled out. */
export function answerPlan(job: ChatJob, dialect: Dialect, text: TextModel | undefined, tail: string): AnswerPlan {
  const { format } = job;
  const chat = job.messages !== undefined;
  const tools = offered(job) ?? [];
  const reasoning = chat ? reasoningStart(job, dialect, tail) : "none";
  const bound = format !== undefined || tools.length > 0;
  if (!bound && reasoning === "none" && dialect.content === undefined) return {};
  if (bound) refuseBeside(job);
  if (format?.kind === "structural" && tools.length > 0) {
    throw new UserError(
      'A structural tag cannot be combined with tools, whose calls its free text could spell; write the calls as tags, with tool_choice "none".',
      { code: "unsupported_field", param: "tools" },
    );
  }
  const tokenizer = text!.tokenizer;
  const named = format ? formatControls(format, chat ? dialect : undefined, tokenizer) : [];
  const controls = chat ? dialectControls(dialect, tokenizer) : new Map<string, number>();
  // What the format names gives no text.
  const read = new Map([...controls].filter(([spelling]) => !named.some(([other]) => other === spelling)));
  const router = chat ? { dialect, reasoning, calls: tools.length > 0, controls: read } : undefined;
  if (!bound) return { router };
  const parts = chat ? dialect : { ...dialect, content: undefined };
  const { text: grammar, ...rest } = answerGrammar({
    dialect: parts,
    reasoning,
    tools: chosen(job, tools),
    mustCall: choiceOf(job).must,
    parallel: job.parallelToolCalls ?? true,
    format,
    controls: new Map([...controls, ...named]),
  });
  // Forced tokens are not scored: who wants log-probabilities gets every token drawn.
  const jumps = job.logprobs === undefined;
  return { router, grammar: { text: grammar, ...rest, ends: tokenizer.endIds, jumps } };
}

/** A token that ends the answer is its end, not a mark in it. */
function dialectControls(dialect: Dialect, tokenizer: TextTokenizer): Map<string, number> {
  return new Map(
    markSpellings(dialect).flatMap((spelling) => {
      const id = tokenizer.control(spelling);
      return id === undefined || tokenizer.endIds.includes(id) ? [] : [[spelling, id] as const];
    }),
  );
}

/** Control tokens that a format's fixed texts spell. */
function formatControls(
  format: OutputFormat,
  dialect: Dialect | undefined,
  tokenizer: TextTokenizer,
): (readonly [string, number])[] {
  const taken = dialect ? partMarks(dialect) : [];
  return marksIn(markTexts(format)).flatMap((spelling) => {
    const id = tokenizer.control(spelling);
    if (id === undefined) return [];
    const ends = tokenizer.endIds.includes(id);
    if (ends || taken.includes(spelling)) {
      const what = ends ? "ends its answers" : "marks the parts of its answers";
      throw new UserError(`The structural tag names ${spelling}, with which this model ${what}.`, {
        code: "unsupported_structural_tag",
        param: "format",
      });
    }
    return [[spelling, id] as const];
  });
}

/** undefined: none, or none may be called. */
function offered(job: ChatJob): readonly Tool[] | undefined {
  const { tools, toolChoice } = job;
  if (tools === undefined || tools.length === 0) {
    if (toolChoice === undefined || toolChoice === "auto" || toolChoice === "none") return undefined;
    throw new UserError("tool_choice asks for a call, but there are no tools.", { param: "tool_choice" });
  }
  if (toolChoice === "none") return undefined;
  if (job.messages === undefined) throw new UserError("Tools need messages, not a plain prompt.", { param: "tools" });
  const names = new Set(tools.map(({ name }) => name));
  if (names.size < tools.length) throw new UserError("Two tools have the same name.", { param: "tools" });
  const stranger = choiceOf(job).names?.find((name) => !names.has(name));
  if (stranger !== undefined) {
    throw new UserError(`tool_choice names ${JSON.stringify(stranger)}, which is not among the tools.`, {
      param: "tool_choice",
    });
  }
  return tools;
}

function chosen(job: ChatJob, tools: readonly Tool[]): ToolSpec[] {
  const { names } = choiceOf(job);
  return tools.filter(({ name }) => names === undefined || names.includes(name));
}

/** Which tools may be called (undefined: all), and whether one must be. */
function choiceOf({ toolChoice }: ChatJob): { names?: readonly string[]; must: boolean } {
  if (typeof toolChoice !== "object") return { must: toolChoice === "required" };
  if ("name" in toolChoice) return { names: [toolChoice.name], must: true };
  return { names: toolChoice.allowed, must: toolChoice.required };
}

function reasoningStart({ think, addGenerationPrompt }: ChatJob, { reasoning }: Dialect, tail: string): ReasoningStart {
  if (reasoning === undefined || addGenerationPrompt === false) return "none";
  const end = tail.trimEnd();
  if (!reasoning.closeBegins && end.endsWith(reasoning.close.trim())) return "none";
  const inside = end.endsWith(reasoning.open.trim());
  if (think === false) {
    throw new UserError(
      "This model's reasoning cannot be turned off; leave out think: false (reasoning_effort: none).",
      {
        code: "unsupported_field",
        param: "think",
      },
    );
  }
  if (inside) return "inside";
  return think === undefined ? "optional" : "required";
}

/** What could end an answer that is not complete, or keep a complete one from ending. */
function refuseBeside(job: ChatJob): void {
  const what = job.format === undefined ? "tools" : "a format";
  const found = (
    [
      ["ignore_eos", job.ignoreEos],
      ["min_tokens", job.minTokens > 0],
    ] as const
  ).find(([, asked]) => asked);
  if (found) throw new UserError(`${found[0]} cannot be used with ${what}.`, { param: found[0] });
}
