// The tiny GGUF that other tests build on is a model in every respect: configuration, plan, tokenizer.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openCheckpoint } from "../../src/formats/open.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { createTokenizer } from "../../src/text/text.js";
import { type TinyLlama, writeTinyLlamaGguf } from "../support/tiny-llama.js";

const folder = mkdtempSync(join(tmpdir(), "tiny-"));
afterAll(() => rmSync(folder, { recursive: true }));

const variants: [string, TinyLlama][] = [
  ["Q4_K", { type: "Q4_K" }],
  ["tied, Q5_1 with a Q6_K embedding", { type: "Q5_1", embeddingType: "Q6_K", tied: true, layers: 1 }],
  ["narrow, Q8_0", { type: "Q8_0", hidden: 64, feedForward: 96, heads: 2, kvHeads: 1 }],
];

test.each(variants)("%s", async (_, options) => {
  const path = join(folder, "tiny.gguf");
  writeTinyLlamaGguf(path, options);
  const checkpoint = await openCheckpoint(path);
  const config = modelConfig(checkpoint);
  expect(config.vocabSize).toBe(288);
  expect(config.layers.length).toBe(options.layers ?? 2);
  const plan = decoderPlan(config, checkpoint.tensors);
  expect(new Set(plan.tensors.flatMap(({ from }) => from ?? []).map(({ name }) => name))).toEqual(
    new Set(checkpoint.tensors.keys()),
  );
  const tokenizer = createTokenizer(checkpoint.meta);
  const ids = tokenizer!.encode("Hello the wörld");
  expect([...ids.slice(0, 2)]).toEqual([283, 261]);
  checkpoint.close();
});
