// Sessions on a scripted engine: whatever the tokens, the stop strings and where they fall, text and tokens add up.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { setLog } from "../../src/base/log.js";
import { collect } from "../../src/session/collect.js";
import { configuredEndIds, samplingDefaults } from "../../src/session/defaults.js";
import { plainSampling } from "../../src/session/sampling.js";
import { Session } from "../../src/session/session.js";
import type { ChatJob, Delta } from "../../src/session/types.js";
import { byteText, eos, FakeEngine, ids, letters, words } from "./fakes.js";

const job = (fields: Partial<ChatJob>): ChatJob => ({
  n: 1,
  sampling: { ...plainSampling, seed: 0n },
  minTokens: 0,
  stop: [],
  stopIds: [],
  includeStop: false,
  ignoreEos: false,
  priority: 0,
  prompt: "x",
  ...fields,
});

async function all(deltas: AsyncIterable<Delta>): Promise<Delta[]> {
  const out: Delta[] = [];
  for await (const delta of deltas) out.push(delta);
  return out;
}

/** The first stop string to be complete, the longest of several that end together. */
function cut(text: string, stops: readonly string[], include: boolean): { text: string; stop?: string } {
  for (let end = 1; end <= text.length; end++) {
    const [stop] = stops.filter((s) => text.slice(0, end).endsWith(s)).sort((a, b) => b.length - a.length);
    if (stop !== undefined) return { text: text.slice(0, include ? end : end - stop.length), stop };
  }
  return { text };
}

describe("a session", () => {
  it("cuts text at the first stop string and accounts for every token once, in order", async () => {
    const piece = fc.constantFrom(...words, "a", "é", "🙂", "User:", "EN", " ");
    const stops = fc.uniqueArray(fc.constantFrom("User:", "ENDING", "ING", "ld ", "é🙂", "o w", "r"), { maxLength: 3 });
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 12 }), stops, fc.boolean(), async (pieces, stop, includeStop) => {
        const said = pieces.flatMap(ids);
        const engine = new FakeEngine((_request, _index, position) => said[position] ?? eos);
        const deltas = await all(new Session(engine, byteText).run(job({ stop, includeStop })));
        const text = deltas.map((delta) => (delta.type === "content" ? delta.text : "")).join("");
        const expected = cut(pieces.join(""), stop, includeStop);
        expect(text).toBe(expected.text);
        const finish = deltas.at(-1)!;
        expect(finish).toMatchObject({ type: "finish", reason: "stop", stop: expected.stop ?? eos });
        const tokens = deltas.flatMap((delta) => (delta.type === "start" ? [] : delta.tokens));
        const drawn = [...said, eos].slice(0, tokens.length);
        expect(tokens.map((token) => token.id)).toEqual(drawn);
        if (expected.stop === undefined) expect(tokens.length).toBe(said.length + 1);
        expect(finish.type === "finish" && finish.timings.generatedTokens).toBe(tokens.length);
        for (const delta of deltas) {
          if (delta.type === "content")
            for (const token of delta.tokens) expect(token.offset).toBeLessThan(text.length);
        }
      }),
      { numRuns: 150 },
    );
  });

  it("ends each of n choices by itself, and only that one", async () => {
    const engine = new FakeEngine(letters);
    const { choices } = await collect(new Session(engine, byteText).run(job({ n: 3, stop: ["v"], maxTokens: 6 })));
    expect(choices.map(({ text, reason, stop }) => [text, reason, stop])).toEqual([
      ["aho", "stop", "v"],
      ["bipwdk", "length", undefined],
      ["cjqxel", "length", undefined],
    ]);
    expect(engine.aborts).toEqual([0]);
  });

  it("does not look for stop strings before min_tokens", async () => {
    const engine = new FakeEngine(() => 97);
    const { choices } = await collect(new Session(engine, byteText).run(job({ stop: ["a"], minTokens: 3 })));
    expect(choices[0].text).toBe("aa");
  });

  it("ends by an abort signal, before and while it runs, with a finish for every choice", async () => {
    const engine = new FakeEngine(letters, { contextLength: 1 << 20 });
    const session = new Session(engine, byteText);
    const early = await collect(session.run(job({ n: 2 }), AbortSignal.abort()));
    expect(early.choices.map((choice) => choice.reason)).toEqual(["abort", "abort"]);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 20);
    const late = await collect(session.run(job({ n: 2 }), controller.signal));
    expect(late.choices.map((choice) => choice.reason)).toEqual(["abort", "abort"]);
    expect(engine.running).toBe(0);
  });

  it("aborts what a caller stops reading", async () => {
    const engine = new FakeEngine(letters, { contextLength: 1 << 20 });
    for await (const delta of new Session(engine, byteText).run(job({}))) if (delta.type === "content") break;
    expect(engine.running).toBe(0);
    expect(engine.aborts).toEqual(["whole"]);
  });

  it("shows special tokens where they are wanted, and the caller's stop ids with includeStop", async () => {
    const engine = new FakeEngine((_request, _index, position) => [97, eos, 98, 99][position]);
    const session = new Session(engine, byteText);
    const ask = async (fields: Partial<ChatJob>) => (await collect(session.run(job(fields)))).choices[0].text;
    expect(await ask({ stopIds: [99] })).toBe("a");
    expect(await ask({ stopIds: [99], ignoreEos: true })).toBe("ab");
    expect(await ask({ stopIds: [99], ignoreEos: true, includeStop: true })).toBe("abc");
    expect(await ask({ stopIds: [99], ignoreEos: true, skipSpecialTokens: false })).toBe("a</s>b");
  });

  it("gives a half character at the end as U+FFFD", async () => {
    const engine = new FakeEngine((_request, _index, position) => [97, 0xf0, 0x9f][position]);
    const { choices } = await collect(new Session(engine, byteText).run(job({ maxTokens: 3 })));
    expect(choices[0].text).toBe("a\ufffd");
    expect(choices[0].tokens.length).toBe(3);
  });

  it("refuses far too long texts before they are tokenized", async () => {
    const untokenized = { ...byteText.tokenizer, encode: () => expect.fail("it was tokenized") };
    const session = new Session(new FakeEngine(), { tokenizer: untokenized, template: byteText.template });
    expect(() => session.prepare(job({ prompt: "x".repeat(5000) }))).toThrow(/context is 256.*at least 834 tokens/);
    const messages = [{ role: "user" as const, content: "x".repeat(5000) }];
    expect(() => session.prepare(job({ prompt: undefined, messages }))).toThrow(/at least 834 tokens/);
    const many = Array.from({ length: 300 }, () => ({ role: "user" as const, content: "" }));
    expect(() => session.prepare(job({ prompt: undefined, messages: many }))).toThrow(/there are 300 messages/);
  });

  it("asks for exactly one kind of prompt", async () => {
    const session = new Session(new FakeEngine(), byteText);
    expect(() => session.prepare(job({ promptIds: Int32Array.of(1) }))).toThrow(/exactly one/);
    expect(() => session.prepare(job({ prompt: undefined }))).toThrow(/exactly one/);
    expect(() => session.prepare(job({ prompt: undefined, promptIds: Int32Array.of(-1) }))).toThrow(/0 to 264/);
    const bias = { ...plainSampling, seed: 0n, logitBias: [[Number.NaN, 1] as const] };
    expect(() => session.prepare(job({ sampling: bias }))).toThrow(/id NaN is not/);
  });
});

