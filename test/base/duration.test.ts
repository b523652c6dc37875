// Durations as Ollama's clients write them.
import { expect, test } from "vitest";
import { parseDuration } from "../../src/base/duration.js";

test.each([
  ["5m", 300_000],
  ["1h30m", 5_400_000],
  ["1.5s", 1500],
  ["250ms", 250],
  ["0", 0],
  [0, 0],
  ["30", 30_000],
  [90, 90_000],
  ["-1", Number.POSITIVE_INFINITY],
  ["-1m", Number.POSITIVE_INFINITY],
  [-1, Number.POSITIVE_INFINITY],
])("%s is %d ms", (text, ms) => expect(parseDuration(text)).toBe(ms));

test.each(["", "m", "5 minutes", "1x", "5m!", "NaN"])("%j is none", (text) =>
  expect(parseDuration(text)).toBeUndefined(),
);
