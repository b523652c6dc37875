// Owns: how far a device may be from the oracle: the error model of the conformance suite.
//
// The oracle rounds to f32 once a result (sums run in double). A device that computes in f32 rounds at each of K steps of
// a reduction: relative to the size of the result, the rounding errors, each at most u = 2^-24, add up like a random walk:
// about u·√K; a factor of 8 covers the worst of thousands of outputs, and 4u more what surrounds the sum (exp, scaling).
//
// A device may round what goes into a product to fewer bits; this error is independent of K, relative to the result:
//   bf16   both operands rounded to 8 bits: each product is off by 2^-9·√2 at most, uniformly; 6 sigma of it
//   q8     the token's row rounded to 8-bit integers a group: its step is max|x| / 127, and max|x| is about 4 rms, so the
//          error is 4 / (127·√12) rms a value, likewise of the result; 6 sigma
// Everything is measured against the root mean square of the oracle's output.
import { expect } from "vitest";
import type { HostTensor } from "../../src/plan/op.js";

export type Arithmetic = "f32" | "bf16" | "q8";

export function bound(arithmetic: Arithmetic, reduction: number): number {
  const f32 = 2 ** -24 * (8 * Math.sqrt(reduction) + 32);
  if (arithmetic === "bf16") return f32 + (6 * 2 ** -9 * Math.SQRT2) / Math.sqrt(3);
  if (arithmetic === "q8") return f32 + (6 * 4) / (127 * Math.sqrt(12));
  return f32;
}

export function expectClose(actual: HostTensor, truth: HostTensor, limit: number, what: string): void {
  expect(actual.shape, `${what}: shape`).toEqual(truth.shape);
  let squares = 0;
  let worst = 0;
  let at = 0;
  for (let i = 0; i < truth.data.length; i++) {
    squares += truth.data[i] ** 2;
    const difference = Math.abs(actual.data[i] - truth.data[i]);
    if (!(difference <= worst)) {
      worst = difference;
      at = i;
    }
  }
  const rms = Math.sqrt(squares / Math.max(1, truth.data.length));
  const message = `${what}: value ${at} is ${actual.data[at]}, should be ${truth.data[at]} (rms ${rms})`;
  expect(worst / (rms || 1), message).toBeLessThanOrEqual(limit);
}
