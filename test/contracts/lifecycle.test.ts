// What a Program owes besides steps: weights that go and come back, another checkpoint's weights, dumps, pages as bytes,
// and a memory report that is kept.
import { expect, test } from "vitest";
import { UserError } from "../../src/base/errors.js";
import type { WeightSource } from "../../src/device/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { batchOf, limits, PageKeeper, updates } from "../support/batch.js";
import { describeDevices } from "../support/devices.js";
import { goldenCases, openTiny } from "../support/golden.js";
import { compileTiny, generate } from "../support/tiny.js";

const name = "llama-mha";
const prompt = goldenCases(name)[1].prompt_ids;

await describeDevices("a program", (device) => {
  test("sleeps, refuses to run, wakes and answers as before", async () => {
    const { program } = await compileTiny(device, name);
    const before = await generate(program, prompt, 4);
    await program.sleep();
    expect(() => program.run(batchOf([{ slot: 0, tokens: [1], kvStart: 0, pages: [[0]] }]))).toThrow();
    await program.wake();
    expect(await generate(program, prompt, 4)).toEqual(before);
    await program.close();
  });

  test("takes the weights of another checkpoint of the same shape", async () => {
    const { program, checkpoint } = await compileTiny(device, name);
    const before = await generate(program, prompt, 4);
    await program.swapWeights(mixedUp(checkpoint));
    const other = await generate(program, prompt, 4);
    expect(other.logits).not.toEqual(before.logits);
    await program.swapWeights(checkpoint);
    expect(await generate(program, prompt, 4)).toEqual(before);
    await program.close();
  });

  test("dumps what it was compiled to keep, and says why it cannot dump the rest", async () => {
    const { program, plan } = await compileTiny(device, name);
    await generate(program, prompt, 1);
    expect((await program.dump("layers.1.self_attn.o_proj")).shape).toEqual([prompt.length, 64]);
    await expect(program.dump("layers.9.nothing")).rejects.toThrow(UserError);
    await program.close();
    const silent = await device.compile(plan, await openTiny(name), limits, { dump: false });
    await expect(silent.dump("logits")).rejects.toThrow(UserError);
    await silent.close();
  });

  test("a sequence goes on from pages that were read out and written back elsewhere", async () => {
    const { program } = await compileTiny(device, name);
    const truth = (await generate(program, prompt, 6)).tokens;
    const [pages] = new PageKeeper(program).take(prompt.length + 6);
    const bytes = await program.readPages(0, Int32Array.from(pages));
    expect(bytes.length).toBe(pages.length * program.caches[0].pageBytes);
    const elsewhere = pages.map((page) => page + 20);
    program.writePages(0, Int32Array.from(elsewhere), bytes);
    const kvStart = prompt.length;
    const part = { slot: 3, tokens: [truth[0]], kvStart, pages: [elsewhere] };
    const step = program.run(batchOf([part], { updates: updates([[3, {}]]) }));
    expect((await step.result).tokens[0]).toBe(truth[1]);
    await program.close();
  });

  test("uses the memory that the estimate said, and refuses what cannot fit with the numbers", async () => {
    const { plan, checkpoint, program: keeping } = await compileTiny(device, name);
    await keeping.close();
    const program = await device.compile(plan, checkpoint, limits, { dump: false });
    expect(device.estimate(plan, limits)).toEqual(program.memory);
    const { weights, workspace, cache, pagesPerGroup, maxContext } = program.memory;
    expect(weights + workspace + cache).toBeLessThanOrEqual(limits.memoryBytes);
    expect(pagesPerGroup).toEqual([limits.maxPages]);
    expect(cache).toBe(limits.maxPages * program.caches[0].pageBytes);
    expect(maxContext).toBe(limits.contextLength);
    const tight = { ...limits, memoryBytes: weights + workspace + 3 * program.caches[0].pageBytes };
    expect(device.estimate(plan, tight).maxContext).toBeLessThanOrEqual(3 * program.caches[0].pageTokens);
    expect(() => device.estimate(plan, { ...limits, memoryBytes: weights })).toThrow(/\d+ bytes/);
    expect(() => device.estimate(plan, { ...limits, memoryBytes: weights })).toThrow(UserError);
    await program.close();
  });

  test("loading reports its progress and can be aborted", async () => {
    const checkpoint = await openTiny(name);
    const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
    const seen: number[] = [];
    const onProgress = (done: number, total: number) => seen.push(done / total);
    await (await device.compile(plan, checkpoint, limits, { onProgress })).close();
    expect(seen.at(-1)).toBe(1);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
    const aborted = AbortSignal.abort();
    await expect(device.compile(plan, checkpoint, limits, { signal: aborted })).rejects.toThrow(/abort/i);
  });
});

/** Two layers' matrices exchanged: another model of the same shape. */
function mixedUp(source: WeightSource): WeightSource {
  const swap = (tensor: string) => tensor.replace(/layers\.([01])\./, (_, i) => `layers.${1 - Number(i)}.`);
  return { tensors: source.tensors, read: (tensor) => source.read(swap(tensor)), release: () => {} };
}
