// Models of shapes that none of the named ones has, from GGUFs and Hugging Face folders: the cpu device computes what the
// reference device computes, at every storage type, prompts and answers, and draws the same tokens.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { StorageType } from "../../src/base/dtype.js";
import { CpuDevice } from "../../src/device/cpu/device.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { asGguf } from "../support/as-gguf.js";
import { goldenNames, openTiny } from "../support/golden.js";
import { generate } from "../support/tiny.js";
import { type OddModel, writeOddGguf } from "./odd-model.js";
import { compileModel, randomIds } from "./world.js";

const folder = mkdtempSync(join(tmpdir(), "millrace-shapes-"));
afterAll(() => rmSync(folder, { recursive: true }));

const quantised = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] as const;
const superBlocks = ["Q4_K", "Q5_K", "Q6_K"] as const;
const wide = ["F16", "BF16", "F32"] as const;

const odd: readonly (OddModel & { name: string })[] = [
  ...[...quantised, ...wide].map((type) => ({
    ...{ name: `${type}: 3 kv heads of 80, an odd feed-forward`, type, layers: 1, hidden: 288, feedForward: 224 },
    ...{ heads: 6, kvHeads: 3, headDim: 80, vocabSize: 301 },
  })),
  // rows of the K types are whole super-blocks of 256 values
  ...superBlocks.map((type) => ({
    ...{ name: `${type}: one kv head, tied`, type, layers: 1, hidden: 512, feedForward: 256, tied: true },
    ...{ heads: 3, kvHeads: 1, headDim: 256, vocabSize: 293 },
  })),
  {
    name: "qwen2: biases",
    architecture: "qwen2",
    type: "Q8_0",
    qkvBias: true,
    heads: 6,
    kvHeads: 2,
    headDim: 32,
    hidden: 192,
  },
  {
    name: "qwen3: norms of q and k",
    architecture: "qwen3",
    type: "Q4_1",
    qkNorm: true,
    heads: 4,
    kvHeads: 4,
    headDim: 128,
  },
  { name: "rope in steps of another base", type: "F16", heads: 4, kvHeads: 2, headDim: 36, hidden: 160, ropeBase: 1e6 },
  { name: "linear rope scaling", type: "Q5_0", ropeLinear: 4, heads: 5, kvHeads: 5, headDim: 64, hidden: 320 },
  { name: "a tensor of rope factors", type: "Q4_0", ropeFactors: true, heads: 4, kvHeads: 2, headDim: 48, hidden: 96 },
  {
    name: "mixed types",
    type: "Q4_K",
    valueType: "Q6_K",
    downType: "Q5_1",
    embeddingType: "Q6_K",
    hidden: 256,
    headDim: 64,
    heads: 4,
    kvHeads: 2,
  },
  {
    name: "a vocabulary of 2 and heads of 16",
    type: "BF16",
    vocabSize: 2,
    heads: 2,
    kvHeads: 2,
    headDim: 16,
    hidden: 32,
    feedForward: 32,
  },
];

/** Largest error of a logit over the largest logit. Weights in floats meet tokens in f32; the others meet tokens rounded
 *  to 8 bits, and two or three layers of that. */
const allowed = (type: StorageType) => (type.startsWith("Q") ? 4e-2 : 1e-3);

const absent = whyNoNative();
if (absent) console.warn(`SKIPPED: odd shapes on the cpu device: ${absent}`);

describe.skipIf(absent !== undefined)("cpu and reference agree", () => {
  test.each(odd)("$name", async ({ name, ...model }) => {
    const path = join(folder, `${name.replaceAll(/\W+/g, "-")}.gguf`);
    writeOddGguf(path, model);
    await agree(await openCheckpoint(path), allowed(model.type));
  });

  test.each(goldenNames)("%s, as a folder and as a GGUF", async (name) => {
    const folder = await openTiny(name);
    await agree(asGguf(folder), 1e-3, false);
    await agree(folder, 1e-3);
  });
});

async function agree(checkpoint: Checkpoint, limit: number, close = true): Promise<void> {
  const truth = await compileModel(new ReferenceDevice(), checkpoint, {}, true);
  const program = await compileModel(new CpuDevice(), checkpoint, {}, true);
  for (const length of [1, 37]) {
    const prompt = randomIds(length, program.vocabSize, length);
    const steps = 6;
    const right = await generate(truth, prompt, steps);
    const { logits, tokens } = await generate(program, prompt, steps);
    const largest = Math.max(...right.logits.map(Math.abs));
    const worst = Math.max(...logits.map((value, i) => Math.abs(value - right.logits[i])));
    expect(logits).toHaveLength(program.vocabSize);
    expect(worst / largest).toBeLessThanOrEqual(limit);
    const [first, second] = [...right.logits].sort((a, b) => b - a);
    if (first - second > 2 * limit * largest) expect(tokens[0]).toBe(right.tokens[0]);
    // in floats a near tie is rare enough for the whole answer
    if (limit < 1e-2) expect(tokens).toEqual(right.tokens);
  }
  await truth.close();
  await program.close();
  if (close) checkpoint.close();
}
