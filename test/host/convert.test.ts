// Converting: a folder becomes a GGUF file that is the same model, and quantised values are as near as llama.cpp's.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { type StorageType, storageBytes } from "../../src/base/dtype.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { materialise } from "../../src/device/reference/weights.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { dequantize } from "../../src/formats/quant/dequantize.js";
import { convertToGguf } from "../../src/host/convert.js";
import { quantize } from "../../src/host/quantize.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { randomCheckpoint } from "../../src/model/random.js";
import { shapes } from "../../src/model/shapes.js";
import { goldenNames, openTiny } from "../support/golden.js";
import { smollm2 } from "../support/models.js";
import { seededRandom } from "../support/random.js";

const folder = mkdtempSync(join(tmpdir(), "millrace-convert-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const noNative = whyNoNative();

describe("a folder and the file made of it are one model", () => {
  test.each(goldenNames)("%s: the same plan, and every weight the same to the bit", async (name) => {
    const source = await openTiny(name);
    const path = join(folder, `${name}.gguf`);
    await convertToGguf(source, path);
    const file = await openCheckpoint(path);
    const [own, theirs] = [source, file].map((checkpoint) => {
      const config = modelConfig(checkpoint);
      const plan = decoderPlan(config, checkpoint.tensors);
      return { config, weights: plan.tensors.filter(({ role }) => role === "weight") };
    });
    expect(theirs.config.layers.map(({ window }) => window)).toEqual(own.config.layers.map(({ window }) => window));
    expect(theirs.weights.length).toBe(own.weights.length);
    theirs.weights.forEach((tensor, i) => {
      expect(materialise(tensor, file), tensor.name).toEqual(materialise(own.weights[i], source));
    });
    source.close();
    file.close();
  });
});

const random = seededRandom(31);
const normals = Float32Array.from({ length: 1 << 16 }, () => 0.02 * random.normal());

/** Root mean square error of llama.cpp's own quantiser (ggml_quantize_chunk, 0c1e570) on the same values, rows of 2048. */
const llamaCpp: Partial<Record<StorageType, number>> = {
  Q4_0: 0.0017194,
  Q4_1: 0.0015682,
  Q5_0: 0.0008532,
  Q5_1: 0.00075654,
  Q8_0: 0.0001068,
  Q4_K: 0.0014298,
  Q5_K: 0.0007247,
  Q6_K: 0.00035548,
};

describe.skipIf(noNative)("quantising", () => {
  if (noNative) console.warn(`SKIPPED: quantising: ${noNative}`);
  const bytes = (values: Float32Array) => new Uint8Array(values.buffer);
  const run = (to: StorageType, values: Float32Array, threads = 2) =>
    quantize({ name: "w", bytes: bytes(values), from: "F32", to }, threads);
  const error = async (to: StorageType, values: Float32Array) => {
    const back = new Float32Array(values.length);
    dequantize(to, await run(to, values), back);
    return Math.sqrt(values.reduce((sum, value, i) => sum + (value - back[i]) ** 2, 0) / values.length);
  };

  test.each(Object.entries(llamaCpp))("%s leaves no more error than llama.cpp's quantiser", async (type, theirs) => {
    expect((await error(type as StorageType, normals)) / theirs).toBeLessThan(1.01);
  });

  test.each(["F16", "BF16"] as const)("%s rounds to nearest", async (type) => {
    expect(await error(type, normals)).toBeLessThan(0.02 * (type === "F16" ? 2 ** -11 : 2 ** -8));
  });

  test.each(Object.keys(llamaCpp) as StorageType[])(
    "%s: blocks of one value, of zeros and with an outlier",
    async (type) => {
      const count = 256;
      for (const value of [0, 1, -1, 0.05, -3e4]) {
        const values = new Float32Array(count).fill(value);
        expect(await error(type, values), String(value)).toBeLessThanOrEqual(Math.abs(value) * 0.01);
      }
      const outlier = new Float32Array(count).fill(0.01).fill(-1, 70, 71);
      expect(await error(type, outlier)).toBeLessThan(0.05);
    },
  );

  test("the number of threads changes no byte", async () => {
    for (const type of Object.keys(llamaCpp) as StorageType[])
      expect(await run(type, normals, 1)).toEqual(await run(type, normals, 3));
  });

  test("a value that is not finite is an error that names the tensor", async () => {
    const values = normals.slice(0, 512);
    values[300] = Number.NaN;
    await expect(run("Q4_K", values)).rejects.toThrow(/tensor w holds values that are not finite/);
  });

  const config = {
    ...shapes["llama-3.2-1b"],
    hidden_size: 256,
    intermediate_size: 512,
    num_hidden_layers: 4,
    vocab_size: 600,
  };
  const model = { config: { ...config, num_attention_heads: 4, num_key_value_heads: 2 }, seed: 3, name: "tiny" };

  test("a GGUF file is quantised by the mixture, its metadata kept", async () => {
    const from = join(folder, "plain.gguf");
    const to = join(folder, "q4_k_m.gguf");
    const plain = randomCheckpoint({ ...model, quantisation: "bf16" });
    await convertToGguf(plain, from);
    const source = await openCheckpoint(from);
    const told: number[] = [];
    const size = await convertToGguf(source, to, { quantisation: "q4_k_m", onProgress: (done) => told.push(done) });
    const file = await openCheckpoint(to);
    expect(file.fileBytes).toBe(size);
    expect(told.at(-1)! / size).toBeGreaterThan(0.99);
    const asMade = randomCheckpoint({ ...model, quantisation: "q4_k_m" });
    expect([...file.tensors.values()].map(({ name, type }) => [name, type])).toEqual(
      [...asMade.tensors.values()].map(({ name, type }) => [name, type]),
    );
    const values = (of: typeof file) => new Map(of.meta.kind === "gguf" ? of.meta.values : []);
    expect(values(file)).toEqual(new Map([...values(source), ["general.file_type", 15]]));
    for (const { name, type } of file.tensors.values()) {
      const read = (of: typeof file, as: StorageType) => {
        const out = new Float32Array((of.read(name).length / storageBytes(as, 256)) * 256);
        dequantize(as, of.read(name), out);
        return out;
      };
      const [a, b] = [read(source, source.tensors.get(name)!.type), read(file, type)];
      const rms = (values: Float32Array) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);
      expect(rms(a.map((value, i) => value - b[i])) / rms(a), name).toBeLessThan(0.08);
    }
    source.close();
    file.close();
  });

  test("what is quantised already is refused, and nothing is left behind", async () => {
    const source = await openCheckpoint(smollm2());
    const before = readdirSync(folder);
    await expect(convertToGguf(source, join(folder, "twice.gguf"), { quantisation: "q8_0" })).rejects.toThrow(
      /is Q4_1 already: quantise from a model in F32, F16 or BF16/,
    );
    expect(readdirSync(folder)).toEqual(before);
    source.close();
  });

  test("an abort leaves no file", async () => {
    const before = readdirSync(folder);
    const path = join(folder, "aborted.gguf");
    const signal = AbortSignal.abort();
    const plain = randomCheckpoint({ ...model, quantisation: "f32" });
    await expect(convertToGguf(plain, path, { quantisation: "q6_k", signal })).rejects.toThrow();
    expect(readdirSync(folder)).toEqual(before);
  });
});
