// The tiny checkpoints on every device against Hugging Face transformers: logits of the prompt's last position, then 24
// greedy tokens.
import { expect, test } from "vitest";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import type { HostTensor } from "../../src/plan/op.js";
import { describeDevices } from "../support/devices.js";
import { type GoldenCase, goldenCases } from "../support/golden.js";
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
    const compared = await cases(family, bound);
    expect(compared.length).toBeGreaterThan(0);
    for (const [i, golden] of compared.entries()) {
      const { logits, tokens } = await generate(program, golden.prompt_ids, golden.greedy_ids.length, {}, i);
      expect(distance(logits, golden.last_logits)).toBeLessThanOrEqual(bound);
      if (golden.min_margin > 4 * bound) expect(tokens).toEqual(golden.greedy_ids);
    }
    await program.close();
    checkpoint.close();
  }
});

/** Those of the checkpoint; where arithmetic is coarse, those without a token for whom two experts are nearly equally good:
 *  it may go to the other one. */
async function cases(family: string, bound: number): Promise<readonly GoldenCase[]> {
  const all = goldenCases(family);
  if (bound < 1e-2) return all;
  const { checkpoint, program, plan } = await compileTiny(new ReferenceDevice(), family);
  const routes = plan.nodes.filter(({ op }) => op.name === "route");
  const chosen: GoldenCase[] = [];
  for (const golden of routes.length === 0 ? [] : all) {
    await generate(program, golden.prompt_ids, 1);
    const scores = await Promise.all(routes.map(({ inputs }) => program.dump(inputs.logits.name)));
    const clear = scores.every((one, i) => narrowest(one, routes[i].params.topK as number) > bound);
    if (clear) chosen.push(golden);
  }
  await program.close();
  checkpoint.close();
  return routes.length === 0 ? all : chosen;
}

/** Between the last expert that a token goes to and the next one, the smallest distance, by the scores' rms. */
function narrowest({ shape, data }: HostTensor, used: number): number {
  const [tokens, experts] = shape;
  let least = Number.POSITIVE_INFINITY;
  for (let t = 0; t < tokens; t++) {
    const row = Float32Array.from(data.subarray(t * experts, (t + 1) * experts)).sort();
    least = Math.min(least, row[experts - used] - row[experts - used - 1]);
  }
  const squares = Array.from(data, (x) => x * x).reduce((sum, x) => sum + x, 0);
  return least / Math.sqrt(squares / data.length);
}

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
