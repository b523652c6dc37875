// Owns: how families of models write tool calls and reasoning, recognised by what their chat templates contain. Pure data:
// text/grammar/answer.ts makes a grammar of it that drives decoding, session/router.ts reads the answer with the same table.
//
//   answer   [ reasoning.open … reasoning.close ]  [ content.open … content.close ]  [ calls ]
//   calls    open  before NAME middle ARGUMENTS after  (between before NAME middle ARGUMENTS after)*  close
//
// Spellings of control tokens stand for these tokens where the model has them, and are text where it has not. ARGUMENTS is
// a JSON object. {i} in `before` is the call's number.

export interface CallSyntax {
  readonly open: string;
  readonly before: string;
  readonly middle: string;
  readonly after: string;
  readonly close: string;
  /** Between two calls; undefined: the model makes one call an answer. */
  readonly between?: string;
  /** What free text must not contain, for with it the calls begin: how `open` and the first `before` start. */
  readonly trigger: string;
  /** Length of call ids, letters and digits only; by default call_ and 24 of them. */
  readonly idLength?: number;
}

export interface ReasoningSyntax {
  readonly open: string;
  readonly close: string;
  /** The template's variable that turns it on and off. */
  readonly variable?: string;
  /** The template's variable that takes low, medium or high. */
  readonly effort?: string;
  /** Prompts end like `close` without having closed anything: it also begins an answer. */
  readonly closeBegins?: boolean;
}

export interface Dialect {
  readonly name: string;
  readonly calls: CallSyntax;
  readonly reasoning?: ReasoningSyntax;
  /** Around the answer's text, where it is marked. */
  readonly content?: { readonly open: string; readonly close: string };
  /** The template says nothing of tools: they are described in a system message. */
  readonly describesTools?: boolean;
  /** The template reads them from the system message's field `tools`, as JSON text. */
  readonly systemTools?: boolean;
  /** The template says nothing of calls: earlier ones and their results are written as text. */
  readonly writesCalls?: boolean;
}

const hermes: CallSyntax = {
  open: "",
  before: '<tool_call>\n{"name": "',
  middle: '", "arguments": ',
  after: "}\n</tool_call>",
  close: "",
  between: "\n",
  trigger: "<tool_call>",
};

/** Calls as a JSON list of names and arguments. */
const list = (open: string, close: string, trigger: string, idLength?: number): CallSyntax => ({
  open,
  before: '{"name": "',
  middle: '", "arguments": ',
  after: "}",
  close,
  between: ", ",
  trigger,
  idLength,
});

interface Row {
  readonly name: string;
  /** All of them are in the template. */
  readonly marks: readonly string[];
  readonly calls: CallSyntax;
  readonly reasoning?: ReasoningSyntax;
  readonly content?: Dialect["content"];
  readonly systemTools?: boolean;
}

