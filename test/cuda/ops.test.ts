// `bench ops --device cuda` on small matrices: every row is a run, and the limits are numbers.
import { expect, test } from "vitest";
import { CudaOps, type CudaRow } from "../../src/cli/ops-cuda.js";
import { whyNoCuda } from "../../src/device/cuda/native.js";

const absent = whyNoCuda();
if (absent) console.warn(`SKIPPED: bench ops on a GPU: ${absent}`);

test.skipIf(absent !== undefined)("bench ops on a GPU: a time, a rate and its share of the limit", async () => {
  const ops = new CudaOps(0, { types: ["Q4_0", "BF16"], shape: [256, 512] });
  for (const roof of Object.values(ops.roofs)) expect(roof).toBeGreaterThan(1e11);
  const rows: CudaRow[] = [];
  for await (const row of ops.rows()) rows.push(row);
  expect(rows.map(({ op }) => op)).toEqual([
    ...Array(5).fill("linear Q4_0"),
    ...Array(5).fill("linear BF16"),
    ...["attention", "attention", "attention", "rmsNorm", "rmsNorm", "sample", "sample", "sample", "sample"],
  ]);
  for (const { ms, rate, share, bound } of rows) {
    expect(ms).toBeGreaterThan(0);
    expect(share).toBeCloseTo(rate / ops.roofs[bound], 6);
  }
  await ops.close();
});
