// Owns: what /api/show tells of a model's files: their metadata, their tensors and what the model can do. Reads headers only.
import type { CheckpointMeta, MetaValue } from "../formats/checkpoint.js";
import { openCheckpoint } from "../formats/open.js";

export type Capability = "completion" | "tools" | "insert" | "thinking" | "embedding";

export interface ModelAbout {
  /** GGUF's keys. A long list is null, as Ollama gives it. */
  readonly info: Readonly<Record<string, unknown>>;
  readonly tensors: readonly { readonly name: string; readonly type: string; readonly shape: readonly number[] }[];
  /** The file's own; undefined: none. */
  readonly template: string | undefined;
  readonly embeds: boolean;
  readonly contextLength: number | undefined;
  readonly embeddingLength: number | undefined;
}

/** Lists beyond this length are shown only when everything is asked for. */
const shownList = 32;

/** Architectures of encoders: GGUF's general.architecture and Hugging Face's model_type. */
const encoders = new Set(["bert", "nomic-bert", "nomic_bert"]);

/** Throws FormatError and UserError as openCheckpoint does. */
export async function aboutModel(path: string, verbose = false): Promise<ModelAbout> {
  const checkpoint = await openCheckpoint(path);
  try {
    const { meta } = checkpoint;
    const tensors = [...checkpoint.tensors.values()];
    const parameters = tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    const info: Record<string, unknown> = {
      "general.parameter_count": parameters,
      ...(meta.kind === "gguf" ? ofGguf(meta, verbose) : ofFolder(meta)),
    };
    const architecture = String(info["general.architecture"] ?? "");
    return {
      info,
      tensors: tensors.map(({ name, type, shape }) => ({ name, type, shape })),
      template: templateOf(meta),
      embeds: encoders.has(architecture),
      contextLength: numberOf(info[`${architecture}.context_length`]),
      embeddingLength: numberOf(info[`${architecture}.embedding_length`]),
    };
  } finally {
    checkpoint.close();
  }
}

/** What a chat template lets a model do, by the variables that it reads. */
export function capabilitiesOf(template: string | undefined, embeds: boolean): Capability[] {
  if (embeds) return ["embedding"];
  const reads = (pattern: RegExp) => template !== undefined && pattern.test(template);
  return [
    "completion",
    ...(reads(/\btools\b|\.Tools\b/) ? (["tools"] as const) : []),
    ...(reads(/\.Suffix\b/) ? (["insert"] as const) : []),
    ...(reads(/enable_thinking|\bthinking\b|<think>|\.Think\b|reasoning_effort/) ? (["thinking"] as const) : []),
  ];
}

function ofGguf({ values }: CheckpointMeta & { kind: "gguf" }, verbose: boolean): Record<string, unknown> {
  return Object.fromEntries([...values].map(([key, value]) => [key, shown(value, verbose)]));
}

function shown(value: MetaValue, verbose: boolean): unknown {
  if (typeof value === "bigint") return value.toString();
  if (typeof value !== "object") return value;
  return verbose || value.length <= shownList
    ? Array.from(value as ArrayLike<MetaValue>, (one) => shown(one, verbose))
    : null;
}

/** A folder's config under GGUF's keys, as far as clients look at them. */
function ofFolder({ files }: CheckpointMeta & { kind: "huggingface" }): Record<string, unknown> {
  const { config } = files;
  const architecture = String(config.model_type ?? "");
  const under: Record<string, unknown> = {
    context_length: config.max_position_embeddings ?? config.n_positions,
    embedding_length: config.hidden_size ?? config.n_embd,
    block_count: config.num_hidden_layers ?? config.n_layer,
    feed_forward_length: config.intermediate_size ?? config.n_inner,
    "attention.head_count": config.num_attention_heads ?? config.n_head,
    "attention.head_count_kv": config.num_key_value_heads,
    vocab_size: config.vocab_size,
  };
  const known = Object.entries(under).filter(([, value]) => typeof value === "number");
  return {
    "general.architecture": architecture,
    ...Object.fromEntries(known.map(([key, value]) => [`${architecture}.${key}`, value])),
  };
}

function templateOf(meta: CheckpointMeta): string | undefined {
  if (meta.kind === "huggingface") {
    const { chatTemplate, tokenizerConfig } = meta.files;
    const own = chatTemplate ?? tokenizerConfig?.chat_template;
    return typeof own === "string" ? own : undefined;
  }
  const own = meta.values.get("tokenizer.chat_template");
  return typeof own === "string" ? own : undefined;
}

const numberOf = (value: unknown) => (typeof value === "number" ? value : undefined);
