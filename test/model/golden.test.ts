// The tiny checkpoints on every device against Hugging Face transformers: logits of the prompt's last position, then 24
// greedy tokens.
import { expect, test } from "vitest";
import { describeDevices } from "../support/devices.js";
import { goldenCases } from "../support/golden.js";
import { compileTiny, generate } from "../support/tiny.js";

/** By the op that not every device has yet; "": none. */
const families = [
  ["", "llama-mha"],
  ["", "llama-gqa-llama3rope"],
  ["", "llama-mqa"],
  ["", "mistral-swa"],
  ["", "qwen2"],
  ["", "gemma3"],
  ["moe", "qwen3-moe"],
];

await describeDevices("tiny checkpoints", (device, arithmetic) => {
  for (const [op, family] of families) {
    test.skipIf(op !== "" && !device.info.ops.has(op))(family, () => compare(family));
  }

  async function compare(family: string): Promise<void> {
    const { checkpoint, program } = await compileTiny(device, family);
    const stored = [...checkpoint.tensors.values()].some(({ type }) => type === "BF16") ? "BF16" : "F32";
    const exact = device.info.name.startsWith("reference");
    const bound = exact ? 1e-4 : arithmetic(stored) === "f32" ? 1e-3 : 2e-2;
    for (const [i, golden] of goldenCases(family).entries()) {
      const { logits, tokens } = await generate(program, golden.prompt_ids, golden.greedy_ids.length, {}, i);
      expect(distance(logits, golden.last_logits)).toBeLessThanOrEqual(bound);
      if (golden.min_margin > 4 * bound) expect(tokens).toEqual(golden.greedy_ids);
    }
    await program.close();
    checkpoint.close();
  }
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
