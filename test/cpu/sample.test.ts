// Sampling on the cpu device makes the decisions of the specification (device/reference/sample.ts) from the same logits,
// over a vocabulary long enough for several stretches of sums.
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Batch } from "../../src/device/batch.js";
import { CpuDevice } from "../../src/device/cpu/device.js";
import type { Program, WeightSource } from "../../src/device/device.js";
import { type RowRequest, sampleRow } from "../../src/device/reference/sample.js";
import { PlanBuilder } from "../../src/plan/build.js";
import { embed, gatherRows, logits, sample } from "../../src/plan/ops/index.js";
import { batchOf, limits, ragged, type SlotSettings, updates } from "../support/batch.js";
import { seededRandom } from "../support/random.js";

const vocabSize = 9007;
const distributions = 8;

/** Column j of the output matrix is the logits of token j, whose embedding is the j-th unit vector. */
function matrices(): { unit: Float32Array; output: Float32Array } {
  const random = seededRandom(5);
  const unit = new Float32Array(distributions * distributions);
  for (let j = 0; j < distributions; j++) unit[j * distributions + j] = 1;
  const output = new Float32Array(vocabSize * distributions);
  for (let id = 0; id < vocabSize; id++) {
    for (let j = 0; j < distributions; j++) {
      const sharp = 0.5 + j;
      const tied = j % 4 === 3;
      output[id * distributions + j] = tied ? Math.round(2 * random.normal()) : sharp * random.normal();
    }
  }
  // A NaN here is one in every row: the other rows meet it times 0.
  output[77 * distributions] = Number.NaN;
  return { unit, output };
}

let program: Program;

beforeAll(async () => {
  const { unit, output } = matrices();
  const b = new PlanBuilder(vocabSize);
  const weight = (name: string, rows: number) =>
    b.weight(name, [rows, distributions], [{ name, type: "F32", shape: [rows, distributions] }]);
  const x = b.apply(embed, "x", { ids: b.input("tokenIds"), weight: weight("unit", distributions) }, { scale: 1 });
  const rows = b.apply(gatherRows, "rows", { x, rows: b.input("sampleRows") }, {});
  const scores = b.apply(logits, "logits", { x: rows, weight: weight("output", vocabSize) }, { scale: 1 });
  b.node(sample, "sample", { logits: scores }, {});
  const data = new Map(Object.entries({ unit, output }));
  const source: WeightSource = {
    tensors: new Map(
      [...data].map(([name, values]) => {
        const shape = [values.length / distributions, distributions];
        return [name, { name, type: "F32", shape, bytes: values.byteLength }];
      }),
    ),
    read: (name) => new Uint8Array(data.get(name)!.buffer),
    release: () => {},
  };
  const own = { ...limits, slots: 64, maxSequences: 64, maxRows: 64 };
  program = await new CpuDevice().compile(b.finish(), source, own, { dump: true });
});
afterAll(() => program.close());

interface Case extends SlotSettings {
  readonly token: number;
  readonly target?: number;
  readonly bias?: readonly (readonly [id: number, value: number])[];
  readonly mask?: (id: number) => boolean;
}

/** One sequence of one token a case; the next token is drawn for position `position`. */
async function compare(cases: readonly Case[], position: number, top: number): Promise<void> {
  const masked = cases.flatMap(({ mask }, r) => (mask ? [r] : []));
  const bias = ragged(cases.map((one) => (one.bias ?? []).map(([id]) => id)));
  const parts = cases.map((one, s) => ({
    slot: s,
    tokens: [one.token],
    kvStart: position - 1,
    pages: [],
    targets: [one.target ?? -1],
  }));
  const batch: Batch = batchOf(parts, {
    updates: updates(cases.map((one, s) => [s, one] as const)),
    topLogprobs: top,
    bias: { ...bias, values: Float32Array.from(cases.flatMap((one) => (one.bias ?? []).map(([, value]) => value))) },
    maskedRows: Int32Array.from(masked),
  });
  const words = Math.ceil(vocabSize / 32);
  const bits = new Uint32Array(masked.length * words);
  masked.forEach((r, m) => {
    for (let id = 0; id < vocabSize; id++) if (cases[r].mask!(id)) bits[m * words + (id >> 5)] |= 1 << (id & 31);
  });
  const step = program.run(batch);
  const scores = masked.length > 0 ? expectedLogits(cases) : ((await program.dump("logits")).data as Float32Array);
  if (masked.length > 0) step.setMasks(bits);
  const result = await step.result;

  for (const [r, one] of cases.entries()) {
    const m = masked.indexOf(r);
    const request: RowRequest = {
      slot: {
        temperature: Math.fround(one.temperature ?? 0),
        topK: one.topK ?? 0,
        topP: Math.fround(one.topP ?? 1),
        minP: Math.fround(one.minP ?? 0),
        repetition: Math.fround(one.repetition ?? 1),
        frequency: Math.fround(one.frequency ?? 0),
        presence: Math.fround(one.presence ?? 0),
        seedLow: one.seed ?? 0,
        seedHigh: 0,
      },
      counts: one.counts && { prompt: new Set(one.counts.prompt), output: counted(one.counts.output) },
      position,
      biasIds: bias.ids.subarray(bias.start[r], bias.start[r + 1]),
      biasValues: batch.bias.values.subarray(bias.start[r], bias.start[r + 1]),
      mask: m < 0 ? undefined : bits.subarray(m * words, (m + 1) * words),
      target: one.target ?? -1,
      topLogprobs: top,
    };
    const truth = sampleRow(scores.subarray(r * vocabSize, (r + 1) * vocabSize), request);
    const what = JSON.stringify({ ...one, bias: one.bias?.length, counts: !!one.counts, position });
    expect(result.tokens[r], what).toBe(truth.token);
    expect(result.ranks[r], what).toBe(truth.rank);
    near(result.logprobs[r], truth.logprob, what);
    expect(result.topIds.subarray(r * top, (r + 1) * top), what).toEqual(truth.topIds);
    truth.topLogprobs.forEach((value, i) => {
      near(result.topLogprobs[r * top + i], value, what);
    });
  }
}

