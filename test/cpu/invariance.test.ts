// The bits of a row depend on that row alone: not on who runs beside it, how its prompt is cut, or how many threads there
// are; whatever the cache's number format.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CpuDevice } from "../../src/device/cpu/device.js";
import type { Program } from "../../src/device/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { batchOf, updates } from "../support/batch.js";
import { openTiny } from "../support/golden.js";
import type { TinyLlama } from "../support/tiny-llama.js";
import { compileTiny, limits, pageRange, randomTokens, score } from "./support.js";

const model: TinyLlama = {
  type: "Q4_1",
  embeddingType: "Q8_0",
  outputType: "Q8_0",
  layers: 2,
  hidden: 192,
  feedForward: 256,
  heads: 6,
  kvHeads: 2,
  contextLength: 1024,
};

describe.each(["f16", "q8"] as const)("with a cache in %s", (kvDtype) => {
  // Long enough to cross a part of attention (256 positions) and not a whole number of blocks or pages.
  const length = 600;
  let program: Program;
  let text: number[];
  let alone: Float32Array;

  beforeAll(async () => {
    program = await compileTiny(model, { kvDtype });
    text = randomTokens(length, program.vocabSize, 7);
    [alone] = await score(program, [text], 512);
  });
  afterAll(() => program.close());

  test("the model says something", () => {
    expect(new Set(alone).size).toBeGreaterThan(length / 2);
    expect(alone.every((value) => Number.isFinite(value) && value < 0)).toBe(true);
  });

  test.each([1, 3, 17, 256])("chunks of %i tokens", async (chunk) => {
    const [cut] = await score(program, [text], chunk);
    expect(cut).toEqual(alone);
  });

  test.each([1, 2, 5, 31])("among 15 others, %i tokens of each a step", async (chunk) => {
    const others = Array.from({ length: 15 }, (_, i) => randomTokens(40 + 37 * i, program.vocabSize, 100 + i));
    const [first] = await score(program, [text, ...others], chunk);
    expect(first).toEqual(alone);
  });

  test.each([1, 3, 5])("%i threads", async (threads) => {
    const other = await compileTiny(model, { threads, kvDtype });
    expect((await score(other, [text], 512))[0]).toEqual(alone);
    expect((await score(other, [text], 1))[0]).toEqual(alone);
    await other.close();
  });

  test("pages that were read, and written into another program", async () => {
    await score(program, [text], 512);
    const other = await compileTiny(model, { kvDtype });
    const ids = Int32Array.from(pageRange(0, 320));
    other.writePages(0, ids, await program.readPages(0, ids));
    const tokens = text.slice(320, length - 1);
    const rest = { slot: 0, tokens, kvStart: 320, pages: [pageRange(0, length)] };
    const part = { ...rest, rows: tokens.map((_, i) => i), targets: text.slice(321) };
    const { logprobs } = await other.run(batchOf([part], { updates: updates([[0, {}]]) })).result;
    expect(logprobs).toEqual(alone.slice(320));
    await other.close();
  });

  test("a prefix whose pages were copied", async () => {
    await score(program, [text], 512);
    const from = Int32Array.from(pageRange(0, 320));
    const to = from.map((page) => page + 500);
    program.copyPages(0, from, to);

    const tokens = text.slice(320, length - 1);
    const part = {
      slot: 3,
      tokens,
      kvStart: 320,
      pages: [[...to, ...pageRange(700, length - 320)]],
      rows: tokens.map((_, i) => i),
      targets: text.slice(321),
    };
    const { logprobs } = await program.run(batchOf([part], { updates: updates([[3, {}]]) })).result;
    expect(logprobs).toEqual(alone.slice(320));
  });

  test.each(["mistral-swa", "gemma3", "llama-mqa", "qwen3-moe"])(
    "%s: windows, head norms, one key/value head, experts",
    async (family) => {
      const checkpoint = await openTiny(family);
      const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
      const device = new CpuDevice();
      const bits: Float32Array[] = [];
      for (const [threads, chunk] of [
        [2, 512],
        [1, 1],
        [2, 3],
        [3, 50],
      ]) {
        const own = await device.compile(plan, checkpoint, { ...limits, threads, kvDtype, contextLength: 512 });
        const tiny = randomTokens(300, own.vocabSize, 9);
        bits.push((await score(own, [tiny, tiny.slice(5, 100)], chunk))[0]);
        await own.close();
      }
      for (const other of bits.slice(1)) expect(other).toEqual(bits[0]);
      checkpoint.close();
    },
  );
});
