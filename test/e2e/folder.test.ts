// Hugging Face folders through the public library as it is installed: config.json, weights, tokenizer.json and a chat
// template in, the answer that transformers gives out, from text, from ids and from a conversation.
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import type * as Library from "../../src/index.js";
import { goldenCases, goldenNames } from "../support/golden.js";

const { open } = (await import(new URL("../../dist/index.js", import.meta.url).href)) as typeof Library;
const golden = fileURLToPath(new URL("../golden/tiny/", import.meta.url));
const home = mkdtempSync(join(tmpdir(), "millrace-folder-"));
afterAll(() => rmSync(home, { recursive: true }));

const device = whyNoNative() ? "reference" : "cpu";
if (device === "reference") console.warn(`SKIPPED: folders on the cpu device: ${whyNoNative()}`);

/** Every id is one character, so that any ids can be written as a text. */
const text = (ids: readonly number[]) => String.fromCodePoint(...ids.map((id) => 0x4e00 + id));

function writeFolder(name: string, vocabSize: number): string {
  const folder = join(home, name);
  cpSync(`${golden}${name}`, folder, { recursive: true });
  const ids = Array.from({ length: vocabSize }, (_, id) => id);
  const model = { type: "BPE", vocab: Object.fromEntries(ids.map((id) => [text([id]), id])), merges: [] };
  const stages = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: { type: "Fuse" } };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify({ version: "1.0", added_tokens: [], ...stages, model }));
  const chatTemplate = "{% for message in messages %}{{ message.content }}{% endfor %}";
  writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ chat_template: chatTemplate }));
  return folder;
}

describe.each(goldenNames)("%s", (name) => {
  const cases = goldenCases(name);
  let model: Library.Model;
  beforeAll(async () => {
    const folder = writeFolder(name, cases[0].last_logits.length);
    model = await open(folder, { device, kvDtype: "f32", threads: 2 });
  });
  afterAll(() => model?.close());

  test("text, ids and a conversation give the tokens and log-probabilities that transformers gives", async () => {
    for (const { prompt_ids: prompt, greedy_ids: answer, steps } of cases) {
      const options = { temperature: 0, repetitionPenalty: 1, maxTokens: answer.length, ignoreEos: true, logprobs: 5 };
      const said = await Promise.all([
        model.generate(text(prompt), options).result(),
        model.generate(prompt, options).result(),
        model.chat(text(prompt), options).result(),
      ]);
      for (const { tokens, text: written } of said) {
        expect(tokens.map(({ id }) => id)).toEqual(answer);
        expect(written).toBe(text(answer));
        tokens.forEach(({ logprobs }, step) => {
          for (const [id, logprob] of steps[step].top5.slice(0, 3)) {
            const found = logprobs!.top.find(([other]) => other === id);
            expect(Math.abs(found![1] - logprob)).toBeLessThan(0.02);
          }
        });
      }
    }
  });
});
