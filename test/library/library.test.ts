// The public library as it is installed: compiled, its engine in a worker thread, a tiny model on the reference device.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as Library from "../../src/index.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const { open, UserError } = (await import(new URL("../../dist/index.js", import.meta.url).href)) as typeof Library;

let folder: string;
let path: string;
let model: Library.Model;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "millrace-library-"));
  path = join(folder, "tiny.gguf");
  writeTinyLlamaGguf(path, { contextLength: 512 });
  model = await open(path, { device: "reference", threads: 1, maxSequences: 4 });
});
afterAll(async () => {
  await model?.close();
  rmSync(folder, { recursive: true });
});

const greedy = { temperature: 0, maxTokens: 12, ignoreEos: true };

describe("the library", () => {
  it("generates: parts, text and result agree", async () => {
    const parts: string[] = [];
    const generation = model.generate("Once upon", greedy);
    for await (const { text } of generation) parts.push(text);
    const result = await generation.result();
    expect(parts.join("")).toBe(result.text);
    expect(await model.generate("Once upon", greedy).text()).toBe(result.text);
    expect(result.finishReason).toBe("length");
    expect(result.tokens.length).toBe(12);
    expect(result.timings.generatedTokens).toBe(12);
    expect(result.promptTokens).toBe(model.tokenize("Once upon", { bos: true }).length);
    expect(() => generation[Symbol.asyncIterator]()).toThrow(/read already/);
  });

  it("takes token ids, gives log-probabilities, and n answers by seed", async () => {
    const options = { maxTokens: 6, ignoreEos: true, temperature: 1, topK: 0, topP: 1, minP: 0, n: 3, logprobs: 2 };
    const first = await model.generate([1, 2, 3], { ...options, seed: 7 }).result();
    expect(first.choices.length).toBe(3);
    expect(first.choices[0].tokens[0].logprobs!.top.length).toBe(2);
    const again = await model.generate([1, 2, 3], { ...options, seed: 7 }).result();
    const ids = (result: Library.GenerationResult) => result.choices.map((choice) => choice.tokens.map(({ id }) => id));
    expect(ids(again)).toEqual(ids(first));
    const alone = await model.generate([1, 2, 3], { ...options, n: 1, seed: 8n }).result();
    expect(alone.tokens.map(({ id }) => id)).toEqual(ids(first)[1]);
  });

  it("chats with the model's template", async () => {
    const answer = await model.chat([{ role: "user", content: "Hello" }], greedy).result();
    const rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    expect(answer.promptTokens).toBe(model.tokenize(rendered, { bos: true, special: true }).length);
    expect(await model.chat("Hello", greedy).text()).toBe(answer.text);
  });

  it("tokenizes and back", () => {
    const text = "Hello there 🙂";
    expect(model.detokenize(model.tokenize(text))).toBe(text);
    expect(model.detokenize(model.tokenize("<|im_end|>", { special: true }))).toBe("");
    expect(model.detokenize(model.tokenize("<|im_end|>", { special: true }), { special: true })).toBe("<|im_end|>");
  });

  it("is abortable, by signal and by leaving the loop", async () => {
    const endless = { ignoreEos: true, temperature: 0 };
    const controller = new AbortController();
    const aborted = model.generate("a", { ...endless, signal: controller.signal });
    const reading = (async () => {
      for await (const _ of aborted) controller.abort(new Error("enough"));
    })();
    await expect(reading).rejects.toThrow("enough");
    const left = model.generate("a", endless);
    for await (const _ of left) break;
    expect((await left.result()).finishReason).toBe("abort");
    const quiet = model.generate("a", endless);
    for await (const _ of quiet) quiet.abort();
    expect((await quiet.result()).finishReason).toBe("abort");
    await expect(model.generate("a", { signal: AbortSignal.abort() }).text()).rejects.toThrow(/abort/i);
  });

  it("refuses what cannot be, before anything runs", () => {
    expect(() => model.generate("a", { temperature: -1 })).toThrow(/temperature must be/);
    expect(() => model.generate("a", { topP: 0 })).toThrow(/topP must be/);
    expect(() => model.generate([99999])).toThrow(/0 to 287/);
    expect(() => model.generate("a", { maxTokens: 9999 })).toThrow(/context is 512 tokens.*9999 to generate/);
    expect(() => model.generate("a", { maxTokens: 9999 })).toThrow(UserError);
  });

  it("tells what it opened, and what opening cannot do", async () => {
    expect(model.info).toMatchObject({ contextLength: 512, vocabSize: 288, maxSequences: 4 });
    expect(model.sampling).toMatchObject({ temperature: 0.8, topK: 40 });
    await expect(open(join(folder, "missing.gguf"))).rejects.toThrow(/missing\.gguf/);
    await expect(open(path, { contextLength: 100_000, device: "reference" })).rejects.toThrow(/100000/);
  });

  it("closes: what runs ends, and nothing can be asked any more", async () => {
    const other = await open(path, { device: "reference", threads: 1 });
    const running = other.generate("a", { ignoreEos: true, temperature: 0 });
    const parts = running[Symbol.asyncIterator]();
    await parts.next();
    await other.close();
    expect((await running.result()).finishReason).toBe("abort");
    await expect(other.generate("a").text()).rejects.toThrow(/closed/);
  });
});
