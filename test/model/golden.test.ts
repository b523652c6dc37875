// The tiny checkpoints on every device against Hugging Face transformers: logits of the prompt's last position, then 24
// greedy tokens.
import { expect, test } from "vitest";
import type { Program } from "../../src/device/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { batchOf, limits, PageKeeper, updates } from "../support/batch.js";
import { describeDevices } from "../support/devices.js";
import { type GoldenCase, goldenCases, openTiny } from "../support/golden.js";

const families = ["llama-mha", "llama-gqa-llama3rope", "llama-mqa", "mistral-swa", "qwen2", "gemma3"];

await describeDevices("tiny checkpoints", (device, arithmetic) => {
  test.each(families)("%s", async (family) => {
    const checkpoint = await openTiny(family);
    const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
    const program = await device.compile(plan, checkpoint, limits, { dump: true });
    const stored = [...checkpoint.tensors.values()].some(({ type }) => type === "BF16") ? "BF16" : "F32";
    const exact = device.info.name.startsWith("reference");
    const bound = exact ? 1e-4 : arithmetic(stored) === "f32" ? 1e-3 : 2e-2;
    for (const [i, golden] of goldenCases(family).entries()) {
      const { logits, greedy } = await generate(program, golden, i);
      expect(distance(logits, golden.last_logits)).toBeLessThanOrEqual(bound);
      if (golden.min_margin > 4 * bound) expect(greedy).toEqual(golden.greedy_ids);
    }
    await program.close();
    checkpoint.close();
  });
});

/** max |Δ| / max |logit| */
function distance(logits: ArrayLike<number>, truth: readonly number[]): number {
  let difference = 0;
  let largest = 0;
  truth.forEach((value, i) => {
    difference = Math.max(difference, Math.abs(value - logits[i]));
    largest = Math.max(largest, Math.abs(value));
  });
  return difference / largest;
}

async function generate(program: Program, golden: GoldenCase, slot: number) {
  const prompt = [...golden.prompt_ids];
  const pages = new PageKeeper(program).take(prompt.length + golden.greedy_ids.length);
  const prefill = batchOf([{ slot, tokens: prompt, kvStart: 0, pages }], { updates: updates([[slot, {}]]) });
  const greedy = [(await program.run(prefill).result).tokens[0]];
  const logits = (await program.dump("logits")).data.slice();
  while (greedy.length < golden.greedy_ids.length) {
    const kvStart = prompt.length + greedy.length - 1;
    const { result } = program.run(batchOf([{ slot, tokens: [-1 - slot], kvStart, pages }]));
    greedy.push((await result).tokens[0]);
  }
  return { logits, greedy };
}
