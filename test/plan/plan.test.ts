// Building, checking, costing and printing plans.
import { describe, expect, test } from "vitest";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { PlanBuilder } from "../../src/plan/build.js";
import { nodeCost, planCost, planWeightBytes, weightBytes } from "../../src/plan/cost.js";
import { add, attention, embed, erf, gatedLinear, linear, rmsNorm } from "../../src/plan/ops/index.js";
import type { Plan, Tensor } from "../../src/plan/plan.js";
import { planLines, printPlan, quantity } from "../../src/plan/print.js";
import { validatePlan } from "../../src/plan/validate.js";
import { openTiny } from "../support/golden.js";

function bench() {
  const b = new PlanBuilder(10);
  const weight = (name: string, shape: number[]) =>
    b.weight(name, shape, [{ name, type: "BF16", shape: [shape[0], shape[1] ?? 1] }]);
  const x = b.apply(embed, "x", { ids: b.input("tokenIds"), weight: weight("table", [10, 12]) }, { scale: 1 });
  return { b, x, weight };
}

describe("the builder", () => {
  test("gives shapes that follow from the inputs", () => {
    const { b, x, weight } = bench();
    expect(x.shape).toEqual(["tokens", 12]);
    expect(b.apply(linear, "y", { x, weight: weight("w", [7, 12]) }, {}).shape).toEqual(["tokens", 7]);
    expect(b.apply(gatedLinear, "z", { x, weight: weight("g", [8, 12]) }, { kind: "silu" }).shape).toEqual([
      "tokens",
      4,
    ]);
    expect(b.apply(rmsNorm, "n", { x, weight: weight("h", [4]) }, { eps: 0, groups: 3 }).shape).toEqual(["tokens", 12]);
  });

  test.each<[string, (one: ReturnType<typeof bench>) => unknown, RegExp]>([
    [
      "widths that differ",
      ({ b, x, weight }) => b.apply(linear, "y", { x, weight: weight("w", [7, 11]) }, {}),
      /y: weight of linear is \[7, 11\], its dimension 1 should be 12/,
    ],
    [
      "groups that do not divide",
      ({ b, x, weight }) => b.apply(rmsNorm, "y", { x, weight: weight("w", [5]) }, { eps: 0, groups: 2 }),
      /should be 10/,
    ],
    ["a missing input", ({ b, x }) => b.apply(linear, "y", { x }, {}), /needs its input weight/],
    [
      "an input that the op has not",
      ({ b, x }) => b.apply(add, "y", { a: x, b: x, c: x }, { alpha: 1, beta: 1 }),
      /has no input c/,
    ],
    [
      "a parameter of another kind",
      ({ b, x }) => b.apply(add, "y", { a: x, b: x }, { alpha: "1", beta: 1 } as never),
      /parameter alpha of add is 1, should be f32/,
    ],
    [
      "a parameter that the op has not",
      ({ b, x }) => b.apply(add, "y", { a: x, b: x }, { alpha: 1, beta: 1, gamma: 1 } as never),
      /no parameter gamma/,
    ],
    [
      "integers for values",
      ({ b, x }) => b.apply(add, "y", { a: x, b: b.input("tokenIds") }, { alpha: 1, beta: 1 }),
      /b of add is i32/,
    ],
    [
      "a tensor for a cache",
      ({ b, x }) =>
        b.apply(
          attention,
          "y",
          { q: x, cache: x },
          { numHeads: 3, numKvHeads: 3, headDim: 4, vHeadDim: 4, scale: 1, causal: true },
        ),
      /cache of attention should be a cache/,
    ],
    ["one name twice", ({ b, x }) => b.apply(add, "x", { a: x, b: x }, { alpha: 1, beta: 1 }), /two tensors called x/],
  ])("refuses %s", (_what, recipe, message) => {
    expect(() => recipe(bench())).toThrow(message);
  });

  test("numbers page groups: full attention, windows by size, states", () => {
    const { b, x } = bench();
    const kv = { numKvHeads: 1, headDim: 12, vHeadDim: 12 };
    const windows = [64, undefined, 16, 64];
    windows.forEach((window, i) => {
      const cache = b.cache(`c${i}`, { kind: "paged", window, ...kv });
      b.apply(attention, `y${i}`, { q: x, cache }, { numHeads: 1, ...kv, scale: 1, window, causal: true });
    });
    b.cache("s", { kind: "state", shape: [3] });
    expect(b.finish().caches.map(({ group }) => group)).toEqual([2, 0, 1, 2, 3]);
  });
});

