// JSON Schemas as grammars: whatever a random walk through the mask writes satisfies the schema, by another validator's
// word; and what a grammar cannot promise is refused by name.
import { createRequire } from "node:module";
import { describe, expect, it } from "vitest";
import { Rules } from "../../src/text/grammar/ebnf.js";
import { schemaRule } from "../../src/text/grammar/schema.js";
import { formatGrammar, walk, world } from "./walk.js";

const { default: Ajv } = createRequire(import.meta.url)("ajv/dist/2020.js");
const ajv = new Ajv({ validateFormats: false, strict: false });
const w = world();

const list = { $ref: "#/$defs/node" };
const schemas: [string, object][] = [
  ["any value", {}],
  ["any object", { type: "object" }],
  ["any array", { type: "array" }],
  [
    "properties, some optional",
    { properties: { a: { type: "string" }, b: { type: "integer" }, c: { type: "boolean" } }, required: ["b"] },
  ],
  ["nothing but optional ones", { type: "object", properties: { a: { type: "null" }, b: { type: "null" } } }],
  ["no properties at all", { type: "object", properties: {}, additionalProperties: false }],
  [
    "others beside the named",
    {
      type: "object",
      properties: { ab: { type: "integer" }, abc: { type: "integer" } },
      additionalProperties: { type: "string" },
    },
  ],
  [
    "required ones that only additionalProperties describes",
    { type: "object", required: ["x"], additionalProperties: { type: "boolean" } },
  ],
  [
    "names that JSON escapes",
    { type: "object", properties: { 'a"b\\c\n': { type: "null" }, é: { type: "null" } }, required: ['a"b\\c\n', "é"] },
  ],
  ["lengths", { type: "string", minLength: 2, maxLength: 5 }],
  ["a long bound", { type: "string", maxLength: 3000 }],
  ["lengths of several blocks", { type: "string", minLength: 70, maxLength: 101 }],
  ["a long string at least", { type: "string", minLength: 65 }],
  ["a pattern", { type: "string", pattern: '^[A-Z]{2}-\\d+("|\\\\|\\n)?$' }],
  ["a pattern that may stand anywhere", { type: "string", pattern: "ab|c$" }],
  ["any character", { type: "string", pattern: "^.{1,3}\\s\\S\\w[^a-z]$" }],
  ["fixed values", { enum: ["a", 1, null, true, { x: [1, "é"] }, []] }],
  ["a constant", { const: "yes" }],
  ["whole numbers in a range", { type: "integer", minimum: -137, maximum: 2045 }],
  ["from a bound on", { type: "integer", exclusiveMinimum: 99 }],
  ["below a bound", { type: "integer", maximum: -5 }],
  ["numbers", { type: "number" }],
  ["numbers in a range", { type: "number", minimum: -3, maximum: 1 }],
  ["a probability", { type: "number", minimum: 0, maximum: 1 }],
  ["decimal bounds", { type: "number", minimum: -0.5, exclusiveMaximum: 1.25 }],
  ["positive numbers", { type: "number", exclusiveMinimum: 0 }],
  ["arrays with bounds", { type: "array", items: { type: "integer" }, minItems: 2, maxItems: 4 }],
  ["an empty array", { type: "array", maxItems: 0 }],
  ["tuples", { type: "array", prefixItems: [{ type: "string" }, { type: "null" }], items: false, minItems: 1 }],
  [
    "tuples with more",
    { type: "array", prefixItems: [{ type: "null" }], items: { type: "boolean" }, minItems: 3, maxItems: 5 },
  ],
  ["several types", { type: ["string", "null", "integer"], maxLength: 3, minimum: 5 }],
  [
    "alternatives",
    {
      anyOf: [
        { type: "object", properties: { a: { const: 1 } }, required: ["a"] },
        { type: "array", items: { type: "null" } },
      ],
    },
  ],
  [
    "alternatives with something in common",
    {
      type: "object",
      properties: { k: { type: "null" } },
      required: ["k"],
      anyOf: [{ properties: { a: { const: 1 } }, required: ["a"] }, { properties: { b: { const: 2 } } }],
    },
  ],
  [
    "one of several told apart by a property",
    {
      oneOf: [
        { type: "object", properties: { t: { const: "a" }, x: { type: "null" } }, required: ["t"] },
        { type: "object", properties: { t: { const: "b" } }, required: ["t"] },
      ],
    },
  ],
  [
    "all of several",
    {
      allOf: [{ $ref: "#/$defs/a" }, { properties: { b: { type: "boolean" } }, required: ["b"] }],
      $defs: { a: { type: "object", properties: { a: { type: "null" } }, required: ["a"] } },
    },
  ],
  [
    "recursion",
    {
      $defs: {
        node: {
          type: "object",
          properties: { v: { type: "integer" }, next: { anyOf: [list, { type: "null" }] } },
          required: ["v", "next"],
        },
      },
      ...list,
    },
  ],
  [
    "itself",
    { type: "object", properties: { children: { type: "array", items: { $ref: "#" } } }, required: ["children"] },
  ],
  [
    "formats",
    {
      type: "object",
      properties: {
        d: { type: "string", format: "date-time" },
        u: { type: "string", format: "uuid" },
        m: { type: "string", format: "email" },
      },
      required: ["d", "u", "m"],
    },
  ],
];

