// Owns: what a BERT-type encoder is, in one shape for both kinds of file: bert (learned positions, biases, a plain MLP) and
// nomic-bert (rotary positions, no biases in the products, a gated MLP). A setting that changes the computation and is not
// covered is an error.
// Source: transformers' modeling_bert.py, nomic's modeling_hf_nomic_bert.py, and what llama.cpp's converter writes.
import { FormatError } from "../base/errors.js";
import type { Checkpoint, MetaValue } from "../formats/checkpoint.js";
import type { Activation } from "../plan/ops/elementwise.js";
import { most, size } from "./limits.js";
import { type Rope, ropeOf } from "./rope.js";

export type Pooling = "mean" | "cls" | "last";

export interface EncoderConfig {
  readonly kind: "bert" | "nomic-bert";
  readonly source: "gguf" | "huggingface";
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** In tokens; a longer text cannot be read. */
  readonly contextLength: number;
  /** Rows of the table of token types; every token is of type 0. */
  readonly typeRows: number;
  readonly normEps: number;
  readonly activation: Activation;
  /** undefined: positions are learned. */
  readonly rope?: Rope;
  /** From all tokens' states to the text's. */
  readonly pooling: Pooling;
}

type Json = Readonly<Record<string, unknown>>;

/** undefined: the checkpoint is no encoder. */
export function encoderConfig({ meta }: Checkpoint): EncoderConfig | undefined {
  const config = meta.kind === "gguf" ? fromGguf(meta.values) : fromFolder(meta.files.config, meta.files.pooling);
  if (config === undefined) return undefined;
  size("number of layers", config.numLayers, most.layers);
  size("hidden size", config.hiddenSize, most.width);
  size("intermediate size", config.intermediateSize, most.width);
  size("number of attention heads", config.numHeads, most.heads);
  size("vocabulary size", config.vocabSize, most.vocab);
  size("context length", config.contextLength, most.context);
  size("number of token types", config.typeRows, most.vocab);
  if (config.hiddenSize % config.numHeads !== 0) {
    throw new FormatError(`a width of ${config.hiddenSize} cannot be shared by ${config.numHeads} heads`);
  }
  return config;
}

const activationNames: Readonly<Record<string, Activation>> = {
  gelu: "gelu",
  gelu_new: "geluTanh",
  gelu_pytorch_tanh: "geluTanh",
  relu: "relu",
  silu: "silu",
  swiglu: "silu",
};

function activationOf(name: unknown): Activation {
  const found = activationNames[String(name)];
  if (found !== undefined) return found;
  throw new FormatError(`the activation ${JSON.stringify(name)} is not supported in an encoder`);
}

function fromFolder(config: Json, pooling: Json | undefined): EncoderConfig | undefined {
  if (config.model_type === "bert") return folderBert(config, pooling);
  if (config.model_type === "nomic_bert") return folderNomic(config, pooling);
  return undefined;
}

function folderBert(config: Json, pooling: Json | undefined): EncoderConfig {
  const positions = config.position_embedding_type ?? "absolute";
  if (positions !== "absolute") throw new FormatError(`position_embedding_type ${positions} is not supported`);
  if (config.is_decoder === true) throw new FormatError("a bert that is a decoder is not supported");
  return {
    kind: "bert",
    source: "huggingface",
    vocabSize: whole(config, "vocab_size"),
    hiddenSize: whole(config, "hidden_size"),
    intermediateSize: whole(config, "intermediate_size"),
    numLayers: whole(config, "num_hidden_layers"),
    numHeads: whole(config, "num_attention_heads"),
    contextLength: whole(config, "max_position_embeddings"),
    typeRows: whole(config, "type_vocab_size"),
    normEps: decimal(config, "layer_norm_eps"),
    activation: activationOf(config.hidden_act ?? "gelu"),
    pooling: folderPooling(pooling),
  };
}

/** What differs from nomic-embed-text's settings is refused. */
const nomicSettings: Json = {
  prenorm: false,
  parallel_block: false,
  causal: false,
  qkv_proj_bias: false,
  mlp_fc1_bias: false,
  mlp_fc2_bias: false,
  use_rms_norm: false,
  rotary_emb_interleaved: false,
  rotary_emb_fraction: 1,
  rotary_emb_scale_base: null,
  rotary_scaling_factor: null,
};

