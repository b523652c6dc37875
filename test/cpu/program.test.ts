// What a cpu program does besides arithmetic: steps that wait for masks, pages out and in, sleep, other weights, refusals.
import { afterAll, beforeAll, expect, test } from "vitest";
import { CpuDevice } from "../../src/device/cpu/device.js";
import type { Program } from "../../src/device/device.js";
import { batchOf, updates } from "../support/batch.js";
import { compileTiny, openTinyModel, pageRange, randomTokens, score } from "./support.js";

const model = { type: "Q8_0", layers: 2, contextLength: 1024 } as const;
let program: Program;
beforeAll(async () => {
  program = await compileTiny(model);
});
afterAll(() => program.close());

const part = (slot: number, tokens: readonly number[], kvStart = 0) => ({
  slot,
  tokens,
  kvStart,
  pages: [pageRange(slot * 20, 320)],
});

function only(program: Program, ids: readonly number[]): Uint32Array {
  const bits = new Uint32Array(Math.ceil(program.vocabSize / 32));
  for (const id of ids) bits[id >> 5] |= 1 << (id & 31);
  return bits;
}

test("a masked row waits, its neighbour does not change, and later steps keep their order", async () => {
  const [a, b] = [randomTokens(20, program.vocabSize, 1), randomTokens(9, program.vocabSize, 2)];
  const fresh = {
    updates: updates([
      [0, {}],
      [1, {}],
    ]),
  };
  const free = await program.run(batchOf([part(0, a), part(1, b)], fresh)).result;

  const masked = program.run(batchOf([part(0, a), part(1, b)], { ...fresh, maskedRows: Int32Array.of(1) }));
  // Asks for what the masked row will draw.
  const next = program.run(batchOf([part(1, [-2], b.length)]));
  const order: string[] = [];
  void masked.result.then(() => order.push("masked"));
  void next.result.then(() => order.push("next"));
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(order).toEqual([]);
  const allowed = (free.tokens[1] + 5) % program.vocabSize;
  masked.setMasks(only(program, [allowed]));
  const [first, second] = [await masked.result, await next.result];
  expect(order).toEqual(["masked", "next"]);
  expect(first.tokens[0]).toBe(free.tokens[0]);
  expect(first.logprobs[0]).toBe(free.logprobs[0]);
  expect(first.tokens[1]).toBe(allowed);

  await program.run(batchOf([part(1, b)], { updates: updates([[1, {}]]) })).result;
  const direct = await program.run(batchOf([part(1, [allowed], b.length)])).result;
  expect(second.tokens).toEqual(direct.tokens);
  expect(second.logprobs).toEqual(direct.logprobs);
});

test("a step may hold at most `depth` others back", () => {
  const tokens = randomTokens(3, program.vocabSize, 3);
  const extra = { updates: updates([[0, {}]]), maskedRows: Int32Array.of(0) };
  const waiting = Array.from({ length: 3 }, () => program.run(batchOf([part(0, tokens)], extra)));
  expect(() => program.run(batchOf([part(0, tokens)], extra))).toThrow(/in flight/);
  for (const step of waiting) step.setMasks(only(program, [1, 2, 3]));
  return Promise.all(waiting.map((step) => step.result));
});

test("closing answers whoever still waits", async () => {
  const own = await compileTiny(model);
  const tokens = randomTokens(3, own.vocabSize, 3);
  const fresh = { updates: updates([[0, {}]]) };
  const masked = own.run(batchOf([part(0, tokens)], { ...fresh, maskedRows: Int32Array.of(0) }));
  const behind = own.run(batchOf([part(0, tokens)]));
  const answers = [masked.result, behind.result, own.readPages(0, Int32Array.of(0))];
  const failed = Promise.all(answers.map((answer) => expect(answer).rejects.toThrow(/closed/)));
  await own.close();
  await failed;
});

test("pages go out and come in again", async () => {
  const text = randomTokens(100, program.vocabSize, 4);
  const [alone] = await score(program, [text], 100);
  const ids = Int32Array.from(pageRange(0, 64));
  const bytes = await program.readPages(0, ids);
  await score(program, [randomTokens(100, program.vocabSize, 5)], 100);
  program.writePages(
    0,
    ids.map((id) => id + 300),
    bytes,
  );
  const tokens = text.slice(64, 99);
  const moved = {
    slot: 0,
    tokens,
    kvStart: 64,
    pages: [[...ids.map((id) => id + 300), ...pageRange(400, 64)]],
    rows: tokens.map((_, i) => i),
    targets: text.slice(65),
  };
  const { logprobs } = await program.run(batchOf([moved])).result;
  expect(logprobs).toEqual(alone.slice(64));
});

test("sleeping and waking changes nothing; other weights change everything", async () => {
  const text = randomTokens(40, program.vocabSize, 6);
  const own = await openTinyModel(model);
  const other = await openTinyModel({ ...model, seed: 99 });
  const [before] = await score(own.program, [text], 40);
  await own.program.sleep();
  expect(() => own.program.run(batchOf([part(0, text)]))).toThrow(/asleep/);
  await own.program.wake();
  expect((await score(own.program, [text], 40))[0]).toEqual(before);
  await own.program.swapWeights(other.checkpoint);
  const [swapped] = await score(own.program, [text], 40);
  expect(swapped).not.toEqual(before);
  expect(swapped).toEqual((await score(other.program, [text], 40))[0]);
  for (const { program, checkpoint } of [own, other]) {
    await program.close();
    checkpoint.close();
  }
});

test("a slot that has sampled nothing has no last token", async () => {
  const fresh = await compileTiny(model);
  await expect(fresh.run(batchOf([part(5, [-6])], { updates: updates([[5, {}]]) })).result).rejects.toThrow(/slot/);
  await fresh.close();
});

test("the memory report refuses what cannot fit, with the numbers", async () => {
  await expect(compileTiny(model, { memoryBytes: 100_000 })).rejects.toThrow(/100000 may be used/);
});

test("many more threads than cores finish", async () => {
  const crowd = await compileTiny(model, { threads: 16 });
  const text = randomTokens(200, crowd.vocabSize, 8);
  expect(await score(crowd, [text], 7)).toEqual(await score(program, [text], 200));
  await crowd.close();
});

test("granting fewer threads and more again changes no bit", async () => {
  const crowd = await compileTiny(model, { threads: 4 });
  const text = randomTokens(200, crowd.vocabSize, 8);
  const expected = await score(program, [text], 200);
  for (const threads of [1, 4, 2, 3, 99, 0]) {
    crowd.setThreads!(threads);
    expect(await score(crowd, [text], 7)).toEqual(expected);
  }
  // A pool whose threads sleep ends like any other.
  await crowd.close();
});

test("the device describes itself", () => {
  const { info } = new CpuDevice();
  expect(info.description).toMatch(/AVX|AMX/);
  expect(info.rowInvariant).toBe(!info.description.includes("AMX"));
});
