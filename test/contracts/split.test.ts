// A plan split over ranks computes what the whole plan computes.
import { describe, expect, test } from "vitest";
import { DeviceGroup } from "../../src/device/group.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { planWeightBytes } from "../../src/plan/cost.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { split } from "../../src/plan/passes/split.js";
import { validatePlan } from "../../src/plan/validate.js";
import { expectClose } from "../support/bounds.js";
import { goldenCases, openTiny } from "../support/golden.js";
import { compileTiny, generate } from "../support/tiny.js";

async function tinyPlan(name: string) {
  const checkpoint = await openTiny(name);
  return decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
}

describe("split", () => {
  // heads divided; key/value heads repeated (2 on 4 ranks, 1 on 2); biases; norms of heads
  test.each([
    ["llama-gqa-llama3rope", 2],
    ["llama-gqa-llama3rope", 4],
    ["llama-mqa", 2],
    ["gemma3", 2],
  ])("%s on %i ranks gives the logits of one", async (name, ranks) => {
    const prompt = goldenCases(name)[1].prompt_ids;
    const one = await compileTiny(new ReferenceDevice(), name);
    const many = await compileTiny(new DeviceGroup(ranks), name);
    const whole = await generate(one.program, prompt, 8);
    const parts = await generate(many.program, prompt, 8);
    const shape = [1, whole.logits.length];
    expectClose({ shape, data: parts.logits }, { shape, data: whole.logits }, 2e-5, "logits");
    expect(parts.tokens).toEqual(whole.tokens);
  });

  test("ranks are valid plans, hold half of the divided weights each, and fuse like the whole", async () => {
    const plan = await tinyPlan("llama-mha");
    const ranks = split(plan, { ranks: 2 });
    for (const rank of ranks) {
      validatePlan(rank);
      validatePlan(fuse(rank, new ReferenceDevice().info.ops));
    }
    const whole = plan.tensors.find(({ name }) => name.endsWith("layers.0.self_attn.q_proj.weight"));
    expect(whole?.shape).toEqual([64, 64]);
    const shapes = (pattern: string) =>
      ranks.map(({ tensors }) => tensors.find(({ name }) => name.endsWith(pattern))?.shape);
    expect(shapes("layers.0.self_attn.q_proj.weight")).toEqual([
      [32, 64],
      [32, 64],
    ]);
    expect(shapes("layers.0.self_attn.o_proj.weight")).toEqual([
      [64, 32],
      [64, 32],
    ]);
    expect(shapes("layers.0.mlp.down_proj.weight")).toEqual([
      [64, 80],
      [64, 80],
    ]);
    const shared = plan.tensors.filter(({ name }) => /norm|embed|lm_head/.test(name));
    const sharedBytes = planWeightBytes({ ...plan, tensors: shared });
    const [a, b] = ranks.map(planWeightBytes);
    expect(a + b).toBe(planWeightBytes(plan) + sharedBytes);
  });

  test("pages of all ranks travel as one", async () => {
    const { program } = await compileTiny(new DeviceGroup(2), "llama-mha");
    const prompt = goldenCases("llama-mha")[1].prompt_ids;
    await generate(program, prompt, 1);
    const page = await program.readPages(0, Int32Array.of(0));
    expect(page.length).toBe(program.caches[0].pageBytes);
    program.writePages(0, Int32Array.of(9), page);
    program.copyPages(0, Int32Array.of(9), Int32Array.of(10));
    expect(await program.readPages(0, Int32Array.of(10))).toEqual(page);
    expect(page.some((byte) => byte !== 0)).toBe(true);
  });

  test("sizes that do not divide are refused", async () => {
    const plan = await tinyPlan("llama-mha");
    expect(() => split(plan, { ranks: 3 })).toThrow(/4 \(attention heads\) cannot be divided among 3 ranks/);
  });
});
