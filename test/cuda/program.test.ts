// What only a device with a queue can get wrong: graphs against single launches, and steps that start before the host has
// seen the last one's tokens. The same tokens and logprobs to the bit.
import { expect, test } from "vitest";
import { CudaDevice } from "../../src/device/cuda/device.js";
import { whyNoCuda } from "../../src/device/cuda/native.js";
import type { Program } from "../../src/device/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { batchOf, limits, PageKeeper, type Part, updates } from "../support/batch.js";
import { openTiny } from "../support/golden.js";

const absent = whyNoCuda();
if (absent) console.warn(`SKIPPED: programs on a GPU: ${absent}`);

const sequences = 3;
const steps = 20;

async function compile(graphs: boolean): Promise<Program> {
  const device = new CudaDevice(0, { graphs });
  const checkpoint = await openTiny("llama-gqa-llama3rope");
  const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
  return device.compile(plan, checkpoint, limits, { dump: false });
}

/** Prompts, then an answer drawn token by token; depth 2: a step is launched with tokens that the host does not know yet. */
async function answers(program: Program, depth: 1 | 2): Promise<{ tokens: number[]; logprobs: number[] }> {
  const keeper = new PageKeeper(program);
  const prompts = Array.from({ length: sequences }, (_, s) =>
    Array.from({ length: 5 + 30 * s }, (_, t) => 3 + 7 * s + t),
  );
  const pages = prompts.map((prompt) => keeper.take(prompt.length + steps + 1));
  const out = { tokens: [] as number[], logprobs: [] as number[] };
  const settings = prompts.map((_, s) => [s, { temperature: s, topP: 0.9, topK: 50, seed: 3 }] as const);
  const first: Part[] = prompts.map((tokens, s) => ({ slot: s, tokens, kvStart: 0, pages: pages[s] }));
  const flights = [program.run(batchOf(first, { updates: updates(settings) }))];
  for (let n = 0; n < steps; n++) {
    const next = (): Part[] =>
      prompts.map((prompt, s) => ({ slot: s, tokens: [-1 - s], kvStart: prompt.length + n, pages: pages[s] }));
    if (depth === 2) flights.push(program.run(batchOf(next())));
    const { tokens, logprobs } = await flights.shift()!.result;
    out.tokens.push(...tokens);
    out.logprobs.push(...logprobs);
    if (depth === 1) flights.push(program.run(batchOf(next())));
  }
  await flights[0].result;
  return out;
}

test.skipIf(absent !== undefined)("graphs and single launches, one step in flight and two: the same bits", async () => {
  const graphs = await compile(true);
  const truth = await answers(graphs, 1);
  expect(await answers(graphs, 1)).toEqual(truth);
  expect(await answers(graphs, 2)).toEqual(truth);
  const single = await compile(false);
  expect(await answers(single, 2)).toEqual(truth);
  await graphs.close();
  await single.close();
});
