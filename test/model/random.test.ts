// Random models: what they say of themselves, the file that they make, and the mixtures that real files have.
import { describe, expect, test } from "vitest";
import { storageTypes } from "../../src/base/dtype.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { parseGguf } from "../../src/formats/gguf.js";
import { layOutGguf } from "../../src/formats/gguf-writer.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { dequantize } from "../../src/formats/quant/dequantize.js";
import { parseQuantisation, quantisations, storageFor } from "../../src/formats/quant/recipe.js";
import { modelConfig } from "../../src/model/config.js";
import { huggingFaceConfig } from "../../src/model/config-hf.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { type RandomModel, randomCheckpoint } from "../../src/model/random.js";
import { shapes } from "../../src/model/shapes.js";
import { gemma, smollm2 } from "../support/models.js";

const small = { ...shapes["llama-3.2-1b"], hidden_size: 256, intermediate_size: 512, num_hidden_layers: 9 };
const tiny = { ...small, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 500 };
const model = (more: Partial<RandomModel> = {}): RandomModel => {
  return { config: tiny, quantisation: "q4_k_m", seed: 7, name: "tiny", ...more };
};

const storedOf = ({ meta }: Checkpoint) => (meta.kind === "gguf" ? meta.stored! : new Map());

test.each(Object.keys(shapes))("%s reads as the same model from its GGUF metadata as from its config.json", (name) => {
  const checkpoint = randomCheckpoint(model({ config: shapes[name] }));
  const own = modelConfig(checkpoint);
  const truth = huggingFaceConfig(shapes[name]);
  const { layers, normEps, ...rest } = own;
  const { layers: trueLayers, normEps: trueEps, ...trueRest } = truth;
  expect(rest).toEqual({ ...trueRest, source: "gguf" });
  expect(normEps).toBeCloseTo(trueEps, 9);
  layers.forEach((layer, i) => {
    expect(layer.window).toBe(trueLayers[i].window);
    layer.rope.invFreq.forEach((f, j) => {
      expect(f / trueLayers[i].rope.invFreq[j]).toBeCloseTo(1, 5);
    });
  });
});

test("the file holds the same bytes under the same names, and makes the same plan", () => {
  const checkpoint = randomCheckpoint(model());
  const { header, offsets, fileBytes } = layOutGguf(storedOf(checkpoint), [...checkpoint.tensors.values()]);
  const file = new Uint8Array(fileBytes);
  file.set(header);
  for (const [name, at] of offsets) file.set(checkpoint.read(name), at);
  const parsed = parseGguf(file);
  const tensors = new Map(parsed.tensors.map(({ offset, ...info }) => [info.name, info]));
  expect(tensors).toEqual(checkpoint.tensors);
  for (const { name, offset, bytes } of parsed.tensors) {
    expect(Buffer.compare(file.subarray(offset, offset + bytes), checkpoint.read(name)), name).toBe(0);
  }
  const meta = { kind: "gguf", values: parsed.values } as const;
  const config = modelConfig({ ...checkpoint, meta, tensors });
  expect(decoderPlan(config, tensors)).toEqual(decoderPlan(modelConfig(checkpoint), checkpoint.tensors));
});

test("a seed always makes the same bytes, another seed others", () => {
  const bytes = (seed: number) => randomCheckpoint(model({ seed })).read("blk.3.ffn_down.weight");
  expect(bytes(7)).toEqual(bytes(7));
  expect(bytes(7)).not.toEqual(bytes(8));
});

test.each(quantisations)("%s: matrices have the size of trained ones and no mean to speak of", (quantisation) => {
  const checkpoint = randomCheckpoint(model({ quantisation }));
  const types = new Set<string>();
  for (const info of checkpoint.tensors.values()) {
    if (info.shape.length < 2 || types.has(info.type)) continue;
    types.add(info.type);
    const values = new Float32Array(info.shape.reduce((a, b) => a * b, 1));
    dequantize(info.type, checkpoint.read(info.name), values);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const deviation = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
    expect(deviation, info.type).toBeGreaterThan(0.012);
    expect(deviation, info.type).toBeLessThan(0.03);
    expect(Math.abs(mean), info.type).toBeLessThan(0.1 * deviation);
  }
  expect(storageTypes).toEqual(expect.arrayContaining([...types]));
});

describe("mixtures are those of llama.cpp's files", () => {
  const compare = async (path: string, quantisation: string) => {
    const checkpoint = await openCheckpoint(path);
    const tied = !checkpoint.tensors.has("output.weight");
    const { layers } = modelConfig(checkpoint);
    for (const { name, type, shape } of checkpoint.tensors.values()) {
      const recipe = parseQuantisation(quantisation);
      expect(storageFor(recipe, name, shape, { layers: layers.length, tied }), name).toBe(type);
    }
    checkpoint.close();
  };
  test("Q4_1", () => compare(smollm2(), "Q4_1"));
  test.skipIf(!gemma())("Q4_K_M, with rows of 640", () => compare(gemma()!, "Q4_K_M"));
});

test("what is not known is refused by name", () => {
  expect(() => parseQuantisation("q3_x")).toThrow(/no quantisation "q3_x"; known: f32, f16/);
  expect(() => randomCheckpoint(model({ config: { model_type: "nobody" } }))).toThrow(/"nobody" is not supported/);
});
