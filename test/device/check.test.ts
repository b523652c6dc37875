// Malformed batches are refused before anything runs, whoever made them.
import { expect, test } from "vitest";
import { InternalError } from "../../src/base/errors.js";
import type { Batch, PageTable } from "../../src/device/batch.js";
import { checkBatch } from "../../src/device/check.js";
import type { PageGroup } from "../../src/device/device.js";
import { batchOf, limits, updates } from "../support/batch.js";

const groups: readonly PageGroup[] = [
  { kind: "paged", pageTokens: 16, pageBytes: 64, numPages: 40 },
  { kind: "paged", pageTokens: 16, pageBytes: 64, numPages: 40, window: 20 },
  { kind: "state", pageTokens: 0, pageBytes: 64, numPages: 8 },
];
const vocabSize = 100;

const good = () =>
  batchOf(
    [
      { slot: 0, tokens: [5, 6, 7], kvStart: 0, pages: [[0], [0], [0]] },
      { slot: 4, tokens: [-5], kvStart: 60, pages: [[1, 2, 3, 4], [9, 8], [1]], first: [0, 2, 0] },
    ],
    { updates: updates([[0, {}]]), maskedRows: Int32Array.of(1) },
  );

function withPages(batch: Batch, group: number, change: Partial<PageTable>): Batch {
  return { ...batch, pages: batch.pages.map((table, g) => (g === group ? { ...table, ...change } : table)) };
}

test("a good batch passes", () => {
  expect(() => checkBatch(good(), limits, groups, vocabSize)).not.toThrow();
});

test.each<[string, (batch: Batch) => Batch, RegExp]>([
  ["tokens that tokenStart does not span", (b) => ({ ...b, tokenStart: Int32Array.of(0, 3, 5) }), /tokenStart/],
  ["a falling tokenStart", (b) => ({ ...b, tokenStart: Int32Array.of(0, 5, 4) }), /tokenStart/],
  ["a slot twice", (b) => ({ ...b, slots: Int32Array.of(4, 4) }), /slot 4 is in the batch twice/],
  ["a slot that is not there", (b) => ({ ...b, slots: Int32Array.of(0, 99) }), /no slot 99/],
  ["a token outside the vocabulary", (b) => ({ ...b, tokens: Int32Array.of(5, 6, 100, -5) }), /token 100/],
  ["the last token of no slot", (b) => ({ ...b, tokens: Int32Array.of(5, 6, 7, -40) }), /token -40/],
  ["rows out of order", (b) => ({ ...b, rows: Int32Array.of(3, 2) }), /row 1/],
  ["a row that is not there", (b) => ({ ...b, rows: Int32Array.of(2, 4) }), /row 1/],
  ["targets of another length", (b) => ({ ...b, targets: Int32Array.of(-1) }), /targets/],
  ["a target outside the vocabulary", (b) => ({ ...b, targets: Int32Array.of(-1, 100) }), /target 100/],
  ["a masked row that is not there", (b) => ({ ...b, maskedRows: Int32Array.of(2) }), /maskedRows/],
  [
    "a bias without a value",
    (b) => ({ ...b, bias: { start: Int32Array.of(0, 1, 1), ids: Int32Array.of(1), values: new Float32Array(0) } }),
    /bias/,
  ],
  [
    "a bias outside the vocabulary",
    (b) => ({ ...b, bias: { start: Int32Array.of(0, 1, 1), ids: Int32Array.of(100), values: new Float32Array(1) } }),
    /id 100/,
  ],
  ["a group too few", (b) => ({ ...b, pages: b.pages.slice(1) }), /3 page groups, not 2/],
  [
    "a page that is not there",
    (b) => withPages(b, 0, { ids: Int32Array.of(0, 1, 2, 3, 40) }),
    /group 0 has no page 40/,
  ],
  [
    "too few pages",
    (b) => withPages(b, 0, { start: Int32Array.of(0, 1, 4), ids: Int32Array.of(0, 1, 2, 3) }),
    /pages of sequence 1 in group 0/,
  ],
  [
    "a page given back too early",
    (b) => withPages(b, 1, { first: Int32Array.of(0, 3) }),
    /pages of sequence 1 in group 1 hold 48 to 80, not 41 to 61/,
  ],
  [
    "two states",
    (b) => withPages(b, 2, { start: Int32Array.of(0, 2, 3), ids: Int32Array.of(0, 2, 1) }),
    /2 pages of state group 2/,
  ],
  ["a position beyond the context", (b) => ({ ...b, kvStart: Int32Array.of(0, 512) }), /reaches position 513 of 512/],
  ["more best tokens than ids", (b) => ({ ...b, topLogprobs: 101 }), /topLogprobs is 101/],
  ["parameters cut short", (b) => ({ ...b, updates: { ...b.updates, floats: new Float32Array(2) } }), /updates/],
])("refused: %s", (_what, change, message) => {
  const batch = change(good());
  expect(() => checkBatch(batch, limits, groups, vocabSize)).toThrow(InternalError);
  expect(() => checkBatch(batch, limits, groups, vocabSize)).toThrow(message);
});

test("refused: more than the limits allow", () => {
  const few = (change: Partial<typeof limits>) => () => checkBatch(good(), { ...limits, ...change }, groups, vocabSize);
  expect(few({ maxTokens: 3 })).toThrow(/3 tokens, not 4/);
  expect(few({ maxSequences: 1 })).toThrow(/1 sequences, the batch has 2/);
  expect(few({ maxRows: 1 })).toThrow(/1 rows, the batch has 2/);
});
