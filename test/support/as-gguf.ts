// Owns: a tiny Hugging Face checkpoint as a GGUF converter would write it, in memory: names, metadata, rows of q and k
// reordered for an interleaved rope, 1 added to Gemma's norms, llama 3's rope scaling as a tensor of divisors, experts stacked.
import { widenBf16 } from "../../src/base/half.js";
import type { Checkpoint, MetaValue, TensorInfo } from "../../src/formats/checkpoint.js";

const moduleNames: readonly (readonly [RegExp, string])[] = [
  [/^model\.embed_tokens/, "token_embd"],
  [/^model\.norm/, "output_norm"],
  [/^lm_head/, "output"],
  [/^model\.layers\.(\d+)\.input_layernorm/, "blk.$1.attn_norm"],
  [/^model\.layers\.(\d+)\.self_attn\.([qkv])_proj/, "blk.$1.attn_$2"],
  [/^model\.layers\.(\d+)\.self_attn\.o_proj/, "blk.$1.attn_output"],
  [/^model\.layers\.(\d+)\.self_attn\.([qk])_norm/, "blk.$1.attn_$2_norm"],
  [/^model\.layers\.(\d+)\.pre_feedforward_layernorm/, "blk.$1.ffn_norm"],
  [/^model\.layers\.(\d+)\.post_feedforward_layernorm/, "blk.$1.post_ffw_norm"],
  [/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj/, "blk.$1.ffn_$2"],
  [/^model\.layers\.(\d+)\.mlp\.gate\./, "blk.$1.ffn_gate_inp."],
  [/^model\.layers\.(\d+)\.mlp\.experts\.\d+\.(gate|up|down)_proj/, "blk.$1.ffn_$2_exps"],
];

export function asGguf(source: Checkpoint): Checkpoint {
  if (source.meta.kind !== "huggingface") throw new Error("a Hugging Face checkpoint is wanted");
  const config = source.meta.files.config as Record<string, never>;
  const gemma = config.model_type === "gemma3_text";
  const moe = config.model_type === "qwen3_moe";
  const architecture = moe
    ? "qwen3moe"
    : gemma
      ? "gemma3"
      : config.model_type === "mistral"
        ? "llama"
        : (config.model_type as string);
  const tensors = new Map<string, TensorInfo>();
  const bytes = new Map<string, Uint8Array>();
  const put = (name: string, type: "F32" | "BF16", shape: readonly number[], data: Uint8Array) => {
    tensors.set(name, { name, type, shape, bytes: data.length });
    bytes.set(name, data);
  };
  const byExpert = (name: string) => Number(/experts\.(\d+)/.exec(name)?.[1] ?? 0);
  for (const info of [...source.tensors.values()].sort((a, b) => byExpert(a.name) - byExpert(b.name))) {
    const [pattern, target] = [
      ...moduleNames,
      [
        /^model\.layers\.(\d+)\.post_attention_layernorm/,
        gemma ? "blk.$1.post_attention_norm" : "blk.$1.ffn_norm",
      ] as const,
    ].find(([p]) => p.test(info.name))!;
    const name = info.name.replace(pattern, target);
    let data: Uint8Array = source.read(info.name).slice();
    const heads = { attn_q: config.num_attention_heads, attn_k: config.num_key_value_heads }[name.split(".")[2]];
    if (architecture === "llama" && heads) data = permuted(data, info.shape[0], heads);
    if (gemma && /norm/.test(name)) {
      const values = new Float32Array(info.shape[0]);
      widenBf16(data, values);
      put(name, "F32", info.shape, new Uint8Array(values.map((value) => value + 1).buffer));
    } else if (/_exps/.test(name)) {
      const before = tensors.get(name);
      const joined = new Uint8Array([...(bytes.get(name) ?? []), ...data]);
      put(name, info.type as "BF16", [(before?.shape[0] ?? 0) + 1, ...info.shape], joined);
    } else put(name, info.type as "F32" | "BF16", info.shape, data);
  }
  const scaling = config.rope_scaling as Record<string, number> | null | undefined;
  const values = metadata(config, architecture);
  if ((scaling?.rope_type as unknown) === "llama3") {
    const divisors = llama3Divisors(scaling!, config);
    put("rope_freqs.weight", "F32", [divisors.length], new Uint8Array(divisors.buffer));
  } else if (scaling) {
    values.set(`${architecture}.rope.scaling.type`, "linear");
    values.set(`${architecture}.rope.scaling.factor`, scaling.factor);
  }
  return {
    ...{ meta: { kind: "gguf", values }, tensors, fileBytes: source.fileBytes, label: source.label },
    read: (name) => bytes.get(name)!,
    release: () => {},
    close: () => {},
  };
}

/** Row h·d + j·d/2 + i goes to row h·d + 2·i + j. */
function permuted(data: Uint8Array, rows: number, heads: number): Uint8Array {
  const out = new Uint8Array(data.length);
  const width = data.length / rows;
  const d = rows / heads;
  for (let h = 0; h < heads; h++) {
    for (let j = 0; j < 2; j++) {
      for (let i = 0; i < d / 2; i++) {
        const from = h * d + (j * d) / 2 + i;
        out.set(data.subarray(from * width, (from + 1) * width), (h * d + 2 * i + j) * width);
      }
    }
  }
  return out;
}

function llama3Divisors(scaling: Record<string, number>, config: Record<string, number>): Float32Array {
  const { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: old } = scaling;
  return Float32Array.from({ length: config.head_dim / 2 }, (_, i) => {
    const wave = 2 * Math.PI * config.rope_theta ** ((2 * i) / config.head_dim);
    if (wave < old / high) return 1;
    if (wave > old / low) return factor;
    const smooth = (old / wave - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}

function metadata(config: Record<string, never>, architecture: string): Map<string, MetaValue> {
  const five = config.rope_parameters as { rope_theta: number } | undefined;
  const own: Record<string, MetaValue | undefined> = {
    block_count: config.num_hidden_layers,
    context_length: config.max_position_embeddings,
    embedding_length: config.hidden_size,
    feed_forward_length: config.intermediate_size,
    "attention.head_count": config.num_attention_heads,
    "attention.head_count_kv": config.num_key_value_heads,
    "attention.key_length": config.head_dim,
    "attention.value_length": config.head_dim,
    "attention.layer_norm_rms_epsilon": Math.fround(config.rms_norm_eps),
    "rope.freq_base": five?.rope_theta ?? config.rope_theta,
    "attention.sliding_window": config.sliding_window ?? undefined,
    "attention.sliding_window_pattern": config.sliding_window_pattern,
    expert_count: config.num_local_experts,
    expert_used_count: config.num_experts_per_tok,
    expert_feed_forward_length: config.moe_intermediate_size,
  };
  const values = new Map<string, MetaValue>([["general.architecture", architecture]]);
  for (const [key, value] of Object.entries(own)) if (value !== undefined) values.set(`${architecture}.${key}`, value);
  return values;
}
