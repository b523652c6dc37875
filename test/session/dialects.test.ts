// Each family's way of calling tools, end to end without a model: its template shows tools, earlier calls and results; what
// the model then says, in the template's own spelling, is allowed by the grammar token by token and read back as calls,
// the same streamed and whole.

import { describe, expect, it } from "vitest";
import { noTimings } from "../../src/engine/client.js";
import type { GenerateRequest, TokenEvent } from "../../src/engine/types.js";
import { GrammarEngine } from "../../src/host/grammar-engine.js";
import { collect } from "../../src/session/collect.js";
import { plainSampling } from "../../src/session/sampling.js";
import { Session } from "../../src/session/session.js";
import { loadText } from "../../src/session/text.js";
import type { ChatJob, ChatMessage, ToolCall } from "../../src/session/types.js";
import { dialectOf } from "../../src/text/dialect.js";
import { tokenizerFromGguf } from "../../src/text/gguf-tokenizer.js";
import { bpeMetadata, trainBpe } from "../text/vocabularies.js";
import { FakeEngine } from "./fakes.js";
import { type Family, families } from "./families.js";

const tools = [
  {
    name: "weather",
    description: "Says what the weather is",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];
const question: ChatMessage = { role: "user", content: "Is it cold in Oslo?" };
const called = (...cities: string[]): ChatMessage => ({
  role: "assistant",
  content: null,
  toolCalls: cities.map((city, i) => ({
    id: `call00000${i}`,
    name: "weather",
    arguments: JSON.stringify({ city }).replace(":", ": "),
  })),
});
const result = (content: string): ChatMessage => ({ role: "tool", content, toolCallId: "call000000" });

/** A session whose model says what it is told to, if the grammar lets it. */
class Told {
  readonly session: Session;
  says = "";
  request: GenerateRequest | undefined;
  private readonly tokenizer;
  private readonly grammars: GrammarEngine;

  constructor({ template, controls }: Family) {
    const { tokens } = trainBpe(60);
    const all = [...tokens, "<s>", ...controls];
    const values = bpeMetadata({
      "tokenizer.ggml.tokens": all,
      "tokenizer.ggml.token_type": Int32Array.from(all, (_, id) => (id < tokens.length ? 1 : 3)),
      "tokenizer.ggml.bos_token_id": tokens.length,
      "tokenizer.ggml.eos_token_id": all.length - 1,
      "tokenizer.chat_template": template,
    });
    const tokenizer = tokenizerFromGguf(values)!;
    this.tokenizer = tokenizer;
    this.grammars = new GrammarEngine({
      size: all.length,
      bytesOf: (id) => (id < tokens.length ? tokenizer.decodeBytes(id).slice() : new Uint8Array(0)),
      isControl: (id) => id >= tokens.length,
      encode: (text) => tokenizer.encode(text, { addSpecial: false, parseSpecial: false }),
    });
    const { limits } = new FakeEngine(undefined, { contextLength: 4096, vocabSize: all.length });
    const engine = { limits, generate: (request: GenerateRequest) => this.generate(request), abort() {} };
    this.session = new Session(engine, loadText({ kind: "gguf", values } as Parameters<typeof loadText>[0]));
  }

  job(messages: readonly ChatMessage[], more: Partial<ChatJob> = {}): ChatJob {
    const plain = { n: 1, minTokens: 0, stop: [], stopIds: [], includeStop: false, ignoreEos: false, priority: 0 };
    const sampling = { ...plainSampling, seed: 1n, logitBias: [] };
    return { ...plain, sampling, messages, tools, ...more };
  }

  prompt(messages: readonly ChatMessage[], more: Partial<ChatJob> = {}): string {
    return this.tokenizer.decode(this.session.promptIds(this.job(messages, more)));
  }

  private async *generate(request: GenerateRequest): AsyncGenerator<TokenEvent> {
    this.request = request;
    yield { type: "start", cachedTokens: 0 };
    const matching = request.grammar && (await this.grammars.open(request.grammar));
    const ids = [...this.tokenizer.encode(this.says, { addSpecial: false, parseSpecial: true }), this.tokenizer.eosId!];
    for (const [i, id] of ids.entries()) {
      const verdict = await matching?.verdict(false);
      const allowed = verdict?.kind !== "mask" || (verdict.mask[id >>> 5] >>> (id & 31)) & 1;
      if (!allowed || matching?.accept(id) === false) {
        throw new Error(
          `after ${JSON.stringify(this.tokenizer.decode(Int32Array.from(ids.slice(0, i))))} no ${this.tokenizer.tokenOf(id)}`,
        );
      }
      yield { type: "token", index: 0, id, logprobs: undefined };
    }
    matching?.dispose();
    const timings = { ...noTimings, promptMs: 1, generationMs: 1, promptTokens: 1, generatedTokens: 1 };
    yield { type: "finish", index: 0, reason: "stop", stopId: ids.at(-1), timings };
  }

  /** What comes back, whole; streamed it must be the same. */
  async answer(
    says: string,
    more: Partial<ChatJob> = {},
  ): Promise<{ text: string; reasoning: string; calls: unknown[] }> {
    this.says = says;
    const job = this.job([question], more);
    const { choices } = await collect(this.session.run(job));
    const streamed = { text: "", reasoning: "", calls: [] as { name: string; arguments: string }[] };
    for await (const delta of this.session.run(job)) {
      if (delta.type === "content") streamed.text += delta.text;
      if (delta.type === "reasoning") streamed.reasoning += delta.text;
      if (delta.type !== "toolCall") continue;
      streamed.calls[delta.call] ??= { name: delta.name ?? "?", arguments: "" };
      streamed.calls[delta.call].arguments += delta.arguments;
    }
    const [{ text, reasoning, toolCalls, reason }] = choices;
    const calls = toolCalls.map(({ name, arguments: given }: ToolCall) => ({ name, arguments: given }));
    expect(streamed).toEqual({ text, reasoning, calls });
    expect(reason).toBe(calls.length > 0 ? "tool_calls" : "stop");
    return { text, reasoning, calls: calls.map(({ name, arguments: given }) => [name, JSON.parse(given).city]) };
  }
}

describe.each(families)("%s", (_name, family) => {
  const told = new Told(family);
  const dialect = dialectOf(family.template);
  /** With this a model that reasons goes on to its answer. */
  const reasoned = () => {
    const { open, close } = dialect.reasoning!;
    const inside = told.prompt([question], { think: true }).trimEnd().endsWith(open.trim());
    return `${inside ? "" : open}Hm.${close}`;
  };
  const wrapped = (text: string) => (dialect.content ? dialect.content.open + text + dialect.content.close : text);

  it("is recognised", () => {
    expect(dialect.name).toBe(family.dialect);
    expect(dialect.reasoning !== undefined).toBe(family.thinks === true);
  });

  it("shows tools, calls and results to the model", () => {
    const prompt = told.prompt([question, called("Oslo"), result("3 degrees")]);
    for (const part of [family.toolsShown, family.callShown, family.resultShown]) expect(prompt).toContain(part);
    // Without tools, an earlier conversation with them can still be rendered.
    expect(told.prompt([question, called("Oslo"), result("3 degrees")], { tools: undefined })).toContain("Oslo");
  });

  it("a call as the template writes it is allowed, and read", async () => {
    const more: Partial<ChatJob> = dialect.reasoning ? {} : { toolChoice: "required" };
    const first = told.prompt([question]).trimEnd().endsWith("<think>") ? reasoned() : "";
    const answer = await told.answer(first + family.callShown, more);
    expect(answer).toMatchObject({ text: "", calls: [["weather", "Oslo"]] });
  });

  it("an argument of another type is not", async () => {
    const first = told.prompt([question]).trimEnd().endsWith("<think>") ? reasoned() : "";
    await expect(told.answer(first + family.callShown.replace('"Oslo"', "5"))).rejects.toThrow(/after .* no 5/s);
  });

  it("text comes back as text, and may end", async () => {
    const first = told.prompt([question]).trimEnd().endsWith("<think>") ? reasoned() : "";
    expect(await told.answer(first + wrapped("Hello, the cat."))).toMatchObject({ text: "Hello, the cat.", calls: [] });
  });

  it("several calls, as the template writes them", async () => {
    if (!family.parallel) return;
    const turn = told.prompt([question, called("Oslo", "Rome")], { addGenerationPrompt: false });
    const start = turn.indexOf(family.callShown.slice(0, 12), turn.indexOf("in Oslo?"));
    const said = turn.slice(start).replace(/\s+$/, "");
    const last = family.controls.at(-1)!;
    const calls = said.endsWith(last) ? said.slice(0, -last.length) : said;
    const first = told.prompt([question]).trimEnd().endsWith("<think>") ? reasoned() : "";
    expect((await told.answer(first + calls)).calls).toEqual([
      ["weather", "Oslo"],
      ["weather", "Rome"],
    ]);
    const one = told.answer(first + calls, { parallelToolCalls: false });
    await expect(one).rejects.toThrow(/after .*Oslo/s);
  });

  it("reasoning, then a call", async () => {
    if (!family.thinks) return;
    const answer = await told.answer(reasoned() + family.callShown, { think: true });
    expect(answer).toEqual({ text: "", reasoning: "Hm.", calls: [["weather", "Oslo"]] });
    const text = await told.answer(reasoned() + wrapped("Yes."), { think: true });
    expect(text).toEqual({ text: "Yes.", reasoning: "Hm.", calls: [] });
  });

  it("reasoning, then what a schema asks for, with tools that could be called", async () => {
    const schema = { type: "object", properties: { cold: { type: "boolean" } }, required: ["cold"] };
    const more: Partial<ChatJob> = { format: { kind: "schema", schema }, think: family.thinks };
    const first = family.thinks ? reasoned() : "";
    expect((await told.answer(first + wrapped('{"cold": true}'), more)).text).toBe('{"cold": true}');
    await expect(told.answer(first + wrapped('{"cold": 1}'), more)).rejects.toThrow(/no 1/);
    expect((await told.answer(first + family.callShown, more)).calls).toEqual([["weather", "Oslo"]]);
  });
});

it("results that are written as the user's are one message, for templates that want turns", () => {
  const [, gemma] = families.find(([name]) => name.startsWith("gemma"))!;
  const prompt = new Told(gemma).prompt([
    question,
    called("Oslo", "Rome"),
    result("3"),
    result("9"),
    { role: "user", content: "So?" },
  ]);
  expect(prompt).toContain("<tool_response>\n3\n</tool_response>\n<tool_response>\n9\n</tool_response>\nSo?");
});
