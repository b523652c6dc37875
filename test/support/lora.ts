// Owns: LoRA adapters of random factors for the tiny llama-mha checkpoint, as PEFT folder, as GGUF, and added into the
// checkpoint's weights.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openCheckpoint } from "../../src/formats/open.js";
import { dequantize } from "../../src/formats/quant/dequantize.js";
import { writeGguf } from "./gguf-writer.js";
import { seededRandom } from "./random.js";
import { type SafetensorsInput, writeSafetensors } from "./safetensors-writer.js";

export const tinyLlama = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));

const rank = 3;
const alpha = 12;
const bytes = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
const config = JSON.parse(readFileSync(join(tinyLlama, "config.json"), "utf8")) as Record<string, number>;
const { hidden_size: hidden, intermediate_size: wide, num_attention_heads: heads } = config;

export class LoraFiles {
  readonly scale = alpha / rank;
  /** Two: q, whose rows GGUF permutes, and down. */
  readonly sites: readonly {
    readonly module: string;
    readonly gguf: string;
    readonly out: number;
    readonly into: number;
    /** [rank, into] */
    readonly a: Float32Array;
    /** [out, rank] */
    readonly b: Float32Array;
  }[];

  constructor(
    private readonly home: string,
    seed: number,
  ) {
    const random = seededRandom(seed);
    const floats = (count: number) => Float32Array.from({ length: count }, () => 0.2 * random.normal());
    this.sites = [
      { module: "self_attn.q_proj", gguf: "attn_q", out: hidden, into: hidden },
      { module: "mlp.down_proj", gguf: "ffn_down", out: hidden, into: wide },
    ].map((site) => ({ ...site, a: floats(rank * site.into), b: floats(site.out * rank) }));
  }

  /** The path of a folder. */
  peft(name: string, more: object = {}, rename = (text: string) => text): string {
    const folder = join(this.home, name);
    mkdirSync(folder);
    const tensors = this.sites.flatMap(({ module, out, into, a, b }): SafetensorsInput[] => {
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

  /** The path of a file. */
  gguf(name: string, meta: Record<string, string | number> = {}): string {
    const path = join(this.home, name);
    const tensors = this.sites.flatMap(({ gguf: tensor, out, into, a, b }) => {
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

  /** The path of a folder: the checkpoint with the adapter added into its weights. */
  async merged(name: string): Promise<string> {
    const folder = join(this.home, name);
    cpSync(tinyLlama, folder, { recursive: true });
    const source = await openCheckpoint(tinyLlama);
    const tensors = [...source.tensors.values()].map(({ name, type, shape }): SafetensorsInput => {
      const data = new Float32Array(shape.reduce((x, y) => x * y, 1));
      dequantize(type, source.read(name), data);
      const site = this.sites.find(({ module }) => name === `model.layers.1.${module}.weight`);
      for (let o = 0; site && o < site.out; o++) {
        for (let i = 0; i < site.into; i++) {
          let sum = 0;
          for (let j = 0; j < rank; j++) sum += site.b[o * rank + j] * site.a[j * site.into + i];
          data[o * site.into + i] += this.scale * sum;
        }
      }
      return { name, dtype: "F32", shape, data: bytes(data) };
    });
    writeSafetensors(join(folder, "model.safetensors"), tensors);
    source.close();
    return folder;
  }
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