describe("validatePlan", () => {
  const plan = () => {
    const { b, x, weight } = bench();
    const y = b.apply(linear, "y", { x, weight: weight("w", [12, 12]) }, {});
    b.apply(add, "z", { a: x, b: y }, { alpha: 1, beta: 1 });
    return b.finish();
  };

  test("takes what the builder makes", () => expect(() => validatePlan(plan())).not.toThrow());

  test.each<[string, (plan: Plan) => Plan, RegExp]>([
    ["nodes out of order", (p) => ({ ...p, nodes: [...p.nodes].reverse() }), /z reads x before it is written/],
    ["a node twice", (p) => ({ ...p, nodes: [...p.nodes, p.nodes[2]] }), /z is written twice/],
    ["tensors out of order", (p) => ({ ...p, tensors: [...p.tensors].reverse() }), /has id/],
    [
      "a weight without a recipe",
      (p) => ({ ...p, tensors: p.tensors.map((t): Tensor => ({ ...t, from: undefined })) }),
      /a weight without a recipe/,
    ],
  ])("refuses %s", (_what, change, message) => {
    expect(() => validatePlan(change(plan()))).toThrow(message);
  });
});

describe("cost", () => {
  const step = { tokens: 1, sequences: 1, rows: 1, context: 100, kvBytes: 2 };

  test("a linear reads its weight once, as it is stored", () => {
    const { b, x, weight } = bench();
    b.apply(linear, "y", { x, weight: weight("w", [7, 12]) }, {});
    const node = b.finish().nodes[1];
    expect(nodeCost(node, step)).toEqual({ flops: 2 * 7 * 12, bytes: 7 * 12 * 2 + 4 * (7 + 12) });
    expect(nodeCost(node, { ...step, tokens: 10 }).flops).toBe(10 * 2 * 7 * 12);
  });

  test("attention reads the cache up to its window", () => {
    const params = { numHeads: 4, numKvHeads: 2, headDim: 3, vHeadDim: 3, scale: 1, causal: true };
    const sizes = { ...step, n: 1 };
    const own = 4 * 4 * 6;
    expect(attention.cost(sizes, params, 0)).toEqual({ flops: 2 * 4 * 100 * 6, bytes: 100 * 2 * 6 * 2 + own });
    expect(attention.cost(sizes, { ...params, window: 10 }, 0).bytes).toBe(10 * 2 * 6 * 2 + own);
    // a prompt of 100 in one step sees half of its pairs
    expect(attention.cost({ ...sizes, tokens: 100, n: 100 }, params, 0).flops).toBe(2 * 100 * 4 * 50.5 * 6);
  });

  test("a range of a quantised weight costs its share", () => {
    const piece = {
      name: "w",
      type: "Q4_0",
      shape: [64, 64],
      rows: { start: 0, end: 16 },
      cols: { start: 0, end: 32 },
    } as const;
    const tensor: Tensor = { id: 0, name: "w", shape: [16, 32], dtype: "f32", role: "weight", from: [piece] };
    expect(weightBytes(tensor)).toBe(16 * 18);
  });

  test("a tied embedding is one weight", async () => {
    const checkpoint = await openTiny("qwen2");
    const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
    const stored = [...checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
    expect(planWeightBytes(plan)).toBe(stored);
    expect(planCost(plan, step).bytes).toBeGreaterThan(stored - 320 * 64 * 2);
  });
});

test("a printed plan has a line a node, with types, FLOPs and totals", async () => {
  const checkpoint = await openTiny("llama-mha");
  const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
  const step = { tokens: 16, sequences: 1, rows: 1, context: 16, kvBytes: 2 };
  const lines = printPlan(plan, step).split("\n");
  expect(lines.length).toBe(plan.nodes.length + 4);
  expect(lines[0]).toBe("plan: 53 nodes, 3 caches, vocabulary 320");
  expect(lines.find((line) => line.includes("q_proj [tokens, 64]"))).toMatch(
    /linear +layers\.0\.self_attn\.q_proj \[tokens, 64\] +BF16 8\.19kB +131k +16\.4kB/,
  );
  expect(lines.at(-1)).toMatch(/^total: .* FLOPs, .*B moved a step; weights as stored: 365kB$/);
  expect(planLines(plan, step)[2]).toMatchObject({ op: "linear", output: "layers.0.self_attn.q_proj", flops: 131072 });
  expect([0, 999, 1000, 1234567].map(quantity)).toEqual(["0", "999", "1.00k", "1.23M"]);
});

test("the error function to twelve digits", () => {
  const known = [
    [0, 0],
    [0.5, 0.520499877813],
    [1, 0.84270079295],
    [2, 0.995322265019],
    [3.5, 0.999999256902],
    [7, 1],
  ];
  for (const [x, value] of known) {
    expect(erf(x)).toBeCloseTo(value, 11);
    expect(erf(-x)).toBeCloseTo(-value, 11);
  }
});
