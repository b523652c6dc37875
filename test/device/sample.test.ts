// The specification of sampling itself, against what the parameters mean.
import { describe, expect, test } from "vitest";
import { type RowRequest, type SlotSampling, sampleRow } from "../../src/device/reference/sample.js";

const probabilities = [0.4, 0.05, 0.25, 0.1, 0.2];
const logits = Float32Array.from(probabilities, (p) => Math.log(p) + 1.5);
const neutral: SlotSampling = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetition: 1,
  frequency: 0,
  presence: 0,
  seedLow: 1,
  seedHigh: 2,
};

function request(slot: Partial<SlotSampling>, rest: Partial<RowRequest> = {}): RowRequest {
  const none = { biasIds: new Int32Array(0), biasValues: new Float32Array(0) };
  return { slot: { ...neutral, ...slot }, position: 0, ...none, target: -1, topLogprobs: 0, ...rest };
}

/** How often each id comes in many draws. */
function shares(slot: Partial<SlotSampling>, rest: Partial<RowRequest> = {}, draws = 4000): number[] {
  const counts = logits.length === 0 ? [] : Array.from(logits, () => 0);
  for (let position = 0; position < draws; position++) {
    counts[sampleRow(logits, request(slot, { ...rest, position })).token] += 1 / draws;
  }
  return counts;
}

function expectShares(actual: readonly number[], weights: readonly number[]): void {
  const total = weights.reduce((a, b) => a + b, 0);
  actual.forEach((share, id) => {
    if (weights[id] === 0) expect(share, `id ${id} must not come`).toBe(0);
    else expect(Math.abs(share - weights[id] / total), `share of id ${id}`).toBeLessThan(0.03);
  });
}

describe("draws follow the distribution", () => {
  test("as it is", () => expectShares(shares({}), probabilities));
  test("sharpened by temperature", () => {
    expectShares(
      shares({ temperature: 0.5 }),
      probabilities.map((p) => p * p),
    );
  });
  test("cut to the best two", () => expectShares(shares({ topK: 2 }), [0.4, 0, 0.25, 0, 0]));
  test("cut to the smallest set that holds 0.6", () => expectShares(shares({ topP: 0.6 }), [0.4, 0, 0.25, 0, 0]));
  test("cut to the smallest set that holds 0.7", () => expectShares(shares({ topP: 0.7 }), [0.4, 0, 0.25, 0, 0.2]));
  test("top_p is of what top_k left", () => expectShares(shares({ topK: 2, topP: 0.6 }), [1, 0, 0, 0, 0]));
  test("cut to what has a quarter of the best's probability", () => {
    expectShares(shares({ minP: 0.24 }), [0.4, 0, 0.25, 0.1, 0.2]);
    expectShares(shares({ minP: 0.26 }), [0.4, 0, 0.25, 0, 0.2]);
  });
  test("shifted by a bias", () => {
    const bias = { biasIds: Int32Array.of(1), biasValues: Float32Array.of(Math.log(8)) };
    expectShares(shares({}, bias), [0.4, 0.4, 0.25, 0.1, 0.2]);
  });
  test("restricted by a mask", () => {
    expectShares(shares({}, { mask: Uint32Array.of(0b01010) }), [0, 0.05, 0, 0.1, 0]);
  });
  test("less likely by presence and by count", () => {
    const counts = { prompt: new Set<number>(), output: new Map([[0, 2]]) };
    const factor = Math.exp(-2 * 0.3 - 0.5);
    expectShares(shares({ frequency: 0.3, presence: 0.5 }, { counts }), [0.4 * factor, 0.05, 0.25, 0.1, 0.2]);
  });
});

test("the repetition penalty divides positive logits and multiplies negative ones, of prompt and output", () => {
  const values = Float32Array.of(2, 1.5, -1, -1.4);
  const counts = { prompt: new Set([0]), output: new Map([[2, 1]]) };
  const token = (ids: number[]) => {
    const bias = { biasIds: Int32Array.from(ids), biasValues: new Float32Array(ids.length).fill(-100) };
    return sampleRow(values, request({ temperature: 0, repetition: 1.5 }, { counts, ...bias })).token;
  };
  expect(token([])).toBe(1); // 2 / 1.5 < 1.5
  expect(token([0, 1])).toBe(3); // −1 · 1.5 < −1.4
});

test("greedy takes the smallest id of equals, and so do ranks", () => {
  const values = Float32Array.of(1, 3, 3, 0);
  expect(sampleRow(values, request({ temperature: 0 })).token).toBe(1);
  const scored = sampleRow(values, request({}, { target: 2, topLogprobs: 3 }));
  expect([scored.token, scored.rank]).toEqual([2, 1]);
  expect([...scored.topIds]).toEqual([1, 2, 0]);
});

test("logprobs are of the model's own distribution, whatever bias, mask and temperature say", () => {
  const bias = { biasIds: Int32Array.of(0), biasValues: Float32Array.of(-50) };
  const one = sampleRow(
    logits,
    request({ temperature: 0.3 }, { ...bias, mask: Uint32Array.of(0b00100), topLogprobs: 2 }),
  );
  expect(one.token).toBe(2);
  expect(one.logprob).toBeCloseTo(Math.log(0.25), 5);
  expect([...one.topIds]).toEqual([0, 2]);
  expect(one.topLogprobs[0]).toBeCloseTo(Math.log(0.4), 5);
});

test("more best tokens than there are end in -1", () => {
  const few = sampleRow(Float32Array.of(0, Number.NaN), request({}, { target: 0, topLogprobs: 2 }));
  expect([...few.topIds]).toEqual([0, -1]);
  expect(few.topLogprobs[1]).toBe(Number.NEGATIVE_INFINITY);
});
