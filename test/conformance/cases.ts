// Owns: the plans of the conformance suite: one op each, fed by embeddings of random tables, at sizes that are awkward.
import { type StorageType, storageTypes } from "../../src/base/dtype.js";
import type { KvDType } from "../../src/device/device.js";
import { PlanBuilder } from "../../src/plan/build.js";
import * as ops from "../../src/plan/ops/index.js";
import type { Plan, Tensor, WeightPiece } from "../../src/plan/plan.js";
import { seededRandom } from "../support/random.js";
import { MemoryWeights } from "../support/weights.js";

/** Rows of the tables, so most tokens of a step; ids are positions in a table. */
export const vocabSize = 96;

export interface ConformanceCase {
  readonly op: string;
  readonly name: string;
  readonly plan: Plan;
  readonly weights: MemoryWeights;
  /** Names of the tensors to compare. */
  readonly outputs: readonly string[];
  /** Length of the longest reduction. */
  readonly reduction: number;
  /** Types of the weights that the op multiplies with: decide the arithmetic. */
  readonly types: readonly StorageType[];
  readonly kvDtype?: KvDType;
  /** A cached value was computed and then rounded: one step of the cache's dtype may differ. */
  readonly roundedCache?: boolean;
  /** A sequence's tokens by steps; each step carries all sequences that have tokens left. */
  readonly steps: readonly (readonly number[])[];
}

/** What a case's recipe builds with. */
class Bench {
  readonly builder = new PlanBuilder(vocabSize);
  readonly weights = new MemoryWeights();
  readonly random: ReturnType<typeof seededRandom>;

  constructor(seed: number) {
    this.random = seededRandom(seed);
  }

  /** [tokens, width] of random values: an embedding with a table of its own. */
  values(name: string, width: number): Tensor {
    const table = this.weight(`${name}.table`, [vocabSize, width]);
    return this.builder.apply(ops.embed, name, { ids: this.builder.input("tokenIds"), weight: table }, { scale: 1 });
  }

  weight(name: string, shape: readonly number[], type: StorageType = "F32"): Tensor {
    return this.pieces(name, shape, [this.weights.random(name, type, shape, this.random)]);
  }

  pieces(name: string, shape: readonly number[], from: readonly WeightPiece[]): Tensor {
    return this.builder.weight(name, shape, from);
  }

  /** One value of an F32 weight becomes another. */
  poke(name: string, index: number, value: number): void {
    const bytes = this.weights.read(name);
    new DataView(bytes.buffer, bytes.byteOffset).setFloat32(4 * index, value, true);
  }

  get positions(): Tensor {
    return this.builder.input("positions");
  }
}

/** One token; a few more than a kernel's tile; more than a page of 16, not a multiple of anything. */
const single = [[1]];
const few = [[17]];
const mixed = [
  [5, 1, 33],
  [1, 1, 1],
];

let seed = 1;

function define(
  op: string,
  name: string,
  recipe: (bench: Bench) => readonly string[] | undefined,
  rest: Partial<ConformanceCase> = {},
): ConformanceCase[] {
  return (rest.steps ? [rest.steps] : [single, few]).map((steps) => {
    const bench = new Bench(seed++);
    const outputs = recipe(bench) ?? ["y"];
    const tokens = steps.map((step) => step.reduce((a, b) => a + b, 0)).join(" then ");
    return {
      op,
      name: `${name}, ${tokens} tokens`,
      plan: bench.builder.finish(),
      weights: bench.weights,
      outputs,
      reduction: 1,
      types: [],
      ...rest,
      steps,
    };
  });
}