function folderNomic(config: Json, pooling: Json | undefined): EncoderConfig {
  for (const [name, value] of Object.entries(nomicSettings)) {
    if ((config[name] ?? value) !== value)
      throw new FormatError(`${name} ${config[name]} is not supported in nomic_bert`);
  }
  // Transformers' own class has other names for the settings than the checkpoints that came before it.
  const one = (own: string, before: string) => whole(config, config[own] === undefined ? before : own);
  const activation = config.hidden_act ?? config.activation_function;
  if (activation !== "swiglu" && activation !== "silu") {
    throw new FormatError(`the activation ${activation} is not supported in nomic_bert`);
  }
  const hiddenSize = one("hidden_size", "n_embd");
  const numHeads = one("num_attention_heads", "n_head");
  const rope = (config.rope_parameters ?? {}) as Json;
  if ((rope.rope_type ?? "default") !== "default")
    throw new FormatError(`rope_type ${rope.rope_type} is not supported`);
  const base = rope.rope_theta ?? config.rotary_emb_base;
  return {
    kind: "nomic-bert",
    source: "huggingface",
    vocabSize: whole(config, "vocab_size"),
    hiddenSize,
    intermediateSize: one("intermediate_size", "n_inner"),
    numLayers: one("num_hidden_layers", "n_layer"),
    numHeads,
    contextLength: one("max_position_embeddings", "n_positions"),
    typeRows: whole(config, "type_vocab_size"),
    normEps: decimal(config, config.layer_norm_eps === undefined ? "layer_norm_epsilon" : "layer_norm_eps"),
    activation: "silu",
    rope: ropeOf(hiddenSize / numHeads, decimal({ base }, "base"), { type: "none" }),
    pooling: folderPooling(pooling),
  };
}

/** Of sentence-transformers' 1_Pooling/config.json; a folder without one is pooled by the mean. */
function folderPooling(pooling: Json | undefined): Pooling {
  const modes = Object.entries(pooling ?? { pooling_mode_mean_tokens: true })
    .filter(([name, on]) => name.startsWith("pooling_mode_") && on === true)
    .map(([name]) => name.slice("pooling_mode_".length));
  const known: Readonly<Record<string, Pooling>> = { mean_tokens: "mean", cls_token: "cls", lasttoken: "last" };
  const [mode] = modes;
  if (modes.length === 1 && mode in known) return known[mode];
  throw new FormatError(
    `pooling by ${modes.join(" and ") || "nothing"} is not supported; known: ${Object.keys(known).join(", ")}`,
  );
}

function fromGguf(values: ReadonlyMap<string, MetaValue>): EncoderConfig | undefined {
  const kind = values.get("general.architecture");
  if (kind !== "bert" && kind !== "nomic-bert") return undefined;
  const given: Json = Object.fromEntries([...values].map(([key, value]) => [key, value]));
  const at = (key: string) => `${kind}.${key}`;
  if (given[at("attention.causal")] === true) throw new FormatError(`a causal ${kind} is not supported`);
  if (given[at("expert_count")] !== undefined) throw new FormatError(`${kind} with experts is not supported`);
  const hiddenSize = whole(given, at("embedding_length"));
  const numHeads = whole(given, at("attention.head_count"));
  const tokens = values.get("tokenizer.ggml.tokens") as ArrayLike<unknown> | undefined;
  const nomic = kind === "nomic-bert";
  return {
    kind,
    source: "gguf",
    vocabSize: tokens?.length ?? whole(given, at("vocab_size")),
    hiddenSize,
    intermediateSize: whole(given, at("feed_forward_length")),
    numLayers: whole(given, at("block_count")),
    numHeads,
    contextLength: whole(given, at("context_length")),
    typeRows: 2,
    normEps: decimal(given, at("attention.layer_norm_epsilon")),
    activation: nomic ? "silu" : "gelu",
    ...(nomic
      ? { rope: ropeOf(hiddenSize / numHeads, decimal(given, at("rope.freq_base"), 10000), { type: "none" }) }
      : {}),
    pooling: ggufPooling(given[at("pooling_type")]),
  };
}

function ggufPooling(type: unknown): Pooling {
  const known: readonly (Pooling | undefined)[] = [undefined, "mean", "cls", "last"];
  const found = known[(type ?? 1) as number];
  if (found !== undefined) return found;
  throw new FormatError(`pooling_type ${type} is not supported; known: 1 (mean), 2 (cls), 3 (last)`);
}

function whole(config: Json, key: string): number {
  return size(key, decimal(config, key), 2 ** 31);
}

function decimal(config: Json, key: string, fallback?: number): number {
  const value = config[key] ?? fallback;
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw new FormatError(`${key} should be a number, it is ${value === undefined ? "missing" : JSON.stringify(value)}`);
}
