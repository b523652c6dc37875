// LoRA adapters from PEFT folders and from GGUF files: read as the same factors, answer as merged weights do.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { openAdapter } from "../../src/formats/open.js";
import type * as Library from "../../src/index.js";
import { loraAdapter } from "../../src/model/adapter.js";
import { modelConfig } from "../../src/model/config.js";
import { goldenCases, openTiny } from "../support/golden.js";
import { LoraFiles, tinyLlama } from "../support/lora.js";

const { open } = (await import(new URL("../../dist/index.js", import.meta.url).href)) as typeof Library;
const home = mkdtempSync(join(tmpdir(), "millrace-adapter-"));
afterAll(() => rmSync(home, { recursive: true }));

const lora = new LoraFiles(home, 99);

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
  const own = await read(lora.peft("same"));
  expect([...own.sites.keys()]).toEqual(["layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]);
  const { a, b } = own.sites.get("layers.1.self_attn.q_proj")!;
  expect(a.data).toEqual(lora.sites[0].a);
  expect(b.data).toEqual(lora.sites[0].b.map((value) => lora.scale * value));
  expect(await read(lora.gguf("same.gguf"))).toEqual(own);
});

test("a rank-stabilised adapter is scaled by the root of its rank", async () => {
  const { sites: read4 } = await read(lora.peft("rs", { use_rslora: true }));
  const { b } = read4.get("layers.1.mlp.down_proj")!;
  const rank = 3;
  expect(b.data[5]).toBeCloseTo(lora.sites[1].b[5] * lora.scale * Math.sqrt(rank), 6);
});

describe("what would act in another way is refused by name", () => {
  test.each<[string, () => string, RegExp]>([
    ["dora", () => lora.peft("dora", { use_dora: true }), /use_dora = true is not supported/],
    ["trained biases", () => lora.peft("bias", { bias: "all" }), /bias = "all" is not supported/],
    ["saved modules", () => lora.peft("saved", { modules_to_save: ["lm_head"] }), /modules_to_save = \["lm_head"\]/],
    ["another method", () => lora.peft("ia3", { peft_type: "IA3" }), /type "IA3"; LORA can be used/],
    [
      "embeddings",
      () => lora.peft("embed", {}, (text) => text.replace(/^.*q_proj.lora_A/, "x.lora_embedding_A")),
      /x\.lora_/,
    ],
    [
      "half an adapter",
      () => lora.peft("half", {}, (text) => text.replace(/down_proj(.lora_A)/, "up_proj$1")),
      /only one of/,
    ],
    [
      "another architecture",
      () => lora.gguf("other.gguf", { "general.architecture": "qwen2" }),
      /for a qwen2 model, this/,
    ],
    [
      "a model",
      () => lora.gguf("model.gguf", { "general.type": "model" }),
      /no LoRA adapter: its general.type is "model"/,
    ],
    ["an empty folder", () => home, /it has no adapter_config.json/],
    ["nothing", () => join(home, "nowhere"), /there is no adapter/],
  ])("%s", async (_, make, message) => {
    await expect(read(make())).rejects.toThrow(message);
  });
});

describe.each(whyNoNative() ? ["reference"] : ["reference", "cpu"])("the library, on %s", (device) => {
  if (whyNoNative()) console.warn(`SKIPPED: adapters on the cpu device: ${whyNoNative()}`);
  const options = { device: device as "cpu", kvDtype: "f32" as const, threads: 1 };
  const prompt = goldenCases("llama-mha")[0].prompt_ids;
  const settings = { temperature: 0, maxTokens: 16, logprobs: 1, ignoreEos: true };
  const ids = (result: Library.GenerationResult) => result.tokens.map(({ id }) => id);

  test("requests with and without adapters side by side answer as merged and plain weights do", async () => {
    const truth = await open(await lora.merged("merged"), options);
    const wanted = await truth.generate(prompt, settings).result();
    await truth.close();
    rmSync(join(home, "merged"), { recursive: true });
    const [first, second] = [lora.peft(`one-${device}`), lora.gguf(`two-${device}.gguf`)];
    const model = await open(tinyLlama, { ...options, adapters: { first, second } });
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
    await expect(open(other, { ...options, adapters: { wrong: lora.gguf(`wrong-${device}.gguf`) } })).rejects.toThrow(
      /the adapter is for a llama model, this one is qwen2/,
    );
  });
});
