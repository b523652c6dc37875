// Lowering without a GPU: every launch of a model's plan names a kernel that is there and hands it as many parameters, of
// the right sizes, as it declares; and activations that live at the same time lie apart.
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { planProgram } from "../../src/device/cuda/device.js";
import type { Arg, Launch } from "../../src/device/cuda/launch.js";
import { loweredOps } from "../../src/device/cuda/lower.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { withAdapters } from "../../src/plan/passes/lora.js";
import { limits } from "../support/batch.js";
import { openTiny } from "../support/golden.js";

const folder = fileURLToPath(new URL("../../kernels/cuda/", import.meta.url));
const properties = {
  name: "none",
  multiprocessors: 132,
  clock: 2e9,
  sharedBytes: 232448,
  l2Bytes: 50 << 20,
  capability: 90,
};

/** Variants that the preprocessor names: their own tests on a GPU check them. */
const byMacro = /^mr_(attention|linear|embed|moe|pack|unpack|walk)_/;

/** Parameter types of each kernel, as its source declares them. */
function declared(): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const name of readdirSync(folder).filter((file) => file.endsWith(".cu"))) {
    const text = readFileSync(folder + name, "utf8");
    for (const [, kernel, parameters] of text.matchAll(
      /extern "C" __global__ void[^(]*?(?:\([^)]*\))?\s*(mr_\w+)\(([^)]*)\)/g,
    )) {
      found.set(
        kernel,
        parameters.split(",").map((one) => one.trim()),
      );
    }
  }
  return found;
}

function fits(parameter: string, arg: Arg): boolean {
  if (parameter.includes("*")) return "ptr" in arg;
  if (parameter.startsWith("int64_t")) return "i64" in arg;
  if (parameter.startsWith("int ") || parameter.startsWith("uint32_t ")) return "i32" in arg;
  if (parameter.startsWith("float ")) return "f32" in arg;
  return "bytes" in arg;
}

test("a cache in q8 is refused before anything is placed", async () => {
  const checkpoint = await openTiny("gemma3");
  const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
  const asked = () => planProgram(plan, { ...limits, kvDtype: "q8" }, properties, false);
  expect(asked).toThrow("the cuda device keeps no keys and values in q8: give f16, bf16 or f32");
  checkpoint.close();
});

const shapes = [
  { tokens: 1, rows: 1, sequences: 1, decode: true },
  { tokens: 96, rows: 2, sequences: 4, decode: false },
  { tokens: 64, rows: 0, sequences: 1, decode: false },
];

describe.each([{ dump: false }, { dump: true }])("keeping every tensor: $dump", ({ dump }) => {
  test.each([...["llama-gqa-llama3rope", "gemma3", "qwen2", "mistral-swa", "qwen3-moe"], "llama-mha with adapters"])(
    "%s",
    async (name) => {
      const [family, adapters] = name.split(" with ");
      const checkpoint = await openTiny(family);
      const plain = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
      const plan = fuse(adapters ? withAdapters(plain) : plain, loweredOps);
      const { lowered, workspace, weights, tail, step, pools } = planProgram(plan, limits, properties, dump);
      workspace.base = 1n << 40n;
      weights.lieAt(2 ** 41);
      pools.fill(1n << 42n);
      const kernels = declared();
      const memory = { address: 4096, bytes: new Uint8Array(0) };
      for (const bucket of shapes) {
        const { first, forward } = lowered.lowering;
        const launches: Launch[] = [...first, ...forward].flatMap((make) => [...make(bucket)]);
        launches.push(...tail.launches(step, memory, memory, { rows: bucket.rows, wave: -1, draws: true }));
        for (const { kernel, args, block, grid } of launches) {
          expect(block <= 1024 && grid.every(Number.isInteger), kernel).toBe(true);
          const parameters = kernels.get(kernel);
          if (!parameters && byMacro.test(kernel)) continue;
          expect(parameters, kernel).not.toBe(undefined);
          expect(args.length, kernel).toBe(parameters!.length);
          for (const [i, arg] of args.entries())
            expect(fits(parameters![i], arg), `${kernel}: ${parameters![i]}`).toBe(true);
        }
      }
      checkpoint.close();
    },
  );
});

/** Norms launched at a step of so many tokens. */
async function norms(deterministic: boolean, tokens: number): Promise<number> {
  const checkpoint = await openTiny("llama-gqa-llama3rope");
  const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), loweredOps);
  const { lowered, workspace, weights, pools } = planProgram(plan, { ...limits, deterministic }, properties, false);
  workspace.base = 1n << 40n;
  weights.lieAt(2 ** 41);
  pools.fill(1n << 42n);
  checkpoint.close();
  const bucket = { tokens, rows: tokens, sequences: tokens, decode: true };
  return lowered.lowering.forward.flatMap((make) => make(bucket)).filter(({ kernel }) => kernel === "mr_norm").length;
}

test("at one token the norms between products are theirs; deterministic programs launch them", async () => {
  expect([await norms(false, 1), await norms(false, 2), await norms(true, 1)]).toEqual([1, 7, 7]);
});