const simple: ConformanceCase[][] = [
  ...storageTypes.map((type) =>
    define("embed", `${type} scaled`, (b) => {
      const ids = b.builder.input("tokenIds");
      b.builder.apply(ops.embed, "y", { ids, weight: b.weight("w", [vocabSize, 256], type) }, { scale: 2.5 });
      return undefined;
    }),
  ),
  define("gatherRows", "every other token", (b) => {
    const rows = b.builder.input("sampleRows");
    b.builder.apply(ops.gatherRows, "y", { x: b.values("x", 40), rows }, {});
    return undefined;
  }),
  ...[
    [64, 1],
    [576, 1],
    [33, 1],
    [64, 9],
    [128, 3],
  ].map(([width, groups]) =>
    define(
      "rmsNorm",
      `${groups} of ${width}`,
      (b) => {
        const inputs = { x: b.values("x", width * groups), weight: b.weight("w", [width]) };
        b.builder.apply(ops.rmsNorm, "y", inputs, { eps: 1e-5, groups });
        return undefined;
      },
      { reduction: width },
    ),
  ),
  ...[true, false].map((hasBias) =>
    define(
      "layerNorm",
      hasBias ? "with bias" : "without bias",
      (b) => {
        const bias = hasBias ? b.weight("b", [80]) : undefined;
        b.builder.apply(ops.layerNorm, "y", { x: b.values("x", 80), weight: b.weight("w", [80]), bias }, { eps: 1e-5 });
        return undefined;
      },
      { reduction: 160 },
    ),
  ),
  define(
    "addNorm",
    "scaled sum",
    (b) => {
      const inputs = { a: b.values("a", 576), b: b.values("b", 576), weight: b.weight("w", [576]) };
      b.builder.node(ops.addNorm, "out", inputs, { alpha: 1, beta: 0.5, eps: 1e-6 });
      return ["out.sum", "out.y"];
    },
    { reduction: 576 },
  ),
  define("add", "scaled", (b) => {
    b.builder.apply(ops.add, "y", { a: b.values("a", 37), b: b.values("b", 37) }, { alpha: 0.25, beta: -3 });
    return undefined;
  }),
  ...(ops.activationKinds.split("|") as ops.Activation[]).flatMap((kind) => [
    define("activation", kind, (b) => {
      b.builder.apply(ops.activation, "y", { x: b.values("x", 70) }, { kind });
      return undefined;
    }),
    define("gatedActivation", kind, (b) => {
      b.builder.apply(ops.gatedActivation, "y", { gate: b.values("g", 70), up: b.values("u", 70) }, { kind });
      return undefined;
    }),
    define(
      "gatedLinear",
      kind,
      (b) => {
        const inputs = { x: b.values("x", 96), weight: b.weight("w", [2 * 50, 96]), bias: b.weight("b", [100]) };
        b.builder.apply(ops.gatedLinear, "y", inputs, { kind });
        return undefined;
      },
      { reduction: 96, types: ["F32"] },
    ),
  ]),
];

const linears: ConformanceCase[][] = storageTypes.flatMap((type) =>
  [
    [256, 48],
    [512, 7],
    [768, 130],
  ].map(([k, m]) =>
    define(
      "linear",
      `${type} ${m} x ${k}`,
      (b) => {
        const bias = m === 130 ? b.weight("b", [m]) : undefined;
        b.builder.apply(ops.linear, "y", { x: b.values("x", k), weight: b.weight("w", [m, k], type), bias }, {});
        return undefined;
      },
      { reduction: k, types: [type] },
    ),
  ),
);

/** Recipes that are more than one whole tensor. */
const recipes: ConformanceCase[][] = [
  define(
    "linear",
    "segments of Q4_K, Q6_K and F32",
    (b) => {
      const pieces = (["Q4_K", "Q6_K", "F32"] as const).map((type, i) =>
        b.weights.random(`w${i}`, type, [20 + i, 256], b.random),
      );
      const bias = b.pieces(
        "bias",
        [63],
        [b.weights.random("b0", "F32", [40], b.random), b.weights.random("b1", "F32", [23], b.random)],
      );
      b.builder.apply(ops.linear, "y", { x: b.values("x", 256), weight: b.pieces("w", [63, 256], pieces), bias }, {});
      return undefined;
    },
    { reduction: 256, types: ["Q4_K", "Q6_K", "F32"] },
  ),
  ...(["F32", "BF16", "Q4_0", "Q8_0"] as const).map((type) =>
    define(
      "linear",
      `${type}, a range of rows and of columns`,
      (b) => {
        const piece = b.weights.random("w", type, [64, 256], b.random);
        const part = { ...piece, rows: { start: 9, end: 42 }, cols: { start: 64, end: 192 } };
        b.builder.apply(ops.linear, "y", { x: b.values("x", 128), weight: b.pieces("w", [33, 128], [part]) }, {});
        return undefined;
      },
      { reduction: 128, types: [type] },
    ),
  ),
  ...(["F32", "Q4_K"] as const).map((type) =>
    define(
      "linear",
      `${type}, rows put back in order`,
      (b) => {
        const piece = b.weights.random("w", type, [96, 256], b.random);
        const transform = { kind: "unpermute", heads: 3 } as const;
        b.builder.apply(
          ops.linear,
          "y",
          { x: b.values("x", 256), weight: b.pieces("w", [96, 256], [{ ...piece, transform }]) },
          {},
        );
        return undefined;
      },
      { reduction: 256, types: [type] },
    ),
  ),
  define(
    "linear",
    "F16, stored the other way round",
    (b) => {
      const piece = b.weights.random("w", "F16", [256, 40], b.random);
      const weight = b.pieces("w", [40, 256], [{ ...piece, transform: { kind: "transpose" } }]);
      b.builder.apply(ops.linear, "y", { x: b.values("x", 256), weight }, {});
      return undefined;
    },
    { reduction: 256, types: ["F16"] },
  ),
  define(
    "rmsNorm",
    "weights stored as w - 1",
    (b) => {
      const piece = b.weights.random("w", "BF16", [64], b.random);
      const weight = b.pieces("w", [64], [{ ...piece, transform: { kind: "addOne" } }]);
      b.builder.apply(ops.rmsNorm, "y", { x: b.values("x", 64), weight }, { eps: 1e-6, groups: 1 });
      return undefined;
    },
    { reduction: 64 },
  ),
  ...(["Q4_K", "Q8_0", "BF16"] as const).map((type) =>
    define(
      "gatedLinear",
      `${type} in two pieces`,
      (b) => {
        const pieces = ["gate", "up"].map((name) => b.weights.random(name, type, [50, 256], b.random));
        b.builder.apply(
          ops.gatedLinear,
          "y",
          { x: b.values("x", 256), weight: b.pieces("w", [100, 256], pieces) },
          { kind: "silu" },
        );
        return undefined;
      },
      { reduction: 256, types: [type] },
    ),
  ),
  ...[undefined, 3].map((softcap) =>
    define(
      "logits",
      softcap ? "softcapped" : "scaled",
      (b) => {
        const x = b.builder.apply(
          ops.gatherRows,
          "x",
          { x: b.values("all", 256), rows: b.builder.input("sampleRows") },
          {},
        );
        const weight = b.weight("w", [vocabSize, 256], "F16");
        b.builder.apply(ops.logits, "y", { x, weight }, { scale: 0.125, softcap });
        return undefined;
      },
      { reduction: 256, types: ["F16"] },
    ),
  ),
];

