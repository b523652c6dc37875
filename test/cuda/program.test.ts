// What only this device can get wrong: graphs against single launches, steps that start before the host has seen the last
// one's tokens, and steps of one token a sequence against those that have prompts beside. The same tokens and logprobs to
// the bit.
import { describe, expect, test } from "vitest";
import { CudaDevice } from "../../src/device/cuda/device.js";
import { whyNoCuda } from "../../src/device/cuda/native.js";
import type { Program } from "../../src/device/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { randomCheckpoint } from "../../src/model/random.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { batchOf, limits, PageKeeper, type Part, updates } from "../support/batch.js";
import { openTiny } from "../support/golden.js";

const absent = whyNoCuda();
if (absent) console.warn(`SKIPPED: programs on a GPU: ${absent}`);

const steps = 20;

async function compile(graphs: boolean, deterministic: boolean): Promise<Program> {
  const device = new CudaDevice(0, { graphs });
  const checkpoint = await openTiny("llama-gqa-llama3rope");
  const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
  return device.compile(plan, checkpoint, { ...limits, deterministic }, { dump: false });
}

/** Prompts, then an answer drawn token by token; depth 2: a step is launched with tokens that the host does not know yet. */
async function answers(
  program: Program,
  sequences: number,
  depth: 1 | 2,
): Promise<{ tokens: number[]; logprobs: number[] }> {
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

describe.skipIf(absent !== undefined).each([{ deterministic: true }, { deterministic: false }])(
  "deterministic: $deterministic",
  ({ deterministic }) => {
    test("graphs and single launches, one step in flight and two: the same bits", async () => {
      const graphs = await compile(true, deterministic);
      const single = await compile(false, deterministic);
      for (const sequences of [1, 3]) {
        const truth = await answers(graphs, sequences, 1);
        expect(await answers(graphs, sequences, 1)).toEqual(truth);
        expect(await answers(graphs, sequences, 2)).toEqual(truth);
        expect(await answers(single, sequences, 2)).toEqual(truth);
      }
      await graphs.close();
      await single.close();
    });
  },
);

const heads = { num_hidden_layers: 2, intermediate_size: 256, vocab_size: 512, max_position_embeddings: 512 };
const llama = { model_type: "llama", hidden_act: "silu", rms_norm_eps: 1e-5, rope_theta: 10_000, ...heads };
const configs: Readonly<Record<string, object>> = {
  "64 (9 on 3)": { ...llama, hidden_size: 576, num_attention_heads: 9, num_key_value_heads: 3 },
  "96 (4 on 4)": { ...llama, hidden_size: 384, num_attention_heads: 4, num_key_value_heads: 4 },
  "128 (8 on 2)": { ...llama, hidden_size: 1024, num_attention_heads: 8, num_key_value_heads: 2 },
  "128 with norms": {
    ...llama,
    ...{ model_type: "qwen3", hidden_size: 512, num_attention_heads: 20, num_key_value_heads: 1, head_dim: 128 },
  },
  "256 with a window": {
    ...{
      model_type: "gemma3_text",
      hidden_activation: "gelu_pytorch_tanh",
      rms_norm_eps: 1e-6,
      rope_theta: 1e6,
      ...heads,
    },
    ...{ hidden_size: 512, num_attention_heads: 4, num_key_value_heads: 1, head_dim: 256, query_pre_attn_scalar: 256 },
    ...{ rope_local_base_freq: 10_000, sliding_window: 80, layer_types: ["sliding_attention", "full_attention"] },
  },
};

/** Logprobs of steps of one token for each of `beside` sequences; mixed: in steps that also have a sequence of two tokens. */
async function stepped(program: Program, beside: number, mixed: boolean): Promise<number[]> {
  const keeper = new PageKeeper(program);
  const prompts = Array.from({ length: beside }, (_, s) =>
    Array.from({ length: 61 + 30 * s }, (_, t) => 3 + ((7 * s + t) % 500)),
  );
  const pages = prompts.map((prompt) => keeper.take(prompt.length + 8));
  const other = keeper.take(32);
  for (const [s, tokens] of prompts.entries()) {
    const settings = updates([[s, {}], ...(s === 0 ? [[beside, {}] as const] : [])]);
    await program.run(batchOf([{ slot: s, tokens, kvStart: 0, pages: pages[s] }], { updates: settings })).result;
  }
  const out: number[] = [];
  for (let n = 0; n < 6; n++) {
    const parts: Part[] = prompts.map((prompt, s) => ({
      ...{ slot: s, tokens: [5 + n], kvStart: prompt.length + n, pages: pages[s], targets: [9] },
    }));
    if (mixed) parts.push({ slot: beside, tokens: [1, 2], kvStart: 2 * n, pages: other });
    const { logprobs } = await program.run(batchOf(parts)).result;
    out.push(...logprobs.subarray(0, beside));
  }
  return out;
}

const cases = Object.entries(configs).flatMap(([name, config]) =>
  (["f16", "bf16"] as const).map((kv) => ({ name, config, kv })),
);

describe.skipIf(absent !== undefined).each(cases)("heads of $name, $kv", ({ config, kv }) => {
  test("one token a sequence, alone or beside a prompt: the same bits", async () => {
    const device = new CudaDevice(0, {});
    const about = { config: config as Record<string, unknown>, quantisation: "bf16" as const, seed: 7, name: "heads" };
    const checkpoint = randomCheckpoint(about);
    const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
    for (const beside of [1, 3, 6]) {
      const program = await device.compile(plan, checkpoint, { ...limits, kvDtype: kv }, { dump: false });
      const mixed = await stepped(program, beside, true);
      expect(await stepped(program, beside, false), `${beside} at once`).toEqual(mixed);
      expect(
        mixed.filter((value) => !(value < 0)),
        "logprobs",
      ).toHaveLength(0);
      await program.close();
    }
  });
});

describe
  .skipIf(absent !== undefined)
  .each([{ quantisation: "bf16" as const }, { quantisation: "q8_0" as const }, { quantisation: "q4_k_m" as const }])(
  "one token with $quantisation on cuda",
  ({ quantisation }) => {
    test("its logprobs come near those of deterministic programs", async () => {
      const device = new CudaDevice(0, {});
      const config = { ...configs["128 (8 on 2)"], intermediate_size: 1536 } as Record<string, unknown>;
      const checkpoint = randomCheckpoint({ config, quantisation, seed: 7, name: "near" });
      const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
      const logprobs: number[][] = [];
      for (const deterministic of [true, false]) {
        const program = await device.compile(plan, checkpoint, { ...limits, deterministic }, { dump: false });
        logprobs.push(await stepped(program, 1, false));
        await program.close();
      }
      for (const [i, value] of logprobs[1].entries()) expect(Math.abs(value - logprobs[0][i])).toBeLessThan(0.05);
    });
  },
);

const walked: Readonly<Record<string, object>> = {
  "64 (9 on 3)": configs["64 (9 on 3)"],
  "128 (8 on 2)": configs["128 (8 on 2)"],
  "128 with norms, 4 on 1": { ...configs["128 with norms"], num_attention_heads: 4 },
};
const walks = Object.keys(walked).flatMap((name) =>
  (["bf16", "q8_0", "q4_k_m"] as const).map((quantisation) => ({ name, quantisation })),
);

describe.skipIf(absent !== undefined).each(walks)("a step of one token as one launch: $name, $quantisation", (its) => {
  test("its logprobs come near those of a launch for every operation, and are the same bits again", async () => {
    const config = { ...walked[its.name], intermediate_size: 1536, max_position_embeddings: 2048 };
    const about = { config: config as Record<string, unknown>, quantisation: its.quantisation, seed: 11, name: "walk" };
    const checkpoint = randomCheckpoint(about);
    const kvDtype = its.quantisation === "bf16" ? ("bf16" as const) : ("f16" as const);
    const far = { ...limits, deterministic: false, kvDtype, contextLength: 2048, maxTokens: 2048 };
    for (const length of [3, 61, 1300]) {
      const logprobs: number[][] = [];
      for (const how of [{ walks: false }, { walks: true }, { walks: true, graphs: false }]) {
        const device = new CudaDevice(0, how);
        const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
        const program = await device.compile(plan, checkpoint, far, { dump: false });
        logprobs.push(await alone(program, length));
        await program.close();
      }
      const [truth, once, again] = logprobs;
      expect(again, `${length}`).toEqual(once);
      expect(once, `${length}`).not.toEqual(truth);
      for (const [i, value] of once.entries()) expect(Math.abs(value - truth[i]), `${length}: ${i}`).toBeLessThan(0.05);
    }
  });
});

const alike = [{ quantisation: "q8_0" as const }];

describe.skipIf(absent !== undefined).each(alike)("one token each of two programs at once, $quantisation", (its) => {
  test("they wait for each other, and give what each gives alone", async () => {
    const config = { ...configs["128 (8 on 2)"], intermediate_size: 1536 } as Record<string, unknown>;
    const checkpoint = randomCheckpoint({ config, ...its, seed: 11, name: "two" });
    const programs: Program[] = [];
    for (const device of [new CudaDevice(), new CudaDevice()]) {
      const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
      programs.push(await device.compile(plan, checkpoint, { ...limits, deterministic: false }, { dump: false }));
    }
    const truth = await alone(programs[0], 40);
    for (let round = 0; round < 20; round++) {
      const both = await Promise.all(programs.map((program) => alone(program, 40)));
      for (const logprobs of both) expect(logprobs).toEqual(truth);
    }
    for (const program of programs) await program.close();
  });
});

/** Logprobs of eight steps of one token behind a prompt. */
async function alone(program: Program, length: number): Promise<number[]> {
  const pages = new PageKeeper(program).take(length + 8);
  const tokens = Array.from({ length }, (_, t) => 3 + ((7 * t) % 500));
  await program.run(batchOf([{ slot: 0, tokens, kvStart: 0, pages }], { updates: updates([[0, {}]]) })).result;
  const out: number[] = [];
  for (let n = 0; n < 8; n++) {
    const part = { slot: 0, tokens: [5 + n], kvStart: length + n, pages, targets: [9 + n] };
    out.push(...(await program.run(batchOf([part])).result).logprobs);
  }
  return out;
}
