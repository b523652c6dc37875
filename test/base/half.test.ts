import { expect, test } from "vitest";
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16, widenBf16, widenF16 } from "../../src/base/half.js";

test("every f16 survives the way to f32 and back", () => {
  for (let bits = 0; bits < 65536; bits++) {
    const value = f16ToF32(bits);
    if (Number.isNaN(value)) expect(Number.isNaN(f16ToF32(f32ToF16(value)))).toBe(true);
    else if (f32ToF16(value) !== bits) throw new Error(`f16 ${bits} came back as ${f32ToF16(value)}`);
  }
});

test("every bf16 survives the way to f32 and back", () => {
  for (let bits = 0; bits < 65536; bits++) {
    const value = bf16ToF32(bits);
    if (Number.isNaN(value)) expect(Number.isNaN(bf16ToF32(f32ToBf16(value)))).toBe(true);
    else if (f32ToBf16(value) !== bits) throw new Error(`bf16 ${bits} came back as ${f32ToBf16(value)}`);
  }
});

test("halfway values round to the even neighbour", () => {
  for (let bits = 0; bits < 0x7bff; bits++) {
    const half = (f16ToF32(bits) + f16ToF32(bits + 1)) / 2;
    if (f32ToF16(half) !== bits + (bits & 1)) throw new Error(`between f16 ${bits} and its successor`);
  }
  expect(f32ToF16(65519.99)).toBe(0x7bff);
  expect(f32ToF16(65520)).toBe(0x7c00);
  expect(f32ToBf16(1 + 1 / 256)).toBe(0x3f80);
  expect(f32ToBf16(1 + 3 / 256)).toBe(0x3f82);
});

test("widening reads little-endian bytes at an odd offset", () => {
  const bytes = new Uint8Array([9, 0x00, 0x3c, 0x00, 0xc0]).subarray(1);
  const half = new Float32Array(2);
  widenF16(bytes, half);
  expect([...half]).toEqual([1, -2]);
  const brain = new Float32Array(2);
  widenBf16(new Uint8Array([9, 0x80, 0x3f, 0x00, 0xc0]).subarray(1), brain);
  expect([...brain]).toEqual([1, -2]);
});
