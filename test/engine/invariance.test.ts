// The same request gives the same bits whatever runs beside it: alone, among fifteen others, with any chunk budget, cold or
// from the prefix cache, preempted or not, with one thread or two. On real devices with tiny checkpoints.
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Device, Limits, Program } from "../../src/device/device.js";
import { Engine } from "../../src/engine/loop.js";
import type { GenerateRequest, TokenLogprobs } from "../../src/engine/types.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { limits as usual } from "../support/batch.js";
import { describeDevices, testDevices } from "../support/devices.js";
import { openTiny } from "../support/golden.js";
import { greedy, request } from "./harness.js";

const models = ["llama-gqa-llama3rope", "mistral-swa", "gemma3"];

interface Answer {
  tokens: number[];
  logprobs: TokenLogprobs[];
  promptLogprobs?: readonly (TokenLogprobs | null)[];
  cachedTokens: number;
}

interface Run {
  stepTokens?: number;
  prefixCache?: boolean;
  /** One after the other instead of all at once. */
  oneByOne?: boolean;
  /** Comes after so many steps. */
  later?: readonly (readonly [steps: number, request: GenerateRequest])[];
}

/** What the first choice of each request gets. */
async function answers(program: Program, limits: Limits, requests: readonly GenerateRequest[], options: Run = {}) {
  const later = options.later ?? [];
  const found = new Map<string, Answer>();
  for (const { id } of [...requests, ...later.map(([, r]) => r)]) {
    found.set(id, { tokens: [], logprobs: [], cachedTokens: 0 });
  }
  const engine = new Engine(program, limits, {
    stepTokens: options.stepTokens,
    prefixCache: options.prefixCache,
    pause: async () => {},
    now: () => performance.now(),
    output: {
      start: (id, cachedTokens, promptLogprobs) => Object.assign(found.get(id)!, { cachedTokens, promptLogprobs }),
      token: (id, index, token, logprobs) => {
        if (index > 0) return;
        found.get(id)!.tokens.push(token);
        found.get(id)!.logprobs.push(logprobs!);
      },
      finish: (id, { reason }) => expect(`${id} ${reason}`).toBe(`${id} length`),
      flush: () => {},
    },
  });
  for (const r of requests) {
    engine.submit(r);
    if (options.oneByOne) while (await engine.step());
  }
  for (let i = 1; await engine.step(); i++) for (const [steps, r] of later) if (steps === i) engine.submit(r);
  return { of: (id: string) => found.get(id)!, stats: engine.stats() };
}

await describeDevices(
  "bits of an answer",
  (device: Device) => {
    for (const model of models) describeModel(device, model);
  },
  testDevices.filter(({ name }) => name === "reference" || name === "cpu"),
);

function describeModel(device: Device, model: string): void {
  const limits: Limits = { ...usual, contextLength: 96, depth: 1, slots: 16, maxSequences: 16 };
  const programs: Program[] = [];
  let checkpoint: Checkpoint;
  let vocabSize = 0;
  let subject: GenerateRequest;
  let scored: GenerateRequest;
  let alone: Answer;
  let aloneScored: Answer;

  const compile = async (changes: Partial<Limits>): Promise<[Program, Limits]> => {
    const changed = { ...limits, ...changes };
    const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
    const program = await device.compile(plan, checkpoint, changed);
    programs.push(program);
    return [program, changed];
  };
  const prompt = (length: number, seed: number) =>
    Array.from({ length }, (_, i) => (((i + 3) * (seed * 2 + 7919)) >>> 2) % vocabSize);
  const asked = (id: string, length: number, seed: number, rest: Partial<GenerateRequest> = {}) =>
    request(id, prompt(length, seed), { maxTokens: 16, logprobs: 3, ...rest });
  const same = (answer: Answer, wanted: Answer) => {
    expect(answer.tokens).toEqual(wanted.tokens);
    expect(answer.logprobs).toEqual(wanted.logprobs);
    expect(answer.promptLogprobs).toEqual(wanted.promptLogprobs);
  };

  beforeAll(async () => {
    checkpoint = await openTiny(model);
    vocabSize = modelConfig(checkpoint).vocabSize;
    const sampling = { ...greedy, temperature: 0.8, seed: 12345678901234567n };
    subject = asked("subject", 45, 1, { sampling });
    scored = asked("scored", 45, 1, { promptLogprobs: 2 });
    const [program, within] = await compile({});
    alone = (await answers(program, within, [subject], { stepTokens: 512 })).of("subject");
    aloneScored = (await answers(program, within, [scored], { stepTokens: 512 })).of("scored");
    expect(alone.tokens).toHaveLength(16);
  });
  afterAll(async () => {
    for (const program of programs) await program.close();
    checkpoint.close();
  });

  it.each([1, 3, 17, 512])(`${model}: among fifteen others, with %i tokens a step`, async (stepTokens) => {
    const [program, within] = await compile({});
    const others = Array.from({ length: 14 }, (_, i) => asked(`other ${i}`, 3 + 4 * i, i + 2, { maxTokens: 5 + i }));
    const { of } = await answers(program, within, [...others, subject, scored], { stepTokens });
    same(of("subject"), alone);
    same(of("scored"), aloneScored);
  });

  it(`${model}: from the prefix cache`, async () => {
    const [program, within] = await compile({});
    const warm = { ...subject, id: "warm" };
    const { of } = await answers(program, within, [subject, warm], { oneByOne: true });
    expect(of("warm").cachedTokens).toBe(32);
    same(of("subject"), alone);
    same(of("warm"), alone);
  });

  it.each([true, false])(`${model}: preempted twice, with a prefix cache to come back to: %s`, async (prefixCache) => {
    const [program, within] = await compile({ maxSequences: 1, slots: 1 });
    const better = (id: string, seed: number) => asked(id, 20, seed, { maxTokens: 3, priority: -1 });
    const later = [[4, better("in the prompt", 40)] as const, [30, better("in the answer", 41)] as const];
    const { of, stats } = await answers(program, within, [subject], { stepTokens: 4, prefixCache, later });
    expect(stats.preemptions).toBe(2);
    same(of("subject"), alone);
  });

  it(`${model}: one of three choices, three steps in flight`, async () => {
    const [program, within] = await compile({ depth: 3 });
    const { of } = await answers(program, within, [{ ...subject, n: 3 }, scored]);
    same(of("subject"), alone);
    same(of("scored"), aloneScored);
  });

  it(`${model}: one thread and two`, async () => {
    for (const threads of [1, 2]) {
      const [program, within] = await compile({ threads });
      same((await answers(program, within, [subject])).of("subject"), alone);
    }
  });
}
