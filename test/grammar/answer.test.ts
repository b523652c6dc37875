// Whole answers in every dialect: a random walk through the grammar, cut into tokens, is taken apart by the router into
// reasoning, text and calls whose arguments satisfy their schemas, in the same way however it is cut.
import { describe, expect, it } from "vitest";
import type { TokenGrammar } from "../../src/engine/types.js";
import { AnswerRouter, type Segment } from "../../src/session/router.js";
import { dialectOf, markSpellings } from "../../src/text/dialect.js";
import { type AnswerSpec, answerGrammar, type ReasoningStart, withControls } from "../../src/text/grammar/answer.js";
import { splitControls } from "../../src/text/grammar/ebnf.js";
import { end, pieceOf, walk, world } from "./walk.js";

const deepseek = ["calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"].map((part) => `<｜tool▁${part}｜>`);

/** What is in the chat templates of each family that the table is to recognise. */
const templates: [name: string, template: string, controls: string[]][] = [
  [
    "harmony",
    "<|start|>{% if reasoning_effort %}{% endif %}<|channel|>analysis tools",
    ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>"],
  ],
  ["mistral (v11)", "[AVAILABLE_TOOLS][TOOL_CALLS]{{ name }}[ARGS] tools", ["[TOOL_CALLS]", "[ARGS]"]],
  ["mistral", "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", ["[TOOL_CALLS]"]],
  ["deepseek (v3)", "<｜tool▁calls▁begin｜><｜tool▁sep｜>```json tools </think>", deepseek],
  ["deepseek (v3.1)", "<｜tool▁calls▁begin｜><｜tool▁sep｜> tools thinking </think>", deepseek],
  [
    "command-r7b",
    "<|START_ACTION|><|START_RESPONSE|> tools",
    [
      "<|START_ACTION|>",
      "<|END_ACTION|>",
      "<|START_THINKING|>",
      "<|END_THINKING|>",
      "<|START_RESPONSE|>",
      "<|END_RESPONSE|>",
    ],
  ],
  ["command-r", "Action: ```json tool_name tools", []],
  ["phi", "<|tool|>{{ tools }}<|/tool|><|tool_call|><|/tool_call|>", ["<|tool_call|>", "<|/tool_call|>"]],
  ["granite", "<|tool_call|> tools <think> thinking", ["<|tool_call|>"]],
  ["hermes", "<tools></tools><tool_call> tools <think> enable_thinking", []],
  ["llama 3", '<|start_header_id|> tools "parameters"', []],
  ["described", "<|im_start|>{{ message.content }}", []],
];

const tools = [
  {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, unit: { enum: ["C", "F"] } },
      required: ["city", "unit"],
    },
  },
  { name: "noop" },
  { name: "add", parameters: { type: "object", properties: { a: { type: "integer" } }, required: ["a"] } },
];

interface Read {
  reasoning: string;
  content: string;
  calls: { name: string; arguments: string }[];
}

function read(pieces: readonly string[], options: ConstructorParameters<typeof AnswerRouter>[0]): Read {
  const router = new AnswerRouter(options);
  const out: Read = { reasoning: "", content: "", calls: [] };
  const take = (segments: readonly Segment[]) => {
    for (const segment of segments) {
      if (segment.type !== "toolCall") out[segment.type] += segment.text;
      else {
        out.calls[segment.call] ??= { name: segment.name ?? "?", arguments: "" };
        out.calls[segment.call].arguments += segment.arguments;
      }
    }
  };
  for (const piece of pieces) take(router.push(piece));
  take(router.end());
  return out;
}

function checkCalls(calls: Read["calls"], where: string): void {
  for (const { name, arguments: text } of calls) {
    const value = JSON.parse(text);
    expect(["get_weather", "noop", "add"], where).toContain(name);
    if (name === "get_weather")
      expect([typeof value.city, ["C", "F"].includes(value.unit)], where).toEqual(["string", true]);
    if (name === "add") expect(Number.isInteger(value.a), where).toBe(true);
  }
}

