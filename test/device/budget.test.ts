// Division of cache memory among page groups.
import { expect, test } from "vitest";
import { dividePages, type GroupShape, longestContext } from "../../src/device/budget.js";
import { limits as all } from "../support/batch.js";

const full: GroupShape = { kind: "paged", pageTokens: 16, pageBytes: 1000 };
const window: GroupShape = { kind: "paged", pageTokens: 16, pageBytes: 5000, window: 64 };
const state: GroupShape = { kind: "state", pageTokens: 0, pageBytes: 300 };
const limits = { ...all, contextLength: 1600, maxTokens: 64, maxPages: 0, slots: 4 };

test("one group takes everything", () => {
  expect(dividePages([full], 123_456, limits)).toEqual([123]);
  expect(longestContext([full], [123], limits)).toBe(1600);
  expect(longestContext([full], [7], limits)).toBe(112);
});

test("groups get what sequences need of each: a window group a tenth of the full one's pages", () => {
  const [pages, behind, states] = dividePages([full, window, state], 1_000_000, { ...limits, slots: 10 });
  // 100 pages of 1000 bytes, 9 of 5000, one of 300: 145,300 bytes a sequence
  expect(pages / behind).toBeCloseTo(100 / 9, 0);
  expect(states).toBe(6);
  const used = pages * 1000 + behind * 5000 + states * 300;
  expect(used).toBeLessThanOrEqual(1_000_000);
  expect(used).toBeGreaterThan(990_000);
});

test("nothing more than is of any use: windows for all slots, four states a slot", () => {
  expect(dividePages([full, window, state], 1e12, { ...limits, maxPages: 50 })).toEqual([50, 36, 16]);
});

test("a window group holds one sequence whole before the full group grows", () => {
  const [pages, behind] = dividePages([full, window], 50_000, limits);
  expect(behind).toBe(9);
  expect(pages).toBe(5);
  expect(longestContext([full, window], [pages, behind], limits)).toBe(80);
});

test("what cannot hold anything is refused with the numbers", () => {
  expect(() => dividePages([full, window], 20_000, limits)).toThrow(/needs at least 46000 bytes .* 20000 are left/);
});