function invFreq(rotaryDim: number): number[] {
  return Array.from({ length: rotaryDim / 2 }, (_, i) => 10_000 ** ((-2 * i) / rotaryDim));
}

const ropes: ConformanceCase[][] = [
  { headDim: 64, rotaryDim: 64, interleaved: false, magnitude: 1 },
  { headDim: 80, rotaryDim: 32, interleaved: false, magnitude: 1.25 },
  { headDim: 32, rotaryDim: 32, interleaved: true, magnitude: 1 },
].map((turn) =>
  define(
    "rope",
    `${turn.rotaryDim} of ${turn.headDim}${turn.interleaved ? ", interleaved" : ""}`,
    (b) => {
      const params = { ...turn, numHeads: 3, invFreq: invFreq(turn.rotaryDim) };
      b.builder.apply(ops.rope, "y", { x: b.values("x", 3 * turn.headDim), positions: b.positions }, params);
      return undefined;
    },
    { reduction: 64, steps: mixed },
  ),
);

interface Heads {
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  window?: number;
  softcap?: number;
  causal?: boolean;
  sinks?: boolean;
  kvDtype?: KvDType;
  /** Queries and a key that are not numbers, a sink of −Infinity. */
  broken?: boolean;
}

const layouts: Heads[] = [
  ...[32, 64, 80, 96, 128, 256].map((headDim) => ({ numHeads: 4, numKvHeads: 2, headDim })),
  { numHeads: 4, numKvHeads: 4, headDim: 64 },
  { numHeads: 9, numKvHeads: 3, headDim: 64 },
  { numHeads: 5, numKvHeads: 1, headDim: 32 },
  { numHeads: 4, numKvHeads: 1, headDim: 64, window: 8 },
  { numHeads: 4, numKvHeads: 2, headDim: 32, window: 20 },
  { numHeads: 4, numKvHeads: 2, headDim: 32, softcap: 5 },
  { numHeads: 4, numKvHeads: 2, headDim: 32, sinks: true },
  { numHeads: 4, numKvHeads: 2, headDim: 32, causal: false },
  { numHeads: 4, numKvHeads: 2, headDim: 32, broken: true },
  { numHeads: 4, numKvHeads: 2, headDim: 32, broken: true, sinks: true },
  ...(["f16", "bf16", "q8"] as const).map((kvDtype) => ({ numHeads: 6, numKvHeads: 2, headDim: 64, kvDtype })),
  { numHeads: 4, numKvHeads: 2, headDim: 80, window: 20, softcap: 5, sinks: true, kvDtype: "q8" },
  { numHeads: 4, numKvHeads: 4, headDim: 256, causal: false, kvDtype: "q8" },
  { numHeads: 4, numKvHeads: 2, headDim: 32, broken: true, kvDtype: "q8" },
];

