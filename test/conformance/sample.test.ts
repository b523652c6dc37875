// Sampling on every device against the specification (device/reference/sample.ts), from the device's own logits.
import { describe, expect, test } from "vitest";
import { type Batch, noBias } from "../../src/device/batch.js";
import type { Device, Program } from "../../src/device/device.js";
import { type RowRequest, sampleRow } from "../../src/device/reference/sample.js";
import { PlanBuilder } from "../../src/plan/build.js";
import { embed, gatherRows, logits, sample } from "../../src/plan/ops/index.js";
import { batchOf, limits, PageKeeper, ragged, type SlotSettings, updates } from "../support/batch.js";
import { describeDevices, testDevices } from "../support/devices.js";
import { seededRandom } from "../support/random.js";
import { MemoryWeights } from "../support/weights.js";

/** Not a multiple of 32: masks end inside a word. */
const vocabSize = 1003;
const width = 32;

/** Token i's logits are column i of the head: token ids are rows of an identity. */
function compile(device: Device, head: (id: number, column: number) => number, vocab = vocabSize): Promise<Program> {
  const weights = new MemoryWeights();
  const b = new PlanBuilder(vocab);
  const cells = <T>(rows: number, f: (r: number, c: number) => T) =>
    Array.from({ length: rows * width }, (_, i) => f(Math.floor(i / width), i % width));
  const identity = weights.floats(
    "table",
    [vocab, width],
    cells(vocab, (r, c) => (r === c ? 1 : 0)),
  );
  const table = b.weight("table", [vocab, width], [identity]);
  const all = b.apply(embed, "x", { ids: b.input("tokenIds"), weight: table }, { scale: 1 });
  const x = b.apply(gatherRows, "rows", { x: all, rows: b.input("sampleRows") }, {});
  const values = weights.floats("head", [vocab, width], cells(vocab, head));
  const weight = b.weight("head", [vocab, width], [values]);
  b.node(sample, "sample", { logits: b.apply(logits, "logits", { x, weight }, { scale: 1 }) }, {});
  return device.compile(b.finish(), weights, limits, { dump: true });
}

const cases: readonly (readonly [string, SlotSettings])[] = [
  ["greedy", {}],
  ["temperature", { temperature: 0.7, seed: 1 }],
  ["high temperature", { temperature: 5, seed: 2 }],
  ["top_k", { temperature: 1, topK: 5, seed: 3 }],
  ["top_k 1", { temperature: 1, topK: 1, seed: 4 }],
  ["top_p", { temperature: 1, topP: 0.3, seed: 5 }],
  ["top_p next to nothing", { temperature: 1, topP: 1e-6, seed: 6 }],
  ["min_p", { temperature: 1.5, minP: 0.2, seed: 7 }],
  ["all three", { temperature: 1.2, topK: 40, topP: 0.8, minP: 0.05, seed: 8 }],
  ["penalties, greedy", { repetition: 1.3, frequency: 0.4, presence: 0.2, counts: history(9) }],
  ["penalties, drawn", { temperature: 1, repetition: 0.8, frequency: -0.5, presence: 1, seed: 9, counts: history(10) }],
];

function history(seed: number) {
  const random = seededRandom(seed);
  const ids = () => Array.from({ length: 60 }, () => random.below(vocabSize));
  return { prompt: ids(), output: [...ids(), ...ids().slice(0, 20), 5, 5, 5, 5] };
}

