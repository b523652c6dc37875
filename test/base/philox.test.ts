import { expect, test } from "vitest";
import { drawUniform, philox4x32 } from "../../src/base/philox.js";

// Known answers of the authors' own implementation (Random123, kat_vectors).
test("philox4x32-10 gives the published answers", () => {
  expect(philox4x32([0, 0, 0, 0], [0, 0])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  const ones = 0xffffffff;
  expect(philox4x32([ones, ones, ones, ones], [ones, ones])).toEqual([0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
  expect(philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])).toEqual([
    0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1,
  ]);
});

test("draws are uniform in [0, 1) and differ by position and by seed", () => {
  let sum = 0;
  const seen = new Set<number>();
  for (let position = 0; position < 2000; position++) {
    const u = drawUniform(7, 9, position);
    expect(u >= 0 && u < 1).toBe(true);
    sum += u;
    seen.add(u);
  }
  expect(seen.size).toBe(2000);
  expect(Math.abs(sum / 2000 - 0.5)).toBeLessThan(0.03);
  expect(drawUniform(7, 9, 1)).not.toBe(drawUniform(8, 9, 1));
  expect(drawUniform(7, 9, 1)).not.toBe(drawUniform(7, 10, 1));
});
