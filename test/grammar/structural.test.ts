// Structural tags in both spellings: what a grammar made of one takes and refuses, that random walks through it keep to
// it, and that a tag which cannot be kept is refused by its place.
import { describe, expect, it } from "vitest";
import { dialectOf } from "../../src/text/dialect.js";
import { answerGrammar } from "../../src/text/grammar/answer.js";
import { controlSpelling } from "../../src/text/grammar/ebnf.js";
import { end, formatGrammar, taken as takenBy, walk, world } from "./walk.js";

const w = world();
const digits = { type: "regex", pattern: "\\d{1,3}" };
const tag = (begin: string, content: object, ...ends: string[]) => ({
  type: "tag",
  begin,
  content,
  end: ends.length === 1 ? ends[0] : ends,
});
const a = tag("<a>", digits, "</a>");
const b = tag("<b>", { type: "json_schema", json_schema: { enum: ["x", 1] } }, "</b>");
const free = { type: "any_text" };

const grammarOf = (format: object) => formatGrammar({ kind: "structural", tag: { type: "structural_tag", format } });

const taken = (format: object, text: string) => takenBy(w, { kind: "structural", tag: { format } }, text);

const triggered = { type: "triggered_tags", triggers: ["<"], tags: [a, b] };
const apart = { type: "triggered_tags", triggers: ["<a", "<b"], tags: [a, b] };
const separated = { type: "tags_with_separator", tags: [a, b], separator: ", " };
const cases: [name: string, format: object, whole: string[], begun: string[], refused: string[]][] = [
  ["fixed text", { type: "const_string", value: "yes" }, ["yes"], ["ye", ""], ["yess", "no"]],
  ["a schema", b.content, ['"x"', "1"], [""], ["2", '"y"']],
  ["a pattern", digits, ["1", "123"], [""], ["1234", "x"]],
  ["a grammar", { type: "grammar", grammar: 'root ::= "a" | "b" root' }, ["a", "bba"], ["b"], ["aa", "c"]],
  ["free text", free, ["", "what ever"], [], []],
  ["a tag", a, ["<a>12</a>"], ["<a>12", "<a"], ["<a></a>", "x"]],
  ["a tag of several ends", tag("(", digits, ")", "]"), ["(1)", "(1]"], ["(1"], ["(1>"]],
  ["free text in a tag", tag("<a>", free, "</a>"), ["<a>hm </ a</a>", "<a></a>"], ["<a>hm", "<a>hm</a"], ["<a>x</a>y"]],
  ["a tag that what holds it ends", tag("<a>", tag("(", free, ""), "</a>"), ["<a>(x</a>"], ["<a>(x"], ["<a>x"]],
  [
    "a sequence",
    { type: "sequence", elements: [a, b, free] },
    ["<a>1</a><b>1</b>", "<a>1</a><b>1</b>hm"],
    ["<a>1</a>"],
    ["<b>"],
  ],
  [
    "one of several",
    { type: "or", elements: [a, tag("(", free, ")")] },
    ["<a>1</a>", "(hm)"],
    ["(hm"],
    ["(hm)x", "<b>"],
  ],
  ["tags in text", triggered, ["", "hm <a>1</a> hm <b>1</b><a>2</a>"], ["<", "hm <a>"], ["<c", "<a>x", "<a>1x"]],
  ["tags of triggers of their own", apart, ["< <c> <a>1</a>"], ["<a>"], ["<ab", "<b>2"]],
  ["one tag in text", { ...triggered, stop_after_first: true }, ["hm", "hm <a>1</a>"], ["<"], ["<a>1</a> "]],
  ["at least one tag", { ...triggered, at_least_one: true }, ["<a>1</a> hm <b>1</b>"], ["<a>1", ""], ["hm"]],
  [
    "exactly one tag",
    { ...triggered, at_least_one: true, stop_after_first: true },
    ["<b>1</b>"],
    [""],
    ["<b>1</b>x", "x"],
  ],
  ["tags in a tag's text", tag("[", triggered, "]"), ["[hm <a>1</a> hm]", "[]"], ["[hm <a>1</a>"], ["[<a>]"]],
  ["a list of tags", separated, ["", "<a>1</a>", "<a>1</a>, <b>1</b>"], ["<a>1</a>,"], ["<a>1</a><b>", "x"]],
  ["a list of at least one", { ...separated, at_least_one: true }, ["<a>1</a>"], [""], ["x"]],
  ["a list of at most one", { ...separated, stop_after_first: true }, ["", "<a>1</a>"], ["<"], ["<a>1</a>,"]],
  ["a list without separator", { ...separated, separator: "" }, ["<a>1</a><b>1</b>"], ["<a>1"], ["<a>1</a>,"]],
  ["what may come", { type: "optional", content: a }, ["", "<a>1</a>"], ["<a>"], ["<a>1</a><"]],
  ["what comes often", { type: "plus", content: a }, ["<a>1</a><a>2</a>"], [""], ["x"]],
  ["what comes counted", { type: "repeat", content: digits, min: 2, max: 2 }, ["12", "123456"], ["1"], ["1234567"]],
];

