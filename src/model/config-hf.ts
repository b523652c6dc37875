// Owns: reading config.json of a Hugging Face folder, in the form of transformers 4 (rope_theta, rope_scaling) and of 5
// (rope_parameters). A setting that changes the computation and that the family's row does not cover is an error.
import { FormatError } from "../base/errors.js";
import type { Activation } from "../plan/ops/elementwise.js";
import type { ExpertsConfig, LayerConfig, ModelConfig } from "./config.js";
import { type Family, families, knownModelTypes } from "./families.js";
import { most, size } from "./limits.js";
import { type Rope, type RopeScaling, ropeOf, ropeScalingTypes } from "./rope.js";

type Json = Readonly<Record<string, unknown>>;

export function huggingFaceConfig(config: Json): ModelConfig {
  const family = families.find(({ modelTypes }) => modelTypes.includes(config.model_type as string));
  if (!family) {
    const known = knownModelTypes.join(", ");
    throw new FormatError(`model_type ${JSON.stringify(config.model_type)} is not supported; known: ${known}`);
  }
  refuseUnsupported(config, family);
  const hiddenSize = whole(config, "hidden_size");
  const numHeads = whole(config, "num_attention_heads");
  const perHead = number(config, "head_dim", family.headDim ?? hiddenSize / numHeads);
  const headDim = size("head dimension", perHead, most.headDim);
  const attentionBias = family.attentionBias === "config" ? flag(config, "attention_bias", false) : false;
  const qkvBias = attentionBias || family.attentionBias === "qkv";
  return {
    family,
    source: "huggingface",
    vocabSize: whole(config, "vocab_size"),
    hiddenSize,
    intermediateSize: whole(config, "intermediate_size"),
    numHeads,
    numKvHeads: whole(config, "num_key_value_heads", numHeads),
    headDim,
    contextLength: whole(config, "max_position_embeddings", 2048),
    normEps: Math.fround(number(config, "rms_norm_eps", 1e-6)),
    activation: activationOf(config, family),
    tiedEmbeddings: flag(config, "tie_word_embeddings", family.tied),
    biases: {
      q: qkvBias,
      k: qkvBias,
      v: qkvBias,
      o: attentionBias,
      mlp: family.mlpBias === "config" && flag(config, "mlp_bias", false),
    },
    embedScale: family.embedScale(hiddenSize),
    attentionScale: number(config, "query_pre_attn_scalar", family.queryPreAttnScalar ?? headDim) ** -0.5,
    logitsScale: 1,
    experts: family.experts && expertsOf(config),
    layers: layersOf(config, family, headDim),
  };
}

/** What a family with experts reads of them; other settings about experts are refused. */
const expertKeys = ["num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"];

function expertsOf(config: Json): ExpertsConfig {
  return {
    count: whole(config, config.num_experts === undefined ? "num_local_experts" : "num_experts"),
    used: whole(config, "num_experts_per_tok"),
    intermediateSize: whole(config, "moe_intermediate_size"),
    normalize: flag(config, "norm_topk_prob", false),
  };
}

/** Settings that change what is computed, and the one value of each that leaves it alone (besides absent and null). */
const neutral: Readonly<Record<string, unknown>> = {
  attn_logit_softcapping: 0,
  final_logit_softcapping: 0,
  use_bidirectional_attention: false,
  partial_rotary_factor: 1,
  rope_interleaved: false,
  alibi: false,
  parallel_attn: false,
  use_parallel_residual: false,
  use_qk_norm: false,
  qk_layernorm: false,
  clip_qkv: 0,
  embedding_multiplier: 1,
  attention_multiplier: undefined,
  residual_multiplier: 1,
  logits_scaling: 1,
  logit_scale: 1,
  no_rope_layers: undefined,
  use_mrope: false,
  decoder_sparse_step: 1,
  mlp_only_layers: [],
  is_encoder_decoder: false,
  add_cross_attention: false,
  vision_config: undefined,
  audio_config: undefined,
  quantization_config: undefined,
  compression_config: undefined,
};

function refuseUnsupported(config: Json, family: Family): void {
  const expected = family.experts ? expertKeys : [];
  for (const [key, value] of Object.entries(config)) {
    if (value === null || value === undefined) continue;
    const changes =
      (key in neutral && JSON.stringify(value) !== JSON.stringify(neutral[key])) ||
      (/expert|(^|_)moe(_|$)/.test(key) && value !== 0 && value !== false && !expected.includes(key)) ||
      (key === "attention_bias" && family.attentionBias !== "config" && value !== (family.attentionBias === "qkv")) ||
      (key === "mlp_bias" && family.mlpBias !== "config" && value !== false) ||
      (key === "query_pre_attn_scalar" && family.name !== "gemma3");
    if (changes) throw new FormatError(`config.json: ${key} = ${short(value)} is not supported for ${family.name}`);
  }
}

/** Kinds as layer_types spells them. */
const layerKinds = ["full_attention", "sliding_attention"];

function layersOf(config: Json, family: Family, headDim: number): LayerConfig[] {
  const count = size("number of layers", number(config, "num_hidden_layers"), most.layers);
  const ropes = ropesOf(config, family, headDim);
  const kinds = layerKindsOf(config, family, count);
  const windowed = kinds.includes("sliding_attention");
  const window = windowed ? whole(config, "sliding_window") : undefined;
  return kinds.map((kind) => (kind === "sliding_attention" ? { window, rope: ropes.local } : { rope: ropes.global }));
}