const attentions: ConformanceCase[][] = layouts.flatMap((heads) => {
  const { numHeads, numKvHeads, headDim, window, softcap, causal = true, sinks, broken, kvDtype = "f32" } = heads;
  const words = [
    `${numHeads}/${numKvHeads} heads of ${headDim}`,
    window && `window ${window}`,
    softcap && "softcap",
    sinks && "sinks",
    !causal && "both ways",
    broken && "not numbers",
    kvDtype,
  ].filter(Boolean);
  const kv = { numKvHeads, headDim, vHeadDim: headDim };
  const recipe = (b: Bench) => {
    const cache = b.builder.cache("cache", { kind: "paged", window, ...kv });
    const k = b.values("k", numKvHeads * headDim);
    b.builder.node(ops.cacheWrite, "write", { k, v: b.values("v", numKvHeads * headDim), cache }, kv);
    const inputs = {
      q: b.values("q", numHeads * headDim),
      cache,
      sinks: sinks ? b.weight("s", [numHeads]) : undefined,
    };
    const params = { numHeads, ...kv, scale: headDim ** -0.5, window, softcap, causal };
    b.builder.apply(ops.attention, "y", inputs, params);
    if (broken) {
      b.poke("q.table", 0, Number.NaN);
      b.poke("q.table", 2 * numHeads * headDim, Number.POSITIVE_INFINITY);
      b.poke("k.table", 4 * numKvHeads * headDim, Number.NaN);
      if (sinks) b.poke("s", 0, Number.NEGATIVE_INFINITY);
    }
    return undefined;
  };
  const rest = { reduction: headDim + 48, kvDtype };
  return [mixed, [[50], [1], [30, 2], [1, 1]]].map((steps) =>
    define("attention", words.join(", "), recipe, { ...rest, steps }),
  );
});

const fusedHeads: ConformanceCase[][] = (["f32", "f16", "q8"] as const).flatMap((kvDtype) =>
  [false, true].map((norms) =>
    define(
      "qkvRopeCache",
      `${norms ? "with" : "without"} norms, ${kvDtype}`,
      (b) => {
        const sizes = { numHeads: 6, numKvHeads: 2, headDim: 64, vHeadDim: 64 };
        const { numHeads, ...kv } = sizes;
        const cache = b.builder.cache("cache", { kind: "paged", ...kv });
        const norm = (name: string) => (norms ? b.weight(name, [64]) : undefined);
        const inputs = {
          qkv: b.values("qkv", 640),
          positions: b.positions,
          qNorm: norm("qn"),
          kNorm: norm("kn"),
          cache,
        };
        const turn = { rotaryDim: 64, invFreq: invFreq(64), magnitude: 1, interleaved: false };
        const q = b.builder.apply(ops.qkvRopeCache, "q", inputs, { ...sizes, ...turn, normEps: norms ? 1e-6 : 0 });
        b.builder.apply(ops.attention, "y", { q, cache }, { ...sizes, scale: 0.125, causal: true });
        return ["q", "y"];
      },
      { reduction: 128, kvDtype, roundedCache: kvDtype !== "f32", steps: mixed },
    ),
  ),
);

const recurrent: ConformanceCase[][] = (["none", "silu"] as const).map((activation) =>
  define(
    "causalConv",
    activation,
    (b) => {
      const cache = b.builder.cache("cache", { kind: "state", shape: [40, 3] });
      const inputs = { x: b.values("x", 40), weight: b.weight("w", [40, 4]), bias: b.weight("b", [40]), cache };
      b.builder.apply(ops.causalConv, "y", inputs, { kernel: 4, activation });
      return undefined;
    },
    {
      reduction: 4,
      steps: [
        [5, 1, 33],
        [1, 2, 1],
        [1, 1, 1],
      ],
    },
  ),
);

const experts: ConformanceCase[][] = [
  ...(["softmax", "sigmoid"] as const).flatMap((score) =>
    [true, false].map((normalize) =>
      define("route", `${score}${normalize ? ", normalised" : ""}`, (b) => {
        const bias = score === "sigmoid" ? b.weight("bias", [20]) : undefined;
        const how = { topK: 3, score, normalize, scale: 1.5 } as const;
        b.builder.node(ops.route, "out", { logits: b.values("x", 20), bias }, how);
        return ["out.experts", "out.weights"];
      }),
    ),
  ),
  ...(["F32", "Q4_0"] as const).map((type) =>
    define(
      "moe",
      `${type}, 2 of 5 experts`,
      (b) => {
        const logits = b.values("scores", 5);
        const how = { topK: 2, score: "softmax", normalize: true, scale: 1 } as const;
        const { experts: ids, weights } = b.builder.node(ops.route, "route", { logits }, how);
        const [gate, up] = ["gate", "up"].map((name) => b.weight(name, [5 * 32, 64], type));
        const inputs = {
          x: b.values("x", 64),
          experts: ids,
          weights,
          gate,
          up,
          down: b.weight("down", [5 * 64, 32], type),
        };
        b.builder.apply(ops.moe, "y", inputs, { numExperts: 5, kind: "silu" });
        return undefined;
      },
      { reduction: 128, types: [type] },
    ),
  ),
];

export const conformanceCases: readonly ConformanceCase[] = [
  ...simple,
  ...linears,
  ...recipes,
  ...ropes,
  ...attentions,
  ...fusedHeads,
  ...recurrent,
  ...experts,
].flat();
