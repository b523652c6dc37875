// The null device: what it lets through, in what order it works, and each thing that it must not let through.
import { describe, expect, it } from "vitest";
import type { Batch } from "../../src/device/batch.js";
import type { PageGroup } from "../../src/device/device.js";
import { NullProgram } from "../../src/device/null/program.js";
import { batchOf, limits, type Part, updates } from "../support/batch.js";

const groups: PageGroup[] = [
  { kind: "paged", pageTokens: 4, pageBytes: 16, numPages: 32 },
  { kind: "paged", pageTokens: 4, pageBytes: 16, numPages: 32, window: 6 },
  { kind: "state", pageTokens: 0, pageBytes: 8, numPages: 8 },
];
const make = (depth = 1) => new NullProgram({ groups, vocabSize: 50, limits: { ...limits, depth } });

const part = (slot: number, tokens: number[], rest: Partial<Part> = {}): Part => ({
  slot,
  tokens,
  kvStart: 0,
  pages: [[slot * 4, slot * 4 + 1], [slot * 4, slot * 4 + 1], [slot]],
  ...rest,
});
const first = (parts: readonly Part[], extra: Partial<Batch> = {}) =>
  batchOf(parts, { updates: updates(parts.map(({ slot }) => [slot, {}])), ...extra });

describe.each([1, 2, 3])("the null device at depth %i", (depth) => {
  it("draws the same token for a prompt in one piece, in two, and step after step without knowing it", async () => {
    const whole = (await make().run(first([part(0, [1, 2, 3, 4, 5])])).result).tokens[0];
    const program = make(depth);
    const steps = [
      program.run(first([part(0, [1, 2, 3], { rows: [] })])),
      ...(depth > 1 ? [program.run(batchOf([part(0, [4, 5], { kvStart: 3 })]))] : []),
      ...(depth > 2 ? [program.run(batchOf([part(0, [-1], { kvStart: 5 })]))] : []),
    ];
    expect(() => program.run(batchOf([part(0, [1])]))).toThrow(/in flight/);
    const results = await Promise.all(steps.map(({ result }) => result));
    if (depth > 1) expect(results[1].tokens[0]).toBe(whole);
    if (depth > 2) {
      const known = make();
      const more = await known.run(first([part(0, [1, 2, 3, 4, 5, whole])])).result;
      expect(results[2].tokens[0]).toBe(more.tokens[0]);
    }
  });
});

describe("the null device", () => {
  it("shows a wrong page, a wrong copy and another seed as another token", async () => {
    const program = make(3);
    const right = program.run(first([part(0, [1, 2, 3, 4, 5])]));
    program.run(first([part(1, [9, 9, 9, 9, 9])]));
    const other = program.run(batchOf([part(0, [6], { kvStart: 5, pages: [[4, 1], [0, 1], [0]] })]));
    await right.result;
    const wrong = (await other.result).tokens[0];
    const fresh = make(3);
    const whole = (await fresh.run(first([part(0, [1, 2, 3, 4, 5, 6])])).result).tokens[0];
    expect(wrong).not.toBe(whole);
    fresh.copyPages(0, Int32Array.of(0, 1), Int32Array.of(20, 21));
    fresh.copyPages(1, Int32Array.of(0, 1), Int32Array.of(20, 21));
    fresh.copyPages(2, Int32Array.of(0), Int32Array.of(5));
    const moved = part(3, [7], { kvStart: 6, pages: [[20, 21], [20, 21], [5]] });
    const copied = (await fresh.run(first([moved])).result).tokens[0];
    const straight = make();
    expect((await straight.run(first([part(0, [1, 2, 3, 4, 5, 6, 7])])).result).tokens[0]).toBe(copied);
    const seeded = first([part(0, [1, 2, 3, 4, 5, 6, 7])], { updates: updates([[0, { seed: 5 }]]) });
    expect((await make().run(seeded).result).tokens[0]).not.toBe(copied);
  });

  it("waits for masks and obeys them, at depth 2 before a step that uses what was drawn", async () => {
    const program = make(2);
    const masked = program.run(first([part(0, [1, 2, 3])], { maskedRows: Int32Array.of(0) }));
    const after = program.run(batchOf([part(0, [-1], { kvStart: 3 })]));
    const bits = new Uint32Array(2);
    bits[1] = 1 << 3; // 35 alone
    masked.setMasks(bits);
    expect((await masked.result).tokens[0]).toBe(35);
    const straight = await make().run(first([part(0, [1, 2, 3, 35])])).result;
    expect((await after.result).tokens[0]).toBe(straight.tokens[0]);
  });

  const good = [part(0, [1, 2, 3, 4, 5]), part(1, [1, 2])];
  const wrong: [string, RegExp, () => Batch][] = [
    ["a page that is not there", /has no page 32/, () => first([part(0, [1], { pages: [[32], [0], [0]] })])],
    [
      "too few pages",
      /hold 0 to 4, not 0 to 5/,
      () => first([part(0, [1, 2, 3, 4, 5], { pages: [[0], [0, 1], [0]] })]),
    ],
    ["no page for a state", /0 pages of state/, () => first([part(0, [1], { pages: [[0], [0], []] })])],
    [
      "a page that two write",
      /two sequences write/,
      () => first([good[0], part(1, [1], { pages: [[1, 5], [4, 5], [1]] })]),
    ],
    [
      "a page that one writes and another reads",
      /written by one and read by another/,
      () =>
        first([part(0, [1], { pages: [[4], [0], [0]] }), part(1, [1], { kvStart: 4, pages: [[4, 5], [4, 5], [1]] })]),
    ],
    ["a page listed twice", /twice/, () => first([part(0, [1, 2, 3, 4, 5], { pages: [[0, 0], [0, 1], [0]] })])],
    [
      "pages kept behind the window",
      /keeps pages of group 1 from 0, not 1/,
      () =>
        batchOf([part(0, [1], { kvStart: 9, pages: [[0, 1, 2], [0, 1, 2], [0]] })], { updates: updates([[0, {}]]) }),
    ],
    ["a slot twice", /twice/, () => first([good[0], part(0, [1])], { updates: updates([[0, {}]]) })],
    ["a token of a slot that drew nothing", /has not sampled/, () => first([part(0, [-1])])],
    ["no tokens", /brings no tokens/, () => first([good[0], part(1, [], { rows: [] })])],
    ["rows that fall", /ascending/, () => first(good, { rows: Int32Array.of(6, 4) })],
    ["a draw in the middle", /in the middle/, () => first([part(0, [1, 2, 3], { rows: [1] })])],
    ["another position than the row's", /draws position 5/, () => first(good, { rowPositions: Int32Array.of(4, 2) })],
    ["ragged starts that do not span", /tokenStart/, () => first(good, { tokenStart: Int32Array.of(0, 5, 6) })],
    ["a mask for no row", /maskedRows/, () => first(good, { maskedRows: Int32Array.of(2) })],
    ["too many tokens", /takes 256 tokens/, () => first([part(0, Array(257).fill(1))])],
  ];
  it("takes what the wrong batches are made from", async () => {
    expect((await make().run(first(good)).result).tokens).toHaveLength(2);
  });
  it.each(wrong)("refuses %s", (_, message, batch) => {
    expect(() => make().run(batch())).toThrow(message);
  });
});