describe("what a schema's grammar allows", () => {
  it.each(schemas)("satisfies the schema: %s", async (_, schema) => {
    const valid = ajv.compile(schema);
    const grammar = formatGrammar({ kind: "schema", schema });
    let complete = 0;
    for (let seed = 1; seed <= 8; seed++) {
      const answer = await walk(w, grammar, seed);
      if (!answer.complete) continue;
      complete++;
      const value = JSON.parse(answer.text);
      expect(valid(value), `${answer.text}: ${JSON.stringify(valid.errors)}`).toBe(true);
    }
    expect(complete).toBeGreaterThan(2);
  });

  it.each([
    [0, 32],
    [0, 33],
    [0, 64],
    [0, 97],
    [31, 32],
    [32, 65],
    [33, 33],
    [70, 101],
    [65, 1000],
  ])("counts the characters of a string of %i to %i", async (minLength, maxLength) => {
    const grammar = formatGrammar({ kind: "schema", schema: { type: "string", minLength, maxLength } });
    const matching = await w.engine.open(grammar);
    const [quote, a] = [34, 97];
    expect(matching.accept(quote)).toBe(true);
    for (let length = 0; length <= maxLength; length++) {
      const verdict = await matching.verdict(false);
      if (verdict.kind === "end") throw new Error(`ends after ${length} characters`);
      const may = (id: number) => ((verdict.mask[id >>> 5] >>> (id & 31)) & 1) === 1;
      expect([length, may(quote), may(a)]).toEqual([length, length >= minLength, length < maxLength]);
      if (length < maxLength) expect(matching.accept(a)).toBe(true);
    }
    matching.dispose();
  });

  it("is a JSON object where only that is asked", async () => {
    for (let seed = 1; seed <= 6; seed++) {
      const { text, complete } = await walk(w, formatGrammar({ kind: "json" }), seed);
      if (complete) expect(typeof JSON.parse(text)).toBe("object");
    }
  });

  it("has every property that may come, and dates that are dates", async () => {
    const schema = { type: "object", properties: { d: { type: "string", format: "date" } }, required: ["d"] };
    for (let seed = 1; seed <= 10; seed++) {
      const { d } = JSON.parse((await walk(w, formatGrammar({ kind: "schema", schema }), seed)).text);
      expect(new Date(`${d}T00:00:00Z`).toISOString().slice(0, 10)).toBe(d);
    }
  });
});

describe("a schema that a grammar cannot keep", () => {
  const deep = () => {
    let schema: object = { type: "null" };
    for (let i = 0; i < 100; i++) schema = { type: "array", items: schema };
    return schema;
  };
  it.each<[string, object, RegExp]>([
    ["not", { properties: { a: { not: {} } } }, /#\/properties\/a uses "not", which is not supported/],
    ["if", { if: {} }, /"if"/],
    ["patternProperties", { patternProperties: {} }, /"patternProperties"/],
    ["uniqueItems", { type: "array", uniqueItems: true }, /"uniqueItems"/],
    ["multipleOf", { type: "integer", multipleOf: 5 }, /"multipleOf"/],
    ["minProperties", { type: "object", minProperties: 1 }, /"minProperties"/],
    ["a foreign reference", { $ref: "https://example.com/x" }, /only references within the schema/],
    ["a dangling reference", { $ref: "#/$defs/x" }, /not there/],
    [
      "a circle of references",
      { $ref: "#/$defs/a", $defs: { a: { $ref: "#/$defs/b" }, b: { $ref: "#/$defs/a" } } },
      /without end/,
    ],
    ["an unknown type", { type: "blah" }, /unknown type "blah"/],
    ["an empty range", { type: "integer", minimum: 5, maximum: 3 }, /No number is at least 5 and at most 3/],
    ["oneOf that overlaps", { oneOf: [{ type: "integer" }, { type: "number" }] }, /use anyOf/],
    [
      "a required property that is not allowed",
      { type: "object", properties: { a: {} }, required: ["b"] },
      /requires "b"/,
    ],
    ["lookahead", { type: "string", pattern: "(?=a)b" }, /lookahead/],
    ["a backreference", { type: "string", pattern: "(a)\\1" }, /backreferences/],
    ["bounds that multiply", { type: "string", pattern: "((a{1000}){1000}){9}" }, /too large/],
    ["a large class beyond ASCII", { type: "string", pattern: "[一-龥]" }, /beyond ASCII/],
    ["too many values", { enum: Array.from({ length: 2000 }, (_, i) => i) }, /more than 1000/],
    ["too deep", deep(), /nested more than/],
    ["a schema of megabytes", { description: "x".repeat(200_000) }, /characters/],
  ])("is refused: %s", (_, schema, message) => {
    expect(() => schemaRule(new Rules(), schema)).toThrow(message);
  });
});