function requestOf(settings: SlotSettings, batch: Batch, row: number): RowRequest {
  const counts = settings.counts && {
    prompt: new Set(settings.counts.prompt),
    output: settings.counts.output.reduce((map, id) => map.set(id, (map.get(id) ?? 0) + 1), new Map<number, number>()),
  };
  const f = Math.fround;
  return {
    slot: {
      temperature: f(settings.temperature ?? 0),
      topK: settings.topK ?? 0,
      topP: f(settings.topP ?? 1),
      minP: f(settings.minP ?? 0),
      repetition: f(settings.repetition ?? 1),
      frequency: f(settings.frequency ?? 0),
      presence: f(settings.presence ?? 0),
      seedLow: settings.seed ?? 0,
      seedHigh: 0,
    },
    counts,
    position: batch.rowPositions[row],
    biasIds: batch.bias.ids.subarray(batch.bias.start[row], batch.bias.start[row + 1]),
    biasValues: batch.bias.values.subarray(batch.bias.start[row], batch.bias.start[row + 1]),
    target: batch.targets[row],
    topLogprobs: batch.topLogprobs,
  };
}

await describeDevices(
  "sampling",
  (device) => {
    test("draws, logprobs, ranks and best tokens are the specification's", async () => {
      const random = seededRandom(1);
      const program = await compile(device, () => 3 * random.normal());
      const pages = new PageKeeper(program).take(1);
      for (let round = 0; round < 12; round++) {
        const parts = cases.map((_, slot) => ({
          slot,
          tokens: [(slot * 5 + round * 7) % width],
          kvStart: 0,
          pages,
          targets: [round === 11 ? (slot * 91) % vocabSize : -1],
        }));
        const biased = ragged(cases.map((_, s) => (s % 3 === 1 ? [s * 17, 400 + s, 900] : [])));
        const values = Float32Array.from(biased.ids, (id) => (id === 900 ? Number.NEGATIVE_INFINITY : 6));
        const bias = { ...biased, values };
        const settings = updates(cases.map(([, one], slot) => [slot, one] as const));
        const batch = {
          ...batchOf(parts, { updates: settings, bias, topLogprobs: 4 }),
          rowPositions: Int32Array.from(cases, (_, s) => 100 * round + s),
        };
        const result = await program.run(batch).result;
        const { data } = await program.dump("logits");
        cases.forEach(([name, one], row) => {
          const own = data.subarray(row * vocabSize, (row + 1) * vocabSize) as Float32Array;
          const truth = sampleRow(own, requestOf(one, batch, row));
          expect(result.tokens[row], `${name}, round ${round}`).toBe(truth.token);
          expect(result.ranks[row], `${name}: rank`).toBe(truth.rank);
          expect(result.logprobs[row], `${name}: logprob`).toBeCloseTo(truth.logprob, 4);
          expect(result.topIds.slice(row * 4, row * 4 + 4), `${name}: best`).toEqual(truth.topIds);
          truth.topLogprobs.forEach((value, i) => {
            expect(result.topLogprobs[row * 4 + i]).toBeCloseTo(value, 4);
          });
        });
      }
      await program.close();
    });

    test("vocabularies of several stretches: peaked, flat and with many equals", async () => {
      const vocab = 20_011;
      const random = seededRandom(2);
      // Column 0 is peaked, 1 nearly flat, 2 of a few different values.
      const head = (_: number, column: number) => {
        const x = random.normal();
        return column === 0 ? 3 * x : column === 1 ? 0.05 * x : column === 2 ? Math.round(2 * x) : 0;
      };
      const program = await compile(device, head, vocab);
      const pages = new PageKeeper(program).take(1);
      const settings: SlotSettings[] = [
        { temperature: 1 },
        { temperature: 1, minP: 0.02 },
        { temperature: 0.8, topP: 0.9 },
        { temperature: 1, topK: 50 },
        { temperature: 1, topK: 7000, topP: 0.95 },
        { temperature: 1.3, topK: 200, topP: 0.7, minP: 0.01 },
        { temperature: 0.01, topP: 0.999 },
      ].map((one, seed) => ({ ...one, seed }));
      for (let round = 0; round < 6; round++) {
        const parts = settings.map((_, slot) => ({ slot, tokens: [round % 3], kvStart: 0, pages }));
        const slots = updates(settings.map((one, slot) => [slot, one] as const));
        const rowPositions = Int32Array.from(settings, (_, s) => 50 * round + s);
        const batch = { ...batchOf(parts, { updates: slots }), rowPositions };
        const { tokens } = await program.run(batch).result;
        const { data } = await program.dump("logits");
        settings.forEach((one, row) => {
          const own = data.subarray(row * vocab, (row + 1) * vocab) as Float32Array;
          const truth = sampleRow(own, requestOf(one, batch, row));
          expect(tokens[row], `${JSON.stringify(one)}, round ${round}`).toBe(truth.token);
        });
      }
      await program.close();
    });

    test("a drawn token counts for the next draw's penalties, a scored one does not", async () => {
      const program = await compile(device, (id) => (id < 3 ? 10 - id : 0));
      const pages = new PageKeeper(program).take(1);
      const step = async (target: number, first = false) => {
        const part = { slot: 0, tokens: [0], kvStart: 0, pages, targets: [target] };
        const own = updates(first ? [[0, { frequency: 1.5, counts: { prompt: [], output: [] } }]] : []);
        return (await program.run(batchOf([part], { updates: own })).result).tokens[0];
      };
      expect([await step(-1, true), await step(1), await step(-1), await step(-1)]).toEqual([0, 1, 1, 0]);
      await program.close();
    });

    describe("logits that are not numbers, and rows with nothing left", () => {
      const special: Record<string, (id: number) => number> = {
        "NaN is never drawn": (id) => (id === 4 ? Number.NaN : id === 9 ? 3 : 0),
        "infinity wins": (id) => (id === 9 ? Number.POSITIVE_INFINITY : 0),
        "minus infinity is never drawn": (id) => (id === 9 ? 1 : Number.NEGATIVE_INFINITY),
      };
      test.each(Object.keys(special))("%s", async (name) => {
        const program = await compile(device, (id, column) => (column === 0 ? special[name](id) : 0));
        const pages = new PageKeeper(program).take(1);
        const parts = [0, 1].map((slot) => ({ slot, tokens: [0], kvStart: 0, pages }));
        const settings = updates([
          [0, {}],
          [1, { temperature: 0.1, topP: 0.99, seed: 5 }],
        ]);
        const result = await program.run(batchOf(parts, { updates: settings })).result;
        expect([...result.tokens]).toEqual([9, 9]);
        expect(result.logprobs.some(Number.isNaN)).toBe(false);
        await program.close();
      });

      test("no number at all gives id 0, and a mask or a bias that leaves nothing the model's own best", async () => {
        const none = await compile(device, () => Number.NaN);
        const pages = new PageKeeper(none).take(1);
        const part = { slot: 0, tokens: [0], kvStart: 0, pages };
        for (const temperature of [0, 1]) {
          const settings = updates([[0, { temperature }]]);
          const result = await none.run(batchOf([part], { updates: settings })).result;
          expect(result.tokens[0]).toBe(0);
          expect(result.logprobs[0]).toBe(Number.NEGATIVE_INFINITY);
          const some = await compile(device, (id, column) => (column === 0 && id === 77 ? 2 : 0));
          const masked = some.run(batchOf([part], { updates: settings, maskedRows: Int32Array.of(0) }));
          masked.setMasks(new Uint32Array(Math.ceil(vocabSize / 32)));
          expect((await masked.result).tokens[0]).toBe(77);
          const ids = Int32Array.from({ length: vocabSize }, (_, id) => id);
          const values = new Float32Array(vocabSize).fill(Number.NEGATIVE_INFINITY);
          const bias = { ...noBias(1), start: Int32Array.of(0, vocabSize), ids, values };
          expect((await some.run(batchOf([part], { updates: settings, bias })).result).tokens[0]).toBe(77);
          await some.close();
        }
        await none.close();
      });
    });
  },
  testDevices.filter(({ wholePlansOnly }) => !wholePlansOnly),
);
