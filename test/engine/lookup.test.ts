// Guesses from the text itself.
import { describe, expect, test } from "vitest";
import { mostDrafts, PromptLookup } from "../../src/engine/lookup.js";

const propose = (lookup: PromptLookup, text: readonly number[], most = 100, worth = 0.01) => [
  ...lookup.propose(Int32Array.from(text), text.length, most, worth),
];

describe("prompt lookup", () => {
  test("what followed the last three tokens before is guessed again, the latest time counts", () => {
    expect(propose(new PromptLookup(), [1, 2, 3, 9, 8, 1, 2, 3, 7, 6, 5, 1, 2, 3])).toEqual([7, 6, 5, 1, 2, 3]);
    expect(propose(new PromptLookup(), [1, 2, 3, 4, 5, 6])).toEqual([]);
    expect(propose(new PromptLookup(), [1, 2])).toEqual([]);
  });

  test("of several times the one counts before which the texts agree longest", () => {
    const text = [4, 5, 1, 2, 3, 10, 11, 12, 6, 1, 2, 3, 20, 21, 4, 5, 1, 2, 3];
    expect(propose(new PromptLookup(), text, 3)).toEqual([10, 11, 12]);
    expect(propose(new PromptLookup(), [0, ...text.slice(1, -5), 6, 1, 2, 3], 2)).toEqual([20, 21]);
    const long = Array.from({ length: 3000 }, (_, i) => i);
    expect(propose(new PromptLookup(), [...long, ...long.slice(0, 40)], 3)).toEqual([40, 41, 42]);
  });

  test("it goes on with the text as it grows", () => {
    const lookup = new PromptLookup();
    const text = [5, 6, 7, 8, 9];
    expect(propose(lookup, text)).toEqual([]);
    text.push(5, 6, 7);
    expect(propose(lookup, text)).toEqual([8, 9, 5, 6, 7]);
    text.push(1, 5, 6, 7);
    expect(propose(lookup, text)).toEqual([1, 5, 6, 7]);
  });

  test("never more than asked for, and not where a guess is worth less than it costs", () => {
    const text = Array.from({ length: 60 }, (_, i) => i % 30);
    expect(propose(new PromptLookup(), text, 4)).toEqual([0, 1, 2, 3]);
    expect(propose(new PromptLookup(), text, 0)).toEqual([]);
    expect(propose(new PromptLookup(), text).length).toBeLessThanOrEqual(mostDrafts);
    expect(propose(new PromptLookup(), text, 100, 0.9)).toEqual([]);
  });

  test("it guesses more where it was right, less where it was wrong, and tries again in time", () => {
    const text = Array.from({ length: 60 }, (_, i) => i % 30);
    const lookup = new PromptLookup();
    const at = (worth: number) => propose(lookup, text, 100, worth).length;
    const before = at(0.3);
    for (let i = 0; i < 8; i++) lookup.hope.learn(4, 4);
    expect(at(0.3)).toBeGreaterThan(before);
    for (let i = 0; i < 40; i++) lookup.hope.learn(4, 0);
    expect(at(0.3)).toBe(0);
    let tries = 0;
    while (at(0.3) === 0 && tries < 1000) tries++;
    expect(tries).toBeGreaterThan(5);
    expect(tries).toBeLessThan(200);
  });
});
