// LoRA adapters from PEFT folders and from GGUF files: read as the same factors, answer as merged weights do.
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { openAdapter, openCheckpoint } from "../../src/formats/open.js";
import { dequantize } from "../../src/formats/quant/dequantize.js";
import type * as Library from "../../src/index.js";
import { loraAdapter } from "../../src/model/adapter.js";
import { modelConfig } from "../../src/model/config.js";
import { writeGguf } from "../support/gguf-writer.js";
import { goldenCases, openTiny } from "../support/golden.js";
import { seededRandom } from "../support/random.js";
import { type SafetensorsInput, writeSafetensors } from "../support/safetensors-writer.js";

const { open } = (await import(new URL("../../dist/index.js", import.meta.url).href)) as typeof Library;
const tiny = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));
const home = mkdtempSync(join(tmpdir(), "millrace-adapter-"));
afterAll(() => rmSync(home, { recursive: true }));

const rank = 3;
const alpha = 12;
const random = seededRandom(99);
const floats = (count: number) => Float32Array.from({ length: count }, () => 0.2 * random.normal());
const bytes = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** Of two sites: q, whose rows GGUF permutes, and down. */
const config = JSON.parse(readFileSync(join(tiny, "config.json"), "utf8")) as Record<string, number>;
const { hidden_size: hidden, intermediate_size: wide, num_attention_heads: heads } = config;
const sites = [
  { module: "self_attn.q_proj", gguf: "attn_q", out: hidden, into: hidden },
  { module: "mlp.down_proj", gguf: "ffn_down", out: hidden, into: wide },
].map((site) => ({ ...site, a: floats(rank * site.into), b: floats(site.out * rank) }));

function peft(name: string, more: object = {}, rename = (text: string) => text): string {
  const folder = join(home, name);
  mkdirSync(folder);
  const tensors = sites.flatMap(({ module, out, into, a, b }): SafetensorsInput[] => {
    const prefix = `base_model.model.model.layers.1.${module}`;
    return [
      { name: rename(`${prefix}.lora_A.weight`), dtype: "F32", shape: [rank, into], data: bytes(a) },
      { name: rename(`${prefix}.lora_B.weight`), dtype: "F32", shape: [out, rank], data: bytes(b) },
    ];
  });
  writeSafetensors(join(folder, "adapter_model.safetensors"), tensors);
  const settings = { peft_type: "LORA", r: rank, lora_alpha: alpha, bias: "none", use_dora: false, ...more };
  writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(settings));
  return folder;
}

/** q's rows in the order of an interleaved rope: 0, h/2, 1, h/2 + 1, … of each head. */
function permuted(b: Float32Array): Float32Array {
  const head = hidden / heads;
  const out = new Float32Array(b.length);
  for (let row = 0; row < hidden; row++) {
    const within = row % head;
    const from = row - within + (within % 2) * (head / 2) + Math.floor(within / 2);
    out.set(b.subarray(from * rank, (from + 1) * rank), row * rank);
  }
  return out;
}

function gguf(name: string, meta: Record<string, string | number> = {}): string {
  const path = join(home, name);
  const tensors = sites.flatMap(({ gguf: tensor, out, into, a, b }) => {
    const rows = tensor === "attn_q" ? permuted(b) : b;
    return [
      { name: `blk.1.${tensor}.weight.lora_a`, type: "F32" as const, shape: [rank, into], data: bytes(a) },
      { name: `blk.1.${tensor}.weight.lora_b`, type: "F32" as const, shape: [out, rank], data: bytes(rows) },
    ];
  });
  const values = { "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", ...meta };
  writeGguf(path, { meta: { ...values, "adapter.lora.alpha": { type: "f32", value: alpha } }, tensors });
  return path;
}

async function read(path: string) {
  const [adapter, model] = await Promise.all([openAdapter(path), openTiny("llama-mha")]);
  try {
    return loraAdapter(adapter, modelConfig(model));
  } finally {
    adapter.close();
    model.close();
  }
}