function layerKindsOf(config: Json, family: Family, count: number): string[] {
  const rule = family.windows;
  const window = config.sliding_window ?? null;
  const off = window === null || (rule.kind === "from" && !flag(config, "use_sliding_window", false));
  const declared = config.layer_types ?? null;
  if (declared !== null) {
    if (!Array.isArray(declared) || declared.length !== count) {
      throw new FormatError(`config.json: layer_types must name the kind of each of the ${count} layers`);
    }
    const unknown = declared.find((kind) => !layerKinds.includes(kind));
    if (unknown !== undefined) throw new FormatError(`config.json: layer type ${short(unknown)} is not supported`);
    if (declared.includes("sliding_attention") && (off || rule.kind === "none")) {
      throw new FormatError("config.json: layer_types has sliding_attention, but the model has no sliding window");
    }
    return declared;
  }
  if (rule.kind === "none" && !off)
    throw new FormatError(`config.json: sliding_window is not supported for ${family.name}`);
  const everyNth = rule.kind === "pattern" ? patternOf(config, rule.pattern) : 0;
  const firstWindowed = rule.kind === "from" ? number(config, "max_window_layers", 28) : 0;
  return Array.from({ length: count }, (_, i) => {
    const full = off || (everyNth > 0 && (i + 1) % everyNth === 0) || i < firstWindowed;
    return full ? "full_attention" : "sliding_attention";
  });
}

function patternOf(config: Json, fallback: number): number {
  const key = "_sliding_window_pattern" in config ? "_sliding_window_pattern" : "sliding_window_pattern";
  return whole(config, key, fallback);
}

/** Window layers have a rope of their own in families with a second base. */
function ropesOf(config: Json, family: Family, headDim: number): { global: Rope; local: Rope } {
  const five = config.rope_parameters ?? null;
  if (five === null) {
    const base = number(config, "rope_theta", family.ropeBase ?? 10_000);
    const global = ropeOf(headDim, base, scalingOf(config.rope_scaling ?? null, config));
    if (family.localRopeBase === undefined) return { global, local: global };
    const localBase = number(config, "rope_local_base_freq", family.localRopeBase);
    return { global, local: ropeOf(headDim, localBase, { type: "none" }) };
  }
  const byKind = object(five, "rope_parameters");
  const one = (settings: Json) =>
    ropeOf(
      headDim,
      number(settings, "rope_theta", number(config, "rope_theta", family.ropeBase ?? 10_000)),
      scalingOf(settings, config),
    );
  if (!("full_attention" in byKind)) {
    if (family.localRopeBase !== undefined) {
      throw new FormatError("config.json: rope_parameters must have full_attention and sliding_attention here");
    }
    return { global: one(byKind), local: one(byKind) };
  }
  const global = one(object(byKind.full_attention, "rope_parameters.full_attention"));
  const local = byKind.sliding_attention ?? null;
  return { global, local: local === null ? global : one(object(local, "rope_parameters.sliding_attention")) };
}

function scalingOf(value: unknown, config: Json): RopeScaling {
  if (value === null) return { type: "none" };
  const settings = object(value, "rope_scaling");
  const type = settings.rope_type ?? settings.type ?? "default";
  if ((settings.partial_rotary_factor ?? 1) !== 1) {
    throw new FormatError(
      `config.json: partial_rotary_factor = ${short(settings.partial_rotary_factor)} is not supported`,
    );
  }
  if (type === "default") return { type: "none" };
  const factor = number(settings, "factor");
  if (type === "linear") return { type, factor };
  if (type !== "llama3") {
    throw new FormatError(
      `config.json: rope scaling ${short(type)} is not supported; known: ${ropeScalingTypes.join(", ")}`,
    );
  }
  return {
    type,
    factor,
    lowFreqFactor: number(settings, "low_freq_factor"),
    highFreqFactor: number(settings, "high_freq_factor"),
    originalContextLength: number(
      settings,
      "original_max_position_embeddings",
      config.max_position_embeddings as number | undefined,
    ),
  };
}

const activationNames: Readonly<Record<string, Activation>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_new: "geluTanh",
  gelu_pytorch_tanh: "geluTanh",
  relu: "relu",
  relu2: "relu2",
};

function activationOf(config: Json, family: Family): Activation {
  // gemma: older files say hidden_act "gelu" and mean what hidden_activation says
  const name = config.hidden_activation ?? (family.activation === "geluTanh" ? null : (config.hidden_act ?? null));
  if (name === null) return family.activation;
  const known = Object.hasOwn(activationNames, String(name)) ? activationNames[String(name)] : undefined;
  if (known === undefined) {
    const list = Object.keys(activationNames).join(", ");
    throw new FormatError(`config.json: activation ${short(name)} is not supported; known: ${list}`);
  }
  return known;
}

function whole(config: Json, key: string, fallback?: number): number {
  return size(key, number(config, key, fallback), 2 ** 31);
}

function number(config: Json, key: string, fallback?: number): number {
  const value = config[key] ?? fallback;
  if (typeof value !== "number" || !Number.isFinite(value)) {
    throw new FormatError(`config.json: ${key} should be a number, it is ${short(value)}`);
  }
  return value;
}

function flag(config: Json, key: string, fallback: boolean): boolean {
  const value = config[key] ?? fallback;
  if (typeof value !== "boolean")
    throw new FormatError(`config.json: ${key} should be true or false, it is ${short(value)}`);
  return value;
}

function object(value: unknown, key: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FormatError(`config.json: ${key} should be an object, it is ${short(value)}`);
  }
  return value as Json;
}

function short(value: unknown): string {
  const text = JSON.stringify(value) ?? "missing";
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
