// Constrained answers of a real model, drawn hot, over schemas and tools of many kinds, in the engine's own thread: whatever
// ends by itself is valid, by another validator's word; a broken grammar, a worker that dies and an abort harm nobody else.
import { createRequire } from "node:module";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as Millrace from "../../src/index.js";
import { smollm2 } from "../support/models.js";

const { open } = (await import(new URL("../../dist/index.js", import.meta.url).href)) as typeof Millrace;
const { answerKinds } = await import(new URL("../../bench/constrained-schemas.mjs", import.meta.url).href);
const { default: Ajv } = createRequire(import.meta.url)("ajv/dist/2020.js");
const ajv = new Ajv({ strict: false, validateFormats: false });

interface Kind {
  readonly name: string;
  readonly options: Millrace.ChatOptions;
  prompt(i: number): string;
  problem(
    result: Millrace.GenerationResult,
    validate: (schema: object, value: unknown) => true | string,
  ): string | undefined;
}

let model: Millrace.Model;
beforeAll(async () => {
  model = await open(smollm2(), { maxSequences: 12 });
});
afterAll(() => model.close());

describe("answers of a real model", () => {
  it.each((answerKinds as Kind[]).map((kind) => [kind.name, kind] as const))("%s", async (_, kind) => {
    const seeds = Array.from({ length: 12 }, (_, i) => i);
    const results = await Promise.all(
      seeds.map((seed) => {
        const options = { ...kind.options, temperature: 0.9, maxTokens: 120, seed };
        return model.chat(kind.prompt(seed), options).result();
      }),
    );
    const complete = results.filter(({ finishReason }) => finishReason !== "length");
    expect(complete.length).toBeGreaterThan(0);
    for (const result of complete) {
      const said = JSON.stringify([result.text, result.toolCalls]);
      expect(
        kind.problem(result, (schema, value) => ajv.validate(schema, value) || ajv.errorsText()),
        said,
      ).toBeUndefined();
    }
  });

  it("is the same whatever runs beside it, and streamed or whole", async () => {
    const kind = (answerKinds as Kind[])[0];
    const ask = () => model.chat(kind.prompt(1), { ...kind.options, temperature: 0.9, maxTokens: 80, seed: 5 });
    const alone = await ask().result();
    const others = [1, 2, 3].map((seed) => model.chat("Tell a story", { maxTokens: 40, seed }).text());
    let streamed = "";
    for await (const { text } of ask()) streamed += text;
    expect(streamed).toBe(alone.text);
    await Promise.all(others);
  });

  it("keeps a choice of several apart", async () => {
    const format = { kind: "choice", choices: ["red", "green", "blue"] } as const;
    const { choices } = await model.chat("Name a colour", { format, n: 4, temperature: 2, seed: 3 }).result();
    expect(choices.every(({ text }) => format.choices.includes(text as "red"))).toBe(true);
  });

  it("a grammar that cannot be read is refused, and no one else notices", async () => {
    const other = model.chat("Say hello", {
      maxTokens: 30,
      temperature: 0,
      format: { kind: "regex", pattern: "[a-z ]{10,60}" },
    });
    const bad = model.chat("x", { format: { kind: "grammar", grammar: 'root ::= ("a" | ' } }).text();
    await expect(bad).rejects.toThrow(/grammar cannot be read/);
    expect(await other.text()).toMatch(/^[a-z ]{10,60}$/);
    const grammar = 'root ::= "answer: " number\n# GBNF\nnumber ::= [0-9]{1,3} ("." [0-9])?';
    expect(await model.chat("2 + 2", { format: { kind: "grammar", grammar }, temperature: 0 }).text()).toMatch(
      /^answer: \d{1,3}(\.\d)?$/,
    );
  });

  it("an abort in the middle leaves the engine as it was", async () => {
    const answer = model.chat("List things", { format: { kind: "json" }, seed: 1 });
    for await (const { tokens } of answer) if (tokens.length > 0) break;
    const { text } = await model.chat("Yes?", { format: { kind: "choice", choices: ["yes", "no"] } }).result();
    expect(["yes", "no"]).toContain(text);
  });

  it("gives every token's log-probability where they are asked for", async () => {
    const format = { kind: "choice", choices: ["yes, of course", "no, never"] } as const;
    const { tokens, text } = await model.chat("Well?", { format, logprobs: 2, temperature: 0 }).result();
    expect(format.choices).toContain(text);
    expect(tokens.every(({ logprobs }) => logprobs !== undefined)).toBe(true);
  });
});
