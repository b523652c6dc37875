// Owns: the way back from a ModelConfig to GGUF metadata: what config-gguf.ts would read as the same model.
import type { TypedValue } from "../formats/gguf-writer.js";
import type { ModelConfig } from "./config.js";

export interface GgufModel {
  readonly values: ReadonlyMap<string, TypedValue>;
  /** Of rope_freqs.weight, where the rope is scaled: one divisor a pair. */
  readonly ropeDivisors?: Float32Array;
}

/** Without a tokenizer; name: general.name. */
export function ggufModel(config: ModelConfig, name: string, fileType: number): GgufModel {
  const architecture = config.family.architectures[0] ?? "llama";
  const values = new Map<string, TypedValue>();
  const text = (key: string, value: string) => values.set(key, { type: "string", value });
  const u32 = (key: string, value: number) => values.set(`${architecture}.${key}`, { type: "u32", value });
  const f32 = (key: string, value: number) => values.set(`${architecture}.${key}`, { type: "f32", value });
  text("general.architecture", architecture);
  text("general.name", name);
  values.set("general.file_type", { type: "u32", value: fileType });
  values.set("general.quantization_version", { type: "u32", value: 2 });
  u32("vocab_size", config.vocabSize);
  u32("block_count", config.layers.length);
  u32("context_length", config.contextLength);
  u32("embedding_length", config.hiddenSize);
  u32("feed_forward_length", config.intermediateSize);
  u32("attention.head_count", config.numHeads);
  u32("attention.head_count_kv", config.numKvHeads);
  u32("attention.key_length", config.headDim);
  u32("attention.value_length", config.headDim);
  f32("attention.layer_norm_rms_epsilon", config.normEps);
  u32("rope.dimension_count", config.headDim);
  if (config.experts) {
    u32("expert_count", config.experts.count);
    u32("expert_used_count", config.experts.used);
    u32("expert_feed_forward_length", config.experts.intermediateSize);
  }
  const window = config.layers.find((layer) => layer.window !== undefined)?.window;
  if (window !== undefined) {
    u32("attention.sliding_window", window);
    const value = config.layers.map((layer) => layer.window !== undefined);
    const key = `${architecture}.attention.sliding_window_pattern`;
    if (!value.every(Boolean)) values.set(key, { type: "array", of: "bool", value });
  }
  const { invFreq } = (config.layers.find((layer) => layer.window === undefined) ?? config.layers[0]).rope;
  const { base, divisors } = unscaled(invFreq);
  f32("rope.freq_base", base);
  text("tokenizer.ggml.model", "no_vocab");
  return { values, ropeDivisors: divisors };
}

/** The base that the two fastest pairs turn by, and what divides each pair's frequency. */
function unscaled(invFreq: readonly number[]): { base: number; divisors?: Float32Array } {
  const dim = 2 * invFreq.length;
  if (dim < 4) return { base: 10_000 };
  const exact = (invFreq[0] / invFreq[1]) ** (dim / 2);
  const base = Math.abs(exact - Math.round(exact)) < 1e-6 * exact ? Math.round(exact) : exact;
  const divisors = Float32Array.from(invFreq, (f, i) => base ** (-(2 * i) / dim) / f);
  return divisors.every((d) => Math.abs(d - 1) < 1e-6) ? { base } : { base, divisors };
}