/** The first row whose marks are all in the template. */
const table: readonly Row[] = [
  {
    name: "harmony",
    marks: ["<|channel|>", "<|start|>"],
    reasoning: {
      open: "<|channel|>analysis<|message|>",
      close: "<|end|><|start|>assistant",
      effort: "reasoning_effort",
      closeBegins: true,
    },
    content: { open: "<|channel|>final<|message|>", close: "" },
    calls: {
      open: "",
      before: "<|channel|>commentary to=functions.",
      middle: " <|constrain|>json<|message|>",
      after: "",
      close: "",
      trigger: "<|channel|>commentary to=functions.",
    },
  },
  {
    name: "mistral (v11)",
    marks: ["[TOOL_CALLS]", "[ARGS]"],
    calls: {
      open: "",
      before: "[TOOL_CALLS]",
      middle: "[ARGS]",
      after: "",
      close: "",
      between: "",
      trigger: "[TOOL_CALLS]",
      idLength: 9,
    },
  },
  { name: "mistral", marks: ["[TOOL_CALLS]"], calls: list("[TOOL_CALLS][", "]", "[TOOL_CALLS]", 9) },
  {
    name: "deepseek (v3)",
    marks: ["<｜tool▁sep｜>", "```json"],
    calls: {
      open: "<｜tool▁calls▁begin｜>",
      before: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
      middle: "\n```json\n",
      after: "\n```<｜tool▁call▁end｜>",
      between: "\n",
      close: "<｜tool▁calls▁end｜>",
      trigger: "<｜tool▁calls▁begin｜>",
    },
  },
  {
    name: "deepseek (v3.1)",
    marks: ["<｜tool▁sep｜>"],
    calls: {
      open: "<｜tool▁calls▁begin｜>",
      before: "<｜tool▁call▁begin｜>",
      middle: "<｜tool▁sep｜>",
      after: "<｜tool▁call▁end｜>",
      between: "",
      close: "<｜tool▁calls▁end｜>",
      trigger: "<｜tool▁calls▁begin｜>",
    },
  },
  {
    name: "command-r7b",
    marks: ["<|START_ACTION|>"],
    reasoning: { open: "<|START_THINKING|>", close: "<|END_THINKING|>" },
    content: { open: "<|START_RESPONSE|>", close: "<|END_RESPONSE|>" },
    calls: {
      open: "<|START_ACTION|>[\n    ",
      before: '{"tool_call_id": "{i}", "tool_name": "',
      middle: '", "parameters": ',
      after: "}",
      between: ",\n    ",
      close: "\n]<|END_ACTION|>",
      trigger: "<|START_ACTION|>",
    },
  },
  {
    name: "command-r",
    marks: ["Action:", "tool_name"],
    calls: {
      open: "Action: ```json\n[\n    ",
      before: '{\n        "tool_name": "',
      middle: '",\n        "parameters": ',
      after: "\n    }",
      between: ",\n    ",
      close: "\n]```",
      trigger: "Action: ```json",
    },
  },
  {
    name: "phi",
    marks: ["<|tool|>", "<|/tool|>"],
    systemTools: true,
    calls: list("<|tool_call|>[", "]<|/tool_call|>", "<|tool_call|>"),
  },
  { name: "granite", marks: ["<|tool_call|>"], calls: list("<|tool_call|>[", "]", "<|tool_call|>") },
  { name: "hermes", marks: ["<tool_call>"], calls: hermes },
  {
    name: "llama 3",
    marks: ["<|start_header_id|>", "tools", '"parameters"'],
    calls: {
      open: "",
      before: '{"name": "',
      middle: '", "parameters": ',
      after: "}",
      close: "",
      trigger: '{"name": "',
    },
  },
];

/** Reasoning that a template knows, where the row of its calls does not say. */
const reasoning: readonly ReasoningSyntax[] = [
  { open: "<think>", close: "</think>" },
  { open: "[THINK]", close: "[/THINK]" },
];

/** Templates' variables for turning reasoning on and off. */
const switches = ["enable_thinking", "thinking"];

/** source: the chat template's text; undefined where there is none. */
export function dialectOf(source: string | undefined): Dialect {
  const has = (mark: string) => source?.includes(mark) ?? false;
  const row = table.find(({ marks }) => marks.every(has));
  // A mark may be part of a longer word of another meaning; the close alone is enough, for some templates only cut there.
  const found = row?.reasoning ?? reasoning.find(({ open, close }) => has(close) || has(open));
  const variable = switches.find((name) => new RegExp(`\\b${name}\\b`).test(source ?? ""));
  return {
    name: row?.name ?? "described",
    calls: row?.calls ?? hermes,
    reasoning: found && { ...found, variable },
    content: row?.content,
    describesTools: row === undefined || !has("tools"),
    systemTools: row?.systemTools,
    writesCalls: row === undefined || !has("tool_calls"),
  };
}

/** Every control token that a dialect may name: pieces of its spellings that look like one. */
export function markSpellings(dialect: Dialect): string[] {
  const { open, before, middle, after, between, close } = dialect.calls;
  return [...new Set([...marksIn([open, before, middle, after, between ?? "", close]), ...partMarks(dialect)])];
}

/** Those around reasoning and text. */
export function partMarks({ reasoning, content }: Dialect): string[] {
  const parts = [reasoning, content].flatMap((part) => (part ? [part.open, part.close] : []));
  return marksIn(parts);
}

/** Pieces of texts that look like control tokens. */
export function marksIn(texts: readonly string[]): string[] {
  return [...new Set(texts.flatMap((text) => text.match(/<[|｜][^|｜]*[|｜]>|<\/?[a-z_]+>|\[\/?[A-Z_]+\]/g) ?? []))];
}
