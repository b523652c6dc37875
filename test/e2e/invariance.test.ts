// The same request gives the same tokens and log-probabilities to the bit: alone, among 15 others, however its prompt is
// cut, from the cache or cold, preempted or not, on one thread or two, as one of n choices. From the engine down to the
// kernels, on models of every storage type, with windows, and on the real SmolLM2.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CpuDevice } from "../../src/device/cpu/device.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import type { Device, Program } from "../../src/device/device.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import type { GenerateRequest } from "../../src/engine/types.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { openTiny } from "../support/golden.js";
import { smollm2 } from "../support/models.js";
import { type TinyLlama, writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { compileModel, drawn, randomIds, request, runAll, type Said } from "./world.js";

interface Subject {
  readonly name: string;
  readonly open: () => Promise<Checkpoint>;
  readonly device: () => Device;
  readonly budgets: readonly number[];
  readonly prompt: number;
  readonly generate: number;
  /** Tokens of the others' prompts: the first has least, each has `more` more. */
  readonly others: { readonly least: number; readonly more: number };
}

const folder = mkdtempSync(join(tmpdir(), "millrace-e2e-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function tinyGguf(model: TinyLlama): Promise<Checkpoint> {
  const path = join(folder, `${JSON.stringify(model).replaceAll(/\W+/g, "-")}.gguf`);
  writeTinyLlamaGguf(path, model);
  return openCheckpoint(path);
}

const cpu = () => new CpuDevice();
const small = { budgets: [1, 3, 17, 512], prompt: 83, generate: 10, others: { least: 5, more: 7 } };
const types = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"] as const;
const absent = whyNoNative();
if (absent) console.warn(`SKIPPED: invariance on the cpu device: ${absent}`);

const subjects: readonly Subject[] = [
  ...(absent ? [] : types).map((type) => ({
    ...{ name: `${type} on cpu`, device: cpu, ...small },
    open: () => tinyGguf({ type, layers: 2 }),
  })),
  // windows of 8: most of the prompt is behind them, and pages are given back on the way
  ...(absent ? [] : ["gemma3", "mistral-swa", "qwen2"]).map((name) => ({
    ...{ name: `${name} on cpu`, device: cpu, ...small },
    open: () => openTiny(name),
  })),
  ...(absent ? [] : ["SmolLM2 on cpu"]).map((name) => ({
    ...{ name, device: cpu, budgets: [17, 512], prompt: 50, generate: 5, others: { least: 3, more: 1 } },
    open: () => openCheckpoint(smollm2()),
  })),
  {
    ...{ name: "Q5_1 on reference", device: () => new ReferenceDevice() },
    open: () => tinyGguf({ type: "Q5_1", hidden: 64, feedForward: 96, layers: 2 }),
    ...{ budgets: [3, 512], prompt: 40, generate: 5, others: { least: 2, more: 1 } },
  },
];

describe.each(subjects)("$name", ({ open, device: openDevice, budgets, prompt, generate, others }) => {
  let device: Device;
  let checkpoint: Checkpoint;
  let program: Program;
  /** Draws, and the same without any draw's luck: greedy with the prompt's log-probabilities. */
  let subject: GenerateRequest;
  let scored: GenerateRequest;
  let crowd: GenerateRequest[];
  let alone: Said;
  let scoredAlone: Said;

  beforeAll(async () => {
    device = openDevice();
    checkpoint = await open();
    program = await compileModel(device, checkpoint, { threads: 2 });
    const { vocabSize } = program;
    const ids = randomIds(prompt, vocabSize, 7);
    subject = request("it", ids, { sampling: drawn, maxTokens: generate });
    scored = request("scored", ids, { promptLogprobs: 2, maxTokens: 2 });
    crowd = Array.from({ length: 15 }, (_, i) =>
      request(`other ${i}`, randomIds(others.least + others.more * i, vocabSize, 100 + i), {
        sampling: i % 2 ? { ...drawn, seed: BigInt(i) } : drawn,
        maxTokens: generate,
      }),
    );
    const { said } = await runAll(program, [subject]);
    alone = said.get("it")!;
    scoredAlone = (await runAll(program, [scored])).said.get("scored")!;
  });
  afterAll(async () => {
    await program?.close();
    checkpoint?.close();
    await device?.close();
  });

  test("it says something that could differ", () => {
    const [{ tokens, logprobs, reason }] = alone.choices;
    expect(reason).toBe("length");
    expect(tokens).toHaveLength(generate);
    const values = logprobs.flatMap((entry) => [entry!.logprob, ...entry!.top.map(([, logprob]) => logprob)]);
    expect(values.every((value) => Number.isFinite(value) && value <= 0)).toBe(true);
    expect(new Set(values).size).toBeGreaterThan(2 * generate);
    expect(new Set(scoredAlone.promptLogprobs!.slice(1).map((entry) => entry!.logprob)).size).toBeGreaterThan(
      prompt / 2,
    );
  });

  test.each(budgets)("alone, %i tokens a step", async (stepTokens) => {
    expect((await runAll(program, [subject], { stepTokens })).said.get("it")).toEqual(alone);
    expect((await runAll(program, [scored], { stepTokens })).said.get("scored")).toEqual(scoredAlone);
  });

  test.each(budgets)("among 15 others, %i tokens a step", async (stepTokens) => {
    const where = [...crowd.slice(0, 6), subject, ...crowd.slice(6)];
    expect((await runAll(program, where, { stepTokens })).said.get("it")).toEqual(alone);
  });

  test("its prompt found in the cache, whole or in part", async () => {
    const again = { ...subject, id: "again" };
    const beginning = subject.promptIds.subarray(0, Math.floor(prompt * 0.6));
    const part = request("part", [...beginning, 1, 2, 3]);
    for (const first of [subject, part]) {
      const arrivals = { steps: Number.POSITIVE_INFINITY, requests: [again] };
      const warm = (await runAll(program, [first], { prefixCache: true, arrivals })).said.get("again")!;
      expect(warm.cachedTokens).toBeGreaterThan(0);
      expect(warm.choices).toEqual(alone.choices);
    }
  });

  test("preempted by requests that go before it", async () => {
    const longest = Math.max(prompt, others.least + 14 * others.more) + generate + 1;
    // pages for the longest and a little: not for sixteen
    const tight = { threads: 2, maxTokens: 64, maxPages: Math.ceil(longest / device.info.pageTokens) + 2 };
    const other = await compileModel(device, checkpoint, tight);
    const arrivals = { steps: Math.ceil(prompt / 64) + 2, requests: crowd };
    const patient = { ...subject, priority: 1 };
    const { said, stats } = await runAll(other, [patient], { limits: tight, arrivals });
    expect(stats.preemptions).toBeGreaterThan(0);
    expect(said.get("it")).toEqual(alone);
    await other.close();
  });

  test("one thread", async () => {
    const other = await compileModel(device, checkpoint, { threads: 1 });
    expect((await runAll(other, [subject])).said.get("it")).toEqual(alone);
    expect((await runAll(other, [scored], { stepTokens: 17 })).said.get("scored")).toEqual(scoredAlone);
    await other.close();
  });

  test("as one of three choices", async () => {
    const three = { ...subject, n: 3, sampling: { ...drawn, seed: drawn.seed - 1n } };
    const { said } = await runAll(program, [three]);
    expect(said.get("it")!.choices[1]).toEqual(alone.choices[0]);
    expect(said.get("it")!.choices[0].tokens).not.toEqual(alone.choices[0].tokens);
  });
});