function near(actual: number, truth: number, what: string): void {
  if (Number.isFinite(truth)) expect(Math.abs(actual - truth), what).toBeLessThan(2e-5 * Math.max(1, Math.abs(truth)));
  else expect(actual, what).toBe(truth);
}

/** What the products must give, for a step that has not sampled yet. */
function expectedLogits(cases: readonly Case[]): Float32Array {
  const { output } = matrices();
  const data = new Float32Array(cases.length * vocabSize);
  for (const [r, one] of cases.entries()) {
    for (let id = 0; id < vocabSize; id++) data[r * vocabSize + id] = output[id * distributions + one.token];
    data[r * vocabSize + 77] = Number.NaN;
  }
  return data;
}

function counted(ids: readonly number[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}

const rows = Array.from({ length: distributions }, (_, token) => token);
const settings: Readonly<Record<string, SlotSettings>> = {
  greedy: {},
  "temperature 1": { temperature: 1, seed: 11 },
  "temperature 0.2": { temperature: 0.2, seed: 12 },
  "top_k 1": { temperature: 1, topK: 1, seed: 13 },
  "top_k 40": { temperature: 1.5, topK: 40, seed: 14 },
  "top_k 3000": { temperature: 3, topK: 3000, seed: 15 },
  "top_p 0.9": { temperature: 1, topP: 0.9, seed: 16 },
  "top_p 0.999 of a flat row": { temperature: 4, topP: 0.999, seed: 17 },
  "top_p 0": { temperature: 1, topP: 0, seed: 18 },
  min_p: { temperature: 1, minP: 0.05, seed: 19 },
  "all of them": { temperature: 0.9, topK: 50, topP: 0.8, minP: 0.02, seed: 20 },
};

test.each(Object.keys(settings))("%s", async (name) => {
  for (const position of [1, 77])
    await compare(
      rows.map((token) => ({ token, ...settings[name] })),
      position,
      5,
    );
});

test("penalties count the prompt and the output", async () => {
  const counts = { prompt: [5, 9, 4000, 8999], output: [9, 9, 9, 123, 8191, 8192] };
  const penalised = { repetition: 1.3, frequency: 0.4, presence: 0.7, counts };
  await compare(
    rows.map((token) => ({ token, ...penalised })),
    3,
    0,
  );
  await compare(
    rows.map((token) => ({ token, ...penalised, temperature: 1, seed: 21 })),
    3,
    0,
  );
});

test("biases, forbidden ids among them", async () => {
  const bias = [[3, 40] as const, [8800, 39] as const, [3, Number.NEGATIVE_INFINITY] as const];
  await compare(
    rows.map((token) => ({ token, bias })),
    4,
    3,
  );
  await compare(
    rows.map((token) => ({ token, bias, temperature: 1, topP: 0.95, seed: 22 })),
    4,
    3,
  );
});

test("masks, one of which leaves nothing", async () => {
  const cases = rows.map((token) => ({ token, mask: (id: number) => id % 9 === token && token !== 5 }));
  await compare(cases, 5, 2);
  await compare(
    cases.map((one) => ({ ...one, temperature: 1, seed: 23 })),
    5,
    2,
  );
});

test("targets are scored and draw nothing", async () => {
  await compare(
    rows.map((token) => ({ token, target: (token * 1777 + 5) % vocabSize, temperature: 1 })),
    6,
    20,
  );
});