describe("sampling defaults", () => {
  const huggingFace = (generationConfig: Record<string, unknown>) =>
    samplingDefaults({ kind: "huggingface", files: { config: {}, generationConfig } });

  it("are the model's own, where it has any, and nothing is added to them", () => {
    expect(huggingFace({ temperature: 0.6, top_p: 0.9 })).toEqual({ ...off, temperature: 0.6, topP: 0.9 });
    expect(huggingFace({ do_sample: false, temperature: 0.6 })).toEqual({ ...off, temperature: 0 });
    expect(huggingFace({ temperature: 0.6, top_k: -1 })).toEqual({ ...off, temperature: 0.6, topK: 0 });
    const warnings: string[] = [];
    setLog((_level, message, { value }) => warnings.push(`${message}, ${value}`));
    expect(huggingFace({ top_p: 7 })).toMatchObject({ temperature: 0.8, topK: 40, topP: 0.95, minP: 0.05 });
    setLog(null);
    expect(warnings).toEqual(["the model's own top_p is no value for it: it is left out, 7"]);
    const values = new Map<string, number>([["general.sampling.temp", 0.3]]);
    expect(samplingDefaults({ kind: "gguf", values })).toEqual({ ...off, temperature: 0.3 });
    expect(samplingDefaults({ kind: "gguf", values: new Map() }).temperature).toBe(0.8);
  });

  it("and end tokens are read where there is no tokenizer", async () => {
    const files = { config: { eos_token_id: [2, 7] }, generationConfig: { eos_token_id: 9 } };
    expect(configuredEndIds({ kind: "huggingface", files })).toEqual([9, 2, 7]);
    const session = new Session(new FakeEngine((_r, _i, position) => [5, 7, 6][position]), undefined, [7]);
    const prompt = { prompt: undefined, promptIds: Int32Array.of(1), maxTokens: 3 };
    expect((await collect(session.run(job(prompt)))).choices[0]).toMatchObject({ reason: "stop", stop: 7 });
    const ignoring = (await collect(session.run(job({ ...prompt, ignoreEos: true })))).choices[0];
    expect(ignoring.tokens.map(({ id }) => id)).toEqual([5, 7, 6]);
  });

  const off = { ...plainSampling };
});
