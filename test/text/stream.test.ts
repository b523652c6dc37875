import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Detokenizer } from "../../src/text/detokenizer.js";
import { tokenizerFromGguf } from "../../src/text/gguf-tokenizer.js";
import { StopMatcher } from "../../src/text/stop.js";
import { bpeMetadata, spmMetadata } from "./vocabularies.js";

describe("the streaming detokenizer", () => {
  const bpe = tokenizerFromGguf(bpeMetadata())!;
  const spm = tokenizerFromGguf(spmMetadata())!;

  test("holds the bytes of an unfinished character until it is whole", () => {
    const ids = bpe.encode("a🙂b");
    expect(ids.length).toBe(6);
    const stream = new Detokenizer(bpe);
    expect(Array.from(ids, (id) => stream.push(id))).toEqual(["a", "", "", "", "🙂", "b"]);
    expect(stream.flush()).toBe("");
  });

  test("ends a broken tail with U+FFFD, and marks broken bytes within", () => {
    const [first, second] = bpe.encode("🙂");
    const stream = new Detokenizer(bpe);
    expect(stream.push(first) + stream.push(second)).toBe("");
    expect(stream.flush()).toBe("\uFFFD");
    expect(stream.push(second) + stream.push(bpe.encode("x")[0])).toBe("\uFFFDx");
  });

  test("gives what decoding at once gives, and every piece is well-formed", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 40 }), fc.boolean(), (text, sentencePiece) => {
        const tokenizer = sentencePiece ? spm : bpe;
        const ids = tokenizer.encode(text);
        const stream = new Detokenizer(tokenizer, { stripLeadingSpace: true });
        const pieces = Array.from(ids, (id) => stream.push(id));
        expect(pieces.join("") + stream.flush()).toBe(tokenizer.decode(ids));
        for (const piece of pieces) expect(piece).not.toMatch(/\p{Cs}/u);
      }),
    );
  });

  test("hides control tokens unless they are asked for, and shows user-defined ones", () => {
    const ids = bpe.encode("a<|im_end|><tool>", { parseSpecial: true });
    const show = (skipSpecial: boolean) => {
      const stream = new Detokenizer(bpe, { skipSpecial });
      return Array.from(ids, (id) => stream.push(id)).join("");
    };
    expect(show(true)).toBe("a<tool>");
    expect(show(false)).toBe("a<|im_end|><tool>");
  });

  test("keeps the leading space of a continuation and takes that of a whole text away", () => {
    const ids = spm.encode("the cat");
    const text = (stripLeadingSpace: boolean) => {
      const stream = new Detokenizer(spm, { stripLeadingSpace });
      return Array.from(ids, (id) => stream.push(id)).join("");
    };
    expect(text(false)).toBe(" the cat");
    expect(text(true)).toBe("the cat");
  });
});

describe("stop strings", () => {
  test("across pieces end the text before them, and what might be one is held back", () => {
    const matcher = new StopMatcher(["END"]);
    expect(matcher.push("abcE")).toEqual({ text: "abc" });
    expect(matcher.push("N")).toEqual({ text: "" });
    expect(matcher.push("x E")).toEqual({ text: "ENx " });
    expect(matcher.push("NDmore")).toEqual({ text: "", stop: "END" });
    expect(matcher.push("later")).toEqual({ text: "" });
    expect(matcher.flush()).toBe("");
  });

  test("are shown when asked for", () => {
    const matcher = new StopMatcher(["\n\n"], true);
    expect(matcher.push("a\n")).toEqual({ text: "a" });
    expect(matcher.push("\nb")).toEqual({ text: "\n\n", stop: "\n\n" });
  });

  test("that do not complete are given back at the end", () => {
    const matcher = new StopMatcher(["<end>"]);
    expect(matcher.push("1 <en").text).toBe("1 ");
    expect(matcher.flush()).toBe("<en");
  });

  test("the first to complete wins, the longest of those that end together", () => {
    expect(new StopMatcher(["abcd", "bc"]).push("abcd")).toEqual({ text: "a", stop: "bc" });
    expect(new StopMatcher(["c", "bc"]).push("abcd")).toEqual({ text: "a", stop: "bc" });
  });

  test("an empty one is refused", () => {
    expect(() => new StopMatcher([""])).toThrow(/empty/);
  });

  test("give the same outcome however the text is cut", () => {
    const letters = fc.constantFrom("a", "b", "c");
    const words = fc.array(letters, { minLength: 1, maxLength: 4 }).map((w) => w.join(""));
    fc.assert(
      fc.property(
        fc.array(words, { minLength: 1, maxLength: 4 }),
        fc.array(words),
        fc.boolean(),
        (stops, parts, include) => {
          const run = (pieces: readonly string[]) => {
            const matcher = new StopMatcher(stops, include);
            let text = "";
            for (const piece of pieces) {
              const result = matcher.push(piece);
              text += result.text;
              if (result.stop !== undefined) return { text, stop: result.stop };
            }
            return { text: text + matcher.flush(), stop: undefined };
          };
          const whole = parts.join("");
          const outcome = run(parts);
          expect(outcome).toEqual(run(Array.from(whole)));
          if (outcome.stop === undefined) {
            expect(outcome.text).toBe(whole);
            expect(stops.some((stop) => whole.includes(stop))).toBe(false);
          } else {
            const end = include ? outcome.text : outcome.text + outcome.stop;
            expect(whole.startsWith(end)).toBe(true);
            expect(stops.some((stop) => end.slice(0, -1).includes(stop))).toBe(false);
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});
