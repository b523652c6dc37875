// A layer with recurrent state beside paged ones: the state lives in pages of its own group, is copied for forks and
// snapshots, and starts at zero.
import { expect, test } from "vitest";
import { PlanBuilder } from "../../src/plan/build.js";
import { add, attention, cacheWrite, causalConv, embed, gatherRows, logits, sample } from "../../src/plan/ops/index.js";
import { batchOf, limits, updates } from "../support/batch.js";
import { describeDevices, testDevices } from "../support/devices.js";
import { seededRandom } from "../support/random.js";
import { MemoryWeights } from "../support/weights.js";

const vocabSize = 64;
const width = 32;

function hybrid() {
  const random = seededRandom(11);
  const weights = new MemoryWeights();
  const b = new PlanBuilder(vocabSize);
  const weight = (name: string, shape: number[]) => b.weight(name, shape, [weights.random(name, "F32", shape, random)]);
  const table = weight("table", [vocabSize, width]);
  const x = b.apply(embed, "x", { ids: b.input("tokenIds"), weight: table }, { scale: 1 });
  const state = b.cache("conv.state", { kind: "state", shape: [width, 3] });
  const conv = { kernel: 4, activation: "silu" } as const;
  const mixed = b.apply(causalConv, "conv", { x, weight: weight("kernel", [width, 4]), cache: state }, conv);
  const heads = { numKvHeads: 1, headDim: width, vHeadDim: width };
  const cache = b.cache("attention.cache", { kind: "paged", ...heads });
  b.node(cacheWrite, "write", { k: mixed, v: mixed, cache }, heads);
  const seen = b.apply(
    attention,
    "attention",
    { q: mixed, cache },
    { numHeads: 1, ...heads, scale: 0.2, causal: true },
  );
  const sum = b.apply(add, "sum", { a: mixed, b: seen }, { alpha: 1, beta: 1 });
  const rows = b.apply(gatherRows, "rows", { x: sum, rows: b.input("sampleRows") }, {});
  b.node(sample, "sample", { logits: b.apply(logits, "logits", { x: rows, weight: table }, { scale: 1 }) }, {});
  return { plan: b.finish(), weights };
}

await describeDevices(
  "recurrent state",
  (device) => {
    const there = device.info.ops.has("causalConv");
    const compile = () => {
      const { plan, weights } = hybrid();
      return device.compile(plan, weights, limits, { dump: true });
    };
    const prompt = [3, 17, 5, 60, 22, 41, 9];
    const paged = [0, 1];

    test.skipIf(!there)("groups: attention first, states last, a page a sequence", async () => {
      const program = await compile();
      expect(program.caches.map(({ kind }) => kind)).toEqual(["paged", "state"]);
      expect(program.caches[1].pageTokens).toBe(0);
      await program.close();
    });

    test.skipIf(!there)("a prompt in pieces, and a fork from a snapshot, give the logits of the whole", async () => {
      const program = await compile();
      const run = async (slot: number, tokens: number[], kvStart: number, pages: number[][]) => {
        const batch = batchOf([{ slot, tokens, kvStart, pages }], { updates: updates([[slot, {}]]) });
        await program.run(batch).result;
        return (await program.dump("logits")).data.slice();
      };
      const whole = await run(0, prompt, 0, [paged, [0]]);
      await run(1, prompt.slice(0, 4), 0, [[2, 3], [1]]);
      // snapshot after 4 tokens; the sequence goes on and spoils its own state
      program.copyPages(1, Int32Array.of(1), Int32Array.of(2));
      program.copyPages(0, Int32Array.of(2), Int32Array.of(4));
      const pieces = await run(1, prompt.slice(4), 4, [[2, 3], [1]]);
      expect(pieces).toEqual(whole);
      const fork = await run(2, prompt.slice(4), 4, [[4, 5], [2]]);
      expect(fork).toEqual(whole);
      await program.close();
    });

    test.skipIf(!there)("a sequence at position 0 does not see what its page held before", async () => {
      const program = await compile();
      const batch = (slot: number) =>
        batchOf([{ slot, tokens: prompt, kvStart: 0, pages: [paged, [0]] }], { updates: updates([[slot, {}]]) });
      await program.run(batch(0)).result;
      const before = (await program.dump("logits")).data.slice();
      await program.run(batch(1)).result;
      expect((await program.dump("logits")).data).toEqual(before);
      await program.close();
    });
  },
  testDevices.filter(({ wholePlansOnly }) => !wholePlansOnly),
);
