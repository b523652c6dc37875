// `bench ops` on small shapes: every row is a run, and the machine's limits are numbers.
import { expect, test } from "vitest";
import { Ops } from "../../src/cli/ops.js";
import { whyNoNative } from "../../src/device/cpu/native.js";

const none = whyNoNative();
if (none) console.warn(`SKIPPED: bench ops: ${none}`);

test.skipIf(none)("each kernel has a time, a rate and its share of the limit that bounds it", async () => {
  const options = { threads: 1, shape: [64, 256], types: ["F32", "Q4_0"], context: 64, repeats: 1 } as const;
  const { roofs, rows } = await new Ops(options).measure();
  for (const roof of Object.values(roofs)) expect(roof).toBeGreaterThan(1e8);
  expect(rows.map(({ op, tokens }) => `${op} ${tokens}`)).toEqual([
    ...["linear F32 1", "linear F32 16", "linear F32 512", "linear Q4_0 1", "linear Q4_0 16", "linear Q4_0 512"],
    ...["route, moe 1", "route, moe 512", "logits, sample 1", "logits, sample 1"],
    ...["attention 64", "attention 1", "attention 64", "attention 1"],
    ...["embed 512", "rmsNorm 512", "layerNorm 512", "add 512", "rope 512", "cacheWrite 512", "activation 512"],
    ...["gatedActivation 512", "lora 512"],
  ]);
  for (const { ms, rate, share, bound } of rows) {
    expect(ms).toBeGreaterThan(0);
    expect(share).toBeCloseTo(rate / roofs[bound], 6);
  }
});