describe("a structural tag's grammar", () => {
  it.each(cases)("%s", async (_name, format, whole, begun, refused) => {
    for (const text of whole) expect([text, await taken(format, text)]).toEqual([text, "whole"]);
    for (const text of begun) expect([text, await taken(format, text)]).toEqual([text, "begun"]);
    for (const text of refused) expect([text, await taken(format, text)]).toEqual([text, "refused"]);
  });

  it("the older spelling is tags in text, as an object or as JSON text", async () => {
    const old = {
      type: "structural_tag",
      structures: [
        {
          begin: "<f=get>",
          schema: { type: "object", properties: { n: { type: "integer" } }, required: ["n"] },
          end: "</f>",
        },
      ],
      triggers: ["<f="],
    };
    for (const one of [old, JSON.stringify(old), { structures: old.structures, triggers: old.triggers }]) {
      const matching = await w.engine.open(formatGrammar({ kind: "structural", tag: one }));
      for (const byte of new TextEncoder().encode('So: <f=get>{"n": 5}</f> done'))
        expect(matching.accept(byte)).toBe(true);
      expect(matching.accept(end)).toBe(true);
      matching.dispose();
    }
  });

  it("whatever a random walk writes between tags is of their form", async () => {
    for (let seed = 1; seed <= 8; seed++) {
      const { text, complete } = await walk(w, grammarOf({ ...apart, at_least_one: true }), seed, 400);
      expect(text).toMatch(/^<[ab]>/);
      if (!complete) continue;
      for (const [, name, inner] of text.matchAll(/<([ab])>(.*?)<\/\1>/gs)) {
        expect(inner).toMatch(name === "a" ? /^\d{1,3}$/ : /^("x"|1)$/);
      }
    }
  });

  it("fixed texts may spell control tokens, which alone may then come", async () => {
    const own = world(["<|call|>", "<|done|>", "<|other|>"]);
    const grammar = {
      ...answerGrammar({
        dialect: dialectOf(undefined),
        reasoning: "none",
        tools: [],
        mustCall: false,
        parallel: true,
        controls: own.controls,
        format: {
          kind: "structural",
          tag: { format: { ...triggered, triggers: ["<|call|>"], tags: [tag("<|call|>", digits, "<|done|>")] } },
        },
      }),
      ends: [end],
    };
    const [call, done, other] = [...own.controls.values()];
    const matching = await own.engine.open(grammar);
    const allowed = async () => {
      const verdict = await matching.verdict(false);
      if (verdict.kind === "end") return [];
      return [call, done, other, end].filter((id) => (verdict.mask[id >>> 5] >>> (id & 31)) & 1);
    };
    expect(await allowed()).toEqual([call, end]);
    matching.accept(call);
    expect(await allowed()).toEqual([]);
    matching.accept(49);
    expect(await allowed()).toEqual([done]);
    matching.accept(done);
    expect(await allowed()).toEqual([call, end]);
    matching.dispose();
    let calls = 0;
    for (let seed = 1; seed <= 6; seed++) {
      const { text } = await walk(own, grammar, seed, 300);
      expect(text).not.toContain(controlSpelling(other));
      calls += text.split(controlSpelling(call)).length - 1;
    }
    expect(calls).toBeGreaterThan(0);
  });
});

const refusals: [what: string, format: unknown, message: RegExp][] = [
  ["an unknown type", { type: "poem" }, /format has a type that is unknown: "poem"/],
  ["a format of tokens", { type: "any_tokens" }, /"any_tokens"; supported are const_string/],
  ["another vendor's arguments", { type: "qwen_xml_parameter", json_schema: {} }, /type that is not supported/],
  ["an unknown field", { type: "any_text", excludes: ["x"] }, /"excludes", which is not supported in any_text/],
  ["a field of the wrong type", { type: "const_string", value: 5 }, /format\.value must be a string/],
  ["free text that nothing ends", { type: "sequence", elements: [free, a] }, /elements\[0\] is free text/],
  [
    "free text in a tag without end",
    { ...triggered, tags: [tag("<a>", free, "")] },
    /tags\[0\] holds free text and has no end/,
  ],
  ["a tag that no trigger begins", { ...triggered, triggers: ["("] }, /exactly one of the triggers; "<a>" does with 0/],
  ["a tag that two triggers begin", { ...triggered, triggers: ["<", "<a"] }, /does with 2/],
  ["a trigger without tag", { ...triggered, triggers: ["<", "("] }, /trigger "\(", with which no tag begins/],
  ["no tags", { ...triggered, tags: [] }, /format\.tags must be a list that is not empty/],
  ["free text again and again", { type: "star", content: free }, /repeats free text/],
  [
    "a schema that no grammar keeps",
    { type: "json_schema", json_schema: { not: {} } },
    /"not", which is not supported/,
  ],
  ["a pattern that is not regular", { type: "regex", pattern: "(?=a)" }, /lookahead/],
];

describe("a structural tag that cannot be kept", () => {
  it.each(refusals)("%s", (_what, format, message) => {
    expect(() => grammarOf(format as object)).toThrow(message);
  });

  it.each([
    ["text that is no JSON", "{", /text that is no JSON/],
    ["neither spelling", { type: "structural_tag" }, /must have "format", or the older/],
    ["both spellings", { format: a, triggers: ["<"] }, /must have "format", or the older/],
    ["deep nesting", `{"format":${"[".repeat(200)}`, /nested too deeply/],
  ])("%s", (_what, tag, message) => {
    expect(() => formatGrammar({ kind: "structural", tag })).toThrow(message);
  });
});
