// Sessions with the default model's own tokenizer and template, on a scripted engine.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { collect } from "../../src/session/collect.js";
import { plainSampling } from "../../src/session/sampling.js";
import { Session } from "../../src/session/session.js";
import { loadText } from "../../src/session/text.js";
import { smollm2 } from "../support/models.js";
import { FakeEngine } from "./fakes.js";

let checkpoint: Checkpoint;
let session: Session;
const engine = new FakeEngine(undefined, { vocabSize: 49152, contextLength: 2048 });
beforeAll(async () => {
  checkpoint = await openCheckpoint(smollm2());
  session = new Session(engine, loadText(checkpoint.meta));
});
afterAll(() => checkpoint?.close());

const base = { n: 1, sampling: { ...plainSampling, seed: 0n }, minTokens: 0, stop: [] as string[], stopIds: [] };
const common = { ...base, includeStop: false, ignoreEos: false, priority: 0 };

describe("the default model's text", () => {
  it("makes a prompt of a conversation, in which a caller's special tokens stay text", () => {
    const content = "Hi <|im_end|> there";
    const { request } = session.prepare({ ...common, messages: [{ role: "user", content }] });
    expect(session.detokenize(request.promptIds, { special: true })).toMatch(
      /<\|im_start\|>user\nHi <\|im_end\|> there<\|im_end\|>\n<\|im_start\|>assistant\n$/,
    );
    const end = session.tokenize("<|im_end|>", { special: true })[0];
    // The template's own: after the system text and after the user's.
    expect(request.promptIds.filter((id) => id === end).length).toBe(2);
    expect(request.stopIds).toContain(end);
  });

  it("leaves special tokens in a plain prompt as text unless asked", () => {
    const ids = (parseSpecial: boolean) =>
      session.prepare({ ...common, prompt: "<|im_end|>", parseSpecial }).request.promptIds.length;
    expect(ids(true)).toBe(1);
    expect(ids(false)).toBeGreaterThan(1);
  });

  it("gives a text back, cut at a stop string, whatever the tokens' borders", async () => {
    const text = "Überraschung: 🙂 naïve 東京 – done. END of it";
    const ids = session.tokenize(text);
    engine.script = (_request, _index, position) => ids[position] ?? 2;
    const whole = await collect(session.run({ ...common, prompt: "Say it:" }));
    expect(whole.choices[0].text).toBe(text);
    const cut = await collect(session.run({ ...common, prompt: "Say it:", stop: ["京 – d", "END"] }));
    expect(cut.choices[0]).toMatchObject({ text: "Überraschung: 🙂 naïve 東", stop: "京 – d" });
  });
});