describe.each(templates)("%s", (name, template, spellings) => {
  const dialect = dialectOf(template);
  const w = world(spellings);
  const controls = new Map(
    markSpellings(dialect).flatMap((s) => (w.controls.has(s) ? [[s, w.controls.get(s)!] as const] : [])),
  );
  const grammarOf = (more: Partial<AnswerSpec>): TokenGrammar => ({
    ...answerGrammar({ dialect, reasoning: "none", tools, mustCall: false, parallel: true, controls, ...more }),
    ends: [end],
  });

  it("is recognised, with its control tokens", () => {
    expect(dialect.name).toBe(name);
    expect([...controls.keys()].sort()).toEqual([...spellings].sort());
  });

  it.each([true, false])("calls that must come are valid and read back; parallel: %s", async (parallel) => {
    const grammar = grammarOf({ mustCall: true, parallel });
    for (let seed = 1; seed <= 6; seed++) {
      const { ids, text, complete } = await walk(w, grammar, seed);
      const options = { dialect, reasoning: "none" as const, calls: true, controls };
      const whole = read([text], options);
      expect(read(ids.map(pieceOf), options)).toEqual(whole);
      if (!complete) continue;
      expect(whole.calls.length, text).toBeGreaterThan(0);
      if (!parallel) expect(whole.calls.length, text).toBe(1);
      expect([whole.content, whole.reasoning], text).toEqual(["", ""]);
      checkCalls(whole.calls, text);
    }
  });

  it("reads each call of several", async () => {
    if (dialect.calls.between === undefined) return;
    const grammar = grammarOf({ mustCall: true, tools: [tools[1]] });
    const counts = new Set<number>();
    for (let seed = 1; seed <= 12; seed++) {
      const { text, complete } = await walk(w, grammar, seed);
      if (complete) counts.add(read([text], { dialect, reasoning: "none", calls: true, controls }).calls.length);
    }
    expect(Math.max(...counts)).toBeGreaterThan(1);
  });

  it.each<ReasoningStart>(["none", "optional", "required", "inside"])(
    "an answer with reasoning %s, a format and tools",
    async (reasoning) => {
      if (reasoning !== "none" && !dialect.reasoning) return;
      const format = {
        kind: "schema",
        schema: { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"] },
      } as const;
      const grammar = grammarOf({ reasoning, format });
      for (let seed = 1; seed <= 6; seed++) {
        const { ids, text, complete } = await walk(w, grammar, seed, 600);
        const options = { dialect, reasoning, calls: true, controls };
        const whole = read([text], options);
        expect(read(ids.map(pieceOf), options)).toEqual(whole);
        if (!complete) continue;
        if (whole.calls.length === 0) expect(typeof JSON.parse(whole.content).ok, text).toBe("boolean");
        else expect(whole.content, text).toBe("");
        checkCalls(whole.calls, text);
      }
    },
  );

  it("free text may come before calls, and what calls is no text", async () => {
    const grammar = grammarOf({});
    for (let seed = 1; seed <= 6; seed++) {
      const { ids, text, complete } = await walk(w, grammar, seed, 300);
      const options = { dialect, reasoning: "none" as const, calls: true, controls };
      const whole = read([text], options);
      expect(read(ids.map(pieceOf), options)).toEqual(whole);
      if (complete) checkCalls(whole.calls, text);
    }
    const syntax = dialect.calls;
    const marks = (spelled: string) => withControls(spelled, controls);
    const call = `${syntax.open}${syntax.before.replace("{i}", "0")}noop${syntax.middle}{"a": "}{"}${syntax.after}${syntax.close}`;
    const said = dialect.content ? call : `Let me see. ${call}`;
    const options = { dialect, reasoning: "none" as const, calls: true, controls };
    expect(read([...marks(said)], options)).toEqual({
      reasoning: "",
      content: dialect.content ? "" : "Let me see.",
      calls: [{ name: "noop", arguments: '{"a": "}{"}' }],
    });
  });

  it("an answer of text alone may end, with tools that could have been called", async () => {
    const { open, close } = dialect.content ?? { open: "", close: "" };
    const parts = splitControls(withControls(`${open}Hi${close}`, controls)) ?? [];
    const ids = parts.flatMap((part) => (typeof part === "number" ? part : [...new TextEncoder().encode(part)]));
    const matching = await w.engine.open(grammarOf({}));
    for (const id of ids) expect(matching.accept(id)).toBe(true);
    const verdict = await matching.verdict(false);
    expect(verdict.kind === "mask" && (verdict.mask[end >>> 5] >>> (end & 31)) & 1).toBe(1);
    matching.dispose();
  });

  it("reasoning is read where no grammar bound it", () => {
    if (!dialect.reasoning) return;
    const marks = (spelled: string) => withControls(spelled, controls);
    const { open, close } = dialect.reasoning;
    const content = dialect.content ?? { open: "", close: "" };
    const text = marks(`${open}\nHm < 3.\n${close}\n\n${content.open}Yes.\n\nNo.${content.close}`);
    const options = { dialect, reasoning: "optional" as const, calls: false, controls };
    expect(read([...text], options)).toEqual({ reasoning: "Hm < 3.", content: "Yes.\n\nNo.", calls: [] });
    expect(read([text], options)).toEqual(read([...text], options));
    const inside = { ...options, reasoning: "inside" as const };
    expect(read([text.slice(marks(open).length)], inside)).toEqual(read([text], options));
    expect(read(["Plain ", "text."], options).content).toBe("Plain text.");
  });
});