test("PEFT's folder and llama.cpp's file give the same factors", async () => {
  const own = await read(peft("same"));
  expect([...own.sites.keys()]).toEqual(["layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]);
  const { a, b } = own.sites.get("layers.1.self_attn.q_proj")!;
  expect(a.data).toEqual(sites[0].a);
  expect(b.data).toEqual(sites[0].b.map((value) => (alpha / rank) * value));
  expect(await read(gguf("same.gguf"))).toEqual(own);
});

test("a rank-stabilised adapter is scaled by the root of its rank", async () => {
  const { sites: read4 } = await read(peft("rs", { use_rslora: true }));
  const { b } = read4.get("layers.1.mlp.down_proj")!;
  expect(b.data[5]).toBeCloseTo((sites[1].b[5] * alpha) / Math.sqrt(rank), 6);
});

describe("what would act in another way is refused by name", () => {
  test.each<[string, () => string, RegExp]>([
    ["dora", () => peft("dora", { use_dora: true }), /use_dora = true is not supported/],
    ["trained biases", () => peft("bias", { bias: "all" }), /bias = "all" is not supported/],
    ["saved modules", () => peft("saved", { modules_to_save: ["lm_head"] }), /modules_to_save = \["lm_head"\]/],
    ["another method", () => peft("ia3", { peft_type: "IA3" }), /type "IA3"; LORA can be used/],
    [
      "embeddings",
      () => peft("embed", {}, (text) => text.replace(/^.*q_proj.lora_A/, "x.lora_embedding_A")),
      /x\.lora_/,
    ],
    [
      "half an adapter",
      () => peft("half", {}, (text) => text.replace(/down_proj(.lora_A)/, "up_proj$1")),
      /only one of/,
    ],
    ["another architecture", () => gguf("other.gguf", { "general.architecture": "qwen2" }), /for a qwen2 model, this/],
    ["a model", () => gguf("model.gguf", { "general.type": "model" }), /no LoRA adapter: its general.type is "model"/],
    ["an empty folder", () => home, /it has no adapter_config.json/],
    ["nothing", () => join(home, "nowhere"), /there is no adapter/],
  ])("%s", async (_, make, message) => {
    await expect(read(make())).rejects.toThrow(message);
  });
});

/** The checkpoint with the adapter added into its weights. */
async function merged(): Promise<string> {
  const folder = join(home, "merged");
  cpSync(tiny, folder, { recursive: true });
  const source = await openCheckpoint(tiny);
  const tensors = [...source.tensors.values()].map(({ name, type, shape }): SafetensorsInput => {
    const data = new Float32Array(shape.reduce((x, y) => x * y, 1));
    dequantize(type, source.read(name), data);
    const site = sites.find(({ module }) => name === `model.layers.1.${module}.weight`);
    for (let o = 0; site && o < site.out; o++) {
      for (let i = 0; i < site.into; i++) {
        let sum = 0;
        for (let j = 0; j < rank; j++) sum += site.b[o * rank + j] * site.a[j * site.into + i];
        data[o * site.into + i] += (alpha / rank) * sum;
      }
    }
    return { name, dtype: "F32", shape, data: bytes(data) };
  });
  writeSafetensors(join(folder, "model.safetensors"), tensors);
  source.close();
  return folder;
}

describe.each(whyNoNative() ? ["reference"] : ["reference", "cpu"])("the library, on %s", (device) => {
  if (whyNoNative()) console.warn(`SKIPPED: adapters on the cpu device: ${whyNoNative()}`);
  const options = { device: device as "cpu", kvDtype: "f32" as const, threads: 1 };
  const prompt = goldenCases("llama-mha")[0].prompt_ids;
  const settings = { temperature: 0, maxTokens: 16, logprobs: 1, ignoreEos: true };
  const ids = (result: Library.GenerationResult) => result.tokens.map(({ id }) => id);

  test("requests with and without adapters side by side answer as merged and plain weights do", async () => {
    const truth = await open(await merged(), options);
    const wanted = await truth.generate(prompt, settings).result();
    await truth.close();
    rmSync(join(home, "merged"), { recursive: true });
    const [first, second] = [peft(`one-${device}`), gguf(`two-${device}.gguf`)];
    const model = await open(tiny, { ...options, adapters: { first, second } });
    expect(model.info.adapters).toEqual(["first", "second"]);
    const [plain, one, two] = await Promise.all(
      [undefined, "first", "second"].map((adapter) => model.generate(prompt, { ...settings, adapter }).result()),
    );
    expect(ids(plain)).toEqual(goldenCases("llama-mha")[0].greedy_ids.slice(0, 16));
    expect(ids(one)).toEqual(ids(wanted));
    expect(ids(one)).not.toEqual(ids(plain));
    expect(ids(two)).toEqual(ids(one));
    one.tokens.forEach(({ logprobs }, i) => {
      expect(logprobs!.logprob).toBeCloseTo(wanted.tokens[i].logprobs!.logprob, 3);
    });
    expect(() => model.generate(prompt, { adapter: "third" })).toThrow(/no adapter "third": it has first, second/);
    await model.close();
  });

  test("an adapter of another model is refused before anything is loaded", async () => {
    const other = fileURLToPath(new URL("../golden/tiny/qwen2", import.meta.url));
    await expect(open(other, { ...options, adapters: { wrong: gguf(`wrong-${device}.gguf`) } })).rejects.toThrow(
      /the adapter is for a llama model, this one is qwen2/,
    );
  });
});
