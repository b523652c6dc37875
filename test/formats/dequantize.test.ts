import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { blocks, type StorageType, storageBytes, storageTypes } from "../../src/base/dtype.js";
import { dequantize } from "../../src/formats/quant/dequantize.js";

type Golden = Record<StorageType, { bytes: string; values: string }>;
const golden = JSON.parse(readFileSync(new URL("../golden/quant/blocks.json", import.meta.url), "utf8")) as Golden;

function decoded(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "base64"));
}

/** Bits, with every NaN made the same one. */
function canonical(values: Float32Array): Uint32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length).slice();
  for (let i = 0; i < bits.length; i++) if ((bits[i] & 0x7fffffff) > 0x7f800000) bits[i] = 0x7fc00000;
  return bits;
}

function widen(type: StorageType, bytes: Uint8Array): Float32Array {
  const out = new Float32Array((bytes.length / blocks[type].bytes) * blocks[type].values);
  dequantize(type, bytes, out);
  return out;
}

describe.each(storageTypes)("%s", (type) => {
  const bytes = decoded(golden[type].bytes);
  const values = new Float32Array(decoded(golden[type].values).buffer);

  test("gives the values of the gguf package, bit for bit, NaN and infinite scales included", () => {
    expect(values.length).toBeGreaterThan(0);
    expect(storageBytes(type, values.length)).toBe(bytes.length);
    const mine = canonical(widen(type, bytes));
    const theirs = canonical(values);
    const wrong = mine.findIndex((bits, i) => bits !== theirs[i]);
    expect(
      wrong === -1 ? "equal" : `value ${wrong}: ${mine[wrong].toString(16)}, not ${theirs[wrong].toString(16)}`,
    ).toBe("equal");
  });

  test("reads bytes at an odd address and writes into the middle of a buffer", () => {
    const shifted = new Uint8Array(bytes.length + 1);
    shifted.set(bytes, 1);
    const out = new Float32Array(values.length + 2).fill(7);
    dequantize(type, shifted.subarray(1), out.subarray(1, 1 + values.length));
    expect(out[0]).toBe(7);
    expect(out[out.length - 1]).toBe(7);
    expect(canonical(out.slice(1, -1))).toEqual(canonical(values));
  });

  test("refuses bytes that are not as many as the values take", () => {
    expect(() => dequantize(type, bytes.subarray(1), new Float32Array(values.length))).toThrow(/are not/);
    if (blocks[type].values > 1) {
      expect(() => dequantize(type, bytes.subarray(0, 1), new Float32Array(1))).toThrow(/are not/);
    }
  });
});

test("a scale of NaN spoils its own block and no other", () => {
  const bytes = new Uint8Array(3 * 34);
  for (let n = 0; n < 3; n++) {
    bytes[n * 34 + 1] = 0x3c; // 1.0
    bytes.fill(n + 1, n * 34 + 2, n * 34 + 34);
  }
  bytes[34 + 1] = 0x7e; // NaN
  const values = widen("Q8_0", bytes);
  expect(values.slice(0, 32)).toEqual(new Float32Array(32).fill(1));
  expect(values.slice(32, 64).every(Number.isNaN)).toBe(true);
  expect(values.slice(64)).toEqual(new Float32Array(32).fill(3));
});
