// Moving gatherRows up changes what is computed for whom, and no result.
import { expect, test } from "vitest";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { gatherEarly } from "../../src/plan/passes/rows.js";
import type { Plan } from "../../src/plan/plan.js";
import { batchOf, limits, PageKeeper, updates } from "../support/batch.js";
import { openTiny } from "../support/golden.js";

const tokens = Array.from({ length: 20 }, (_, i) => 3 * i + 1);

async function results(plan: Plan, checkpoint: Awaited<ReturnType<typeof openTiny>>) {
  const program = await new ReferenceDevice().compile(plan, checkpoint, limits);
  const pages = new PageKeeper(program).take(tokens.length);
  const part = { slot: 0, tokens, kvStart: 0, pages, rows: [3, 11, 19] };
  const step = await program.run(batchOf([part], { updates: updates([[0, {}]]), topLogprobs: 4 })).result;
  await program.close();
  return step;
}

test.each(["llama-mha", "gemma3"])("%s: behind the last attention only sampled rows are computed", async (family) => {
  const checkpoint = await openTiny(family);
  const plain = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
  for (const plan of [plain, fuse(plain, new ReferenceDevice().info.ops)]) {
    const moved = gatherEarly(plan);
    const last = moved.nodes.findLastIndex((node) => node.op.name === "attention");
    for (const node of moved.nodes.slice(last + 1)) {
      for (const tensor of Object.values(node.outputs)) expect(tensor.shape[0]).toBe("rows");
    }
    expect(await results(moved, checkpoint)).toEqual(await results(plan, checkpoint));
  }
  checkpoint.close();
});

test("a plan without gatherRows stays as it is", () => {
  const plan: Plan = { nodes: [], tensors: [], caches: [], vocabSize: 4, rank: { rank: 0, size: 1 } };
  expect(gatherEarly(plan)).toBe(plan);
});
