// The number formats of the KV cache: what they do to numbers, and how many pages the same memory holds.
import { expect, test } from "vitest";
import { CpuDevice } from "../../src/device/cpu/device.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { kvBytes } from "../../src/device/device.js";
import { roundKv } from "../../src/device/kv.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { limits } from "../support/batch.js";
import { openTiny } from "../support/golden.js";

function q8(rows: readonly number[], width: number): number[] {
  const copy = Float32Array.from(rows);
  roundKv("q8", copy, width);
  return [...copy];
}

test("q8 rounds to 127ths of the largest of each head's row, halves to even", () => {
  expect(q8([127, -0.4, 2.5, 3.5, 0, 0, 0, 0, 1, -254, 3, -3], 4)).toEqual([
    ...[127, 0, 2, 4],
    ...[0, 0, 0, 0],
    // Steps of two: 0.5, 1.5 and -1.5 of them.
    ...[0, -254, 4, -4],
  ]);
});

test("a row with a number that is not finite is not a number anywhere, others are not touched", () => {
  expect(q8([1, Number.NaN, 127, 1], 2)).toEqual([Number.NaN, Number.NaN, 127, 1]);
  expect(q8([Number.NEGATIVE_INFINITY, 1, 127, 1], 2)).toEqual([Number.NaN, Number.NaN, 127, 1]);
});

test("the smallest numbers do not become infinite", () => {
  const least = 2 ** -149;
  expect(q8([least, -least, 0, 0], 4).every((x) => Number.isFinite(x) && Math.abs(x) <= 127 * least)).toBe(true);
});

const missing = whyNoNative();
test.skipIf(missing !== undefined)(`q8 holds nearly twice as many pages as f16${missing ?? ""}`, async () => {
  const checkpoint = await openTiny("gemma3");
  const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
  const device = new CpuDevice();
  const page = (kvDtype: "f16" | "q8") => {
    const { cache, pagesPerGroup } = device.estimate(plan, { ...limits, kvDtype, maxPages: 1 });
    expect(pagesPerGroup).toEqual([1, 1]);
    return cache;
  };
  expect(page("q8") / page("f16")).toBe(kvBytes("q8", plan) / 2);
  expect(kvBytes("q8", plan)).toBe(1 + 4 / 32);
  checkpoint.close();
});
