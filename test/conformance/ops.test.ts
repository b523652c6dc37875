// Every op on every device against its reference. A device that does not take an op skips its cases by name.
import { expect, test } from "vitest";
import type { StorageType } from "../../src/base/dtype.js";
import type { Batch } from "../../src/device/batch.js";
import type { Device, Limits } from "../../src/device/device.js";
import { allOps } from "../../src/plan/op.js";
import { batchOf, limits, PageKeeper, type Part, updates } from "../support/batch.js";
import { type Arithmetic, bound, expectClose } from "../support/bounds.js";
import { describeDevices, testDevices } from "../support/devices.js";
import { Oracle } from "../support/oracle.js";
import { type ConformanceCase, conformanceCases, vocabSize } from "./cases.js";

/** Ops that need more of a step than a case gives: tested in contracts/ and in the named file. */
const elsewhere: Readonly<Record<string, string>> = {
  sample: "conformance/sample.test.ts",
  lora: "contracts/lora.test.ts",
  allReduce: "contracts/split.test.ts",
  cacheWrite: "the cases of attention",
};

test("every op has a case or a test of its own", () => {
  const covered = new Set([...conformanceCases.map(({ op }) => op), ...Object.keys(elsewhere)]);
  expect([...allOps().keys()].filter((op) => !covered.has(op))).toEqual([]);
});

await describeDevices(
  "op",
  (device, arithmetic, kept) => {
    for (const one of conformanceCases) {
      const refused = one.kvDtype === "q8" && device.info.name.startsWith("cuda");
      const runs = !refused && one.plan.nodes.every((node) => device.info.ops.has(node.op.name));
      test.skipIf(!runs)(`${one.op}: ${one.name}`, () => compare(device, one, arithmetic, kept));
    }
  },
  testDevices.filter(({ wholePlansOnly }) => !wholePlansOnly),
);

async function compare(
  device: Device,
  one: ConformanceCase,
  arithmetic: (type: StorageType) => Arithmetic,
  kept: number,
): Promise<void> {
  const kvDtype = one.kvDtype ?? "f32";
  const own: Limits = { ...limits, kvDtype, maxPages: 32 };
  const program = await device.compile(one.plan, one.weights, own, { dump: true });
  const oracle = new Oracle(one.plan, one.weights, kvDtype);
  const worst = Math.max(0, ...one.types.map((type) => bound(arithmetic(type), one.reduction)));
  // gatedLinear's values are products of two results, each that far off; the largest are many times their rms.
  const factors = one.op === "gatedLinear" ? 2 : 1;
  // In q8 a step is a 127th of the largest of a row, which is at most four times its rms.
  const step = one.roundedCache ? (kvDtype === "q8" ? 4 / 127 : 2 ** -9) : 0;
  const limit = factors * Math.max(worst, bound("f32", one.reduction)) + step + kept;
  const keeper = new PageKeeper(program);
  const sequences = Math.max(...one.steps.map((step) => step.length));
  const pages = Array.from({ length: sequences }, () => keeper.take(100));
  for (const batch of batches(one, pages)) {
    await program.run(batch).result;
    const truth = oracle.run(batch);
    for (const name of one.outputs) expectClose(await program.dump(name), truth.get(name)!, limit, name);
  }
  await program.close();
}

/** Sequence s owns slot s; its ids run through the tables, from where it left off. */
function batches(one: ConformanceCase, pages: readonly number[][][]): Batch[] {
  const done = pages.map(() => 0);
  const sampled = one.plan.tensors.some(({ input }) => input === "sampleRows");
  return one.steps.map((step) => {
    const parts = step.map((count, s): Part => {
      const kvStart = done[s];
      done[s] += count;
      const tokens = Array.from({ length: count }, (_, t) => (s * 31 + kvStart + t) % vocabSize);
      const rows = sampled ? tokens.map((_, t) => t).filter((t) => t % 2 === 0) : [];
      return { slot: s, tokens, kvStart, pages: pages[s], rows };
    });
    const fresh = parts.filter(({ kvStart }) => kvStart === 0).map(({ slot }) => [slot, {}] as const);
    return batchOf(parts, { updates: updates(fresh) });
  });
}
