// The real GGUFs on the cpu and cuda devices, teacher-forced on what Hugging Face transformers generated in f32: no worse than
// llama.cpp on the same file.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { CpuDevice } from "../../src/device/cpu/device.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { CudaDevice } from "../../src/device/cuda/device.js";
import { whyNoCuda } from "../../src/device/cuda/native.js";
import type { Limits, Program } from "../../src/device/device.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { batchOf, limits as plainLimits, updates } from "../support/batch.js";
import { gemma, smollm2 } from "../support/models.js";

type Ranked = readonly (readonly [id: number, logprob: number])[];

interface Golden {
  readonly cases: readonly {
    readonly name: string;
    readonly prompt_ids: readonly number[];
    readonly greedy_ids: readonly number[];
    readonly hf: { readonly steps: readonly { readonly top5: Ranked }[] };
    readonly llamacpp: { readonly forced_steps: readonly (Ranked | { readonly top5: Ranked })[] };
  }[];
}

const limits: Limits = {
  ...plainLimits,
  maxTokens: 512,
  maxSequences: 1,
  slots: 1,
  contextLength: 2048,
  kvDtype: "f16",
  maxPages: 128,
};

const models = [
  { name: "SmolLM2", path: smollm2, golden: "smollm2-135m-instruct-q4_1.json" },
  { name: "Gemma 3", path: gemma, golden: "gemma-3-270m-q4_k_m.json" },
];

const devices = [
  { device: "cpu", open: () => new CpuDevice(), absent: whyNoNative() },
  { device: "cuda", open: () => new CudaDevice(), absent: whyNoCuda() },
];
for (const { device, absent } of devices) {
  if (absent) console.warn(`SKIPPED: real models on the ${device} device: ${absent}`);
}
const runs = devices
  .filter(({ absent }) => absent === undefined)
  .flatMap((device) => models.map((model) => ({ ...device, ...model })))
  .flatMap((run) => (["f16", "q8"] as const).map((kvDtype) => ({ ...run, kvDtype })))
  .filter(({ device, kvDtype }) => device === "cpu" || kvDtype === "f16");

if (runs.length === 0) test.skip("real models: there is no device for them", () => {});

describe.each(runs)("$name on $device, cache in $kvDtype", ({ path, golden, open, kvDtype }) => {
  const file = path();
  test.skipIf(file === undefined)("agrees with Hugging Face at least as well as llama.cpp does", async () => {
    const truth: Golden = JSON.parse(
      readFileSync(fileURLToPath(new URL(`../golden/${golden}`, import.meta.url)), "utf8"),
    );
    const checkpoint = await openCheckpoint(file!);
    const device = open();
    const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
    const program = await device.compile(plan, checkpoint, { ...limits, kvDtype });
    const ours: Agreement = { top1: 0, differences: [] };
    const theirs: Agreement = { top1: 0, differences: [] };
    for (const one of truth.cases) {
      const steps = await forced(program, one.prompt_ids, one.greedy_ids);
      one.hf.steps.forEach(({ top5 }, k) => {
        const [id, logprob] = top5[0];
        count(ours, id, logprob, steps[k].best, steps[k].logprob);
        const peer = one.llamacpp.forced_steps[k];
        const ranked = "top5" in peer ? peer.top5 : peer;
        count(theirs, id, logprob, ranked[0][0], ranked.find(([other]) => other === id)?.[1]);
      });
    }
    await program.close();
    checkpoint.close();
    const total = ours.differences.length;
    expect(ours.top1 / total).toBeGreaterThanOrEqual(theirs.top1 / total - 0.01);
    // llama.cpp's numbers are with a cache in f16.
    const slack = kvDtype === "q8" ? 0.008 : 0.002;
    expect(median(ours.differences)).toBeLessThanOrEqual(1.1 * median(theirs.differences) + slack);
  });
});

interface Agreement {
  top1: number;
  readonly differences: number[];
}

function count(into: Agreement, id: number, truth: number, best: number, logprob: number | undefined): void {
  if (best === id) into.top1++;
  if (logprob !== undefined) into.differences.push(Math.abs(logprob - truth));
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1];

/** The most likely id, and the logprob of `answer`'s id, at each step of the answer. */
async function forced(program: Program, prompt: readonly number[], answer: readonly number[]) {
  const text = [...prompt, ...answer.slice(0, -1)];
  const steps: { best: number; logprob: number }[] = [];
  for (let at = 0; at < text.length; at += limits.maxTokens) {
    const tokens = text.slice(at, at + limits.maxTokens);
    const rows = tokens.map((_, i) => i).filter((i) => at + i >= prompt.length - 1);
    const targets = rows.map((i) => answer[at + i - prompt.length + 1]);
    // Behind a window pages are given back and used again.
    const first = program.caches.map((group) =>
      group.window === undefined ? 0 : Math.floor(Math.max(0, at - group.window + 1) / group.pageTokens),
    );
    const pages = program.caches.map((group, g) => {
      const end = Math.ceil((at + tokens.length) / group.pageTokens);
      return Array.from({ length: end - first[g] }, (_, i) => (first[g] + i) % group.numPages);
    });
    const part = { slot: 0, tokens, kvStart: at, pages, first, rows, targets };
    const settings = { updates: updates([[0, {}]]), topLogprobs: 1 };
    const result = await program.run(batchOf([part], settings)).result;
    rows.forEach((_, i) => {
      steps.push({ best: result.topIds[i], logprob: result.logprobs[i] });
    });
  }
  return steps;
}
