// Owns: reading a model's configuration from GGUF metadata ("llama.block_count"...). Keys of the computation that are not
// known here are errors, never ignored. Which biases there are and whether embeddings are tied, the tensors say.
// Source: the GGUF specification's table of standardised keys, and what converters write.
import { FormatError } from "../base/errors.js";
import type { Checkpoint, MetaValue, TensorInfo } from "../formats/checkpoint.js";
import type { LayerConfig, ModelConfig } from "./config.js";
import { type Family, families, knownArchitectures } from "./families.js";
import { most, size } from "./limits.js";
import { type Rope, type RopeScaling, ropeOf } from "./rope.js";

type Source = Pick<Checkpoint, "tensors" | "read" | "release">;

/** Per-pair divisors of the rope's frequencies. */
export const ropeFactors = "rope_freqs.weight";

class Metadata {
  constructor(
    readonly values: ReadonlyMap<string, MetaValue>,
    readonly architecture: string,
  ) {}

  /** The value of ARCHITECTURE.key. */
  get(key: string): MetaValue | undefined {
    return this.values.get(`${this.architecture}.${key}`);
  }

  number(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback;
    // per-layer arrays are fine where all layers agree
    const list = ArrayBuffer.isView(value) ? [...(value as Int32Array)] : [value];
    const first = list[0];
    if (typeof first !== "number" || !Number.isFinite(first)) {
      throw new FormatError(
        `${this.architecture}.${key} should be a number, it is ${first === undefined ? "missing" : first}`,
      );
    }
    if (list.some((other) => other !== first)) {
      throw new FormatError(`${this.architecture}.${key} differs from layer to layer, which is not supported`);
    }
    return first;
  }

  whole(key: string, fallback?: number): number {
    return size(`${this.architecture}.${key}`, this.number(key, fallback), 2 ** 31);
  }
}

/** After "ARCHITECTURE.": what is read here, and what does not change the computation. */
const knownKeys = new Set([
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
  "attention.sliding_window",
  "attention.sliding_window_pattern",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.freq_base_swa",
  "rope.scale_linear",
  "rope.scaling.type",
  "rope.scaling.factor",
  "rope.scaling.original_context_length",
  "rope.scaling.finetuned",
]);

export function ggufConfig(values: ReadonlyMap<string, MetaValue>, source: Source): ModelConfig {
  const architecture = values.get("general.architecture");
  const family = families.find(({ architectures }) => architectures.includes(architecture as string));
  if (!family) {
    const known = knownArchitectures.join(", ");
    throw new FormatError(`GGUF architecture ${JSON.stringify(architecture)} is not supported; known: ${known}`);
  }
  const meta = new Metadata(values, architecture as string);
  refuseUnsupported(meta, family);
  const { tensors } = source;
  const hiddenSize = meta.whole("embedding_length");
  const numHeads = meta.whole("attention.head_count");
  const headDim = size("head dimension", meta.number("attention.key_length", hiddenSize / numHeads), most.headDim);
  if (meta.number("attention.value_length", headDim) !== headDim) {
    throw new FormatError("keys and values of different length are not supported for this architecture");
  }
  const bias = (name: string) => tensors.has(`blk.0.${name}.bias`);
  return {
    family,
    source: "gguf",
    vocabSize: rowsOf(tensors, "token_embd.weight"),
    hiddenSize,
    intermediateSize: meta.whole("feed_forward_length"),
    numHeads,
    numKvHeads: meta.whole("attention.head_count_kv", numHeads),
    headDim,
    contextLength: meta.whole("context_length"),
    normEps: meta.number("attention.layer_norm_rms_epsilon"),
    activation: family.activation,
    tiedEmbeddings: !tensors.has("output.weight"),
    biases: { q: bias("attn_q"), k: bias("attn_k"), v: bias("attn_v"), o: bias("attn_output"), mlp: bias("ffn_gate") },
    embedScale: family.embedScale(hiddenSize),
    attentionScale: attentionScale(meta, family, hiddenSize / numHeads, headDim),
    logitsScale: 1,
    experts: family.experts && {
      count: meta.whole("expert_count"),
      used: meta.whole("expert_used_count"),
      intermediateSize: meta.whole("expert_feed_forward_length"),
      normalize: family.experts.normalize,
    },
    layers: layersOf(meta, family, headDim, source),
  };
}

const expertKeys = ["expert_count", "expert_used_count", "expert_feed_forward_length"];

function refuseUnsupported(meta: Metadata, family: Family): void {
  const prefix = `${meta.architecture}.`;
  const known = new Set([...knownKeys, ...(family.experts ? expertKeys : [])]);
  // keys, then the values that matter: to look at the vocabulary is to decode it, a third of loading a small model
  for (const key of meta.values.keys()) {
    if (!key.startsWith(prefix) || known.has(key.slice(prefix.length))) continue;
    const value = meta.values.get(key);
    if (key.endsWith(".attention.causal") && value === true) continue;
    const changes = /^(attention|rope|ssm)\.|expert|softcap|scale|parallel/.test(key.slice(prefix.length));
    if (changes && value !== 0 && value !== false) {
      throw new FormatError(`${key} = ${String(value).slice(0, 60)} is not supported`);
    }
  }
}

/** The file does not say which divisor Gemma 3's queries have: the 27B model (62 layers) takes hidden size / heads. */
function attentionScale(meta: Metadata, family: Family, perHead: number, headDim: number): number {
  const large = family.name === "gemma3" && meta.number("block_count") === 62;
  return (large ? perHead : headDim) ** -0.5;
}

function rowsOf(tensors: ReadonlyMap<string, TensorInfo>, name: string): number {
  const info = tensors.get(name);
  if (info?.shape.length !== 2) throw new FormatError(`the file has no matrix ${name}: it holds no model`);
  return info.shape[0];
}

function layersOf(meta: Metadata, family: Family, headDim: number, source: Source): LayerConfig[] {
  const count = size("number of layers", meta.number("block_count"), most.layers);
  const { global, local } = ropesOf(meta, family, headDim, source);
  const window = meta.get("attention.sliding_window") === undefined ? 0 : meta.number("attention.sliding_window");
  if (window === 0) return Array.from({ length: count }, () => ({ rope: global }));
  const isLocal = windowRule(meta, family);
  return Array.from({ length: count }, (_, i) => (isLocal(i) ? { window, rope: local } : { rope: global }));
}

/** Which layers see the window only. */
function windowRule(meta: Metadata, family: Family): (layer: number) => boolean {
  const rule = family.windowsInGguf ?? family.windows;
  const given = meta.get("attention.sliding_window_pattern");
  if (Array.isArray(given)) {
    return (i) => {
      if (typeof given[i] !== "boolean")
        throw new FormatError("sliding_window_pattern must say of each layer true or false");
      return given[i];
    };
  }
  if (rule.kind === "every" && given === undefined) return () => true;
  if (rule.kind !== "pattern") {
    throw new FormatError(
      `${meta.architecture}.attention.sliding_window: windows are not supported for ${family.name} here`,
    );
  }
  const everyNth = meta.whole("attention.sliding_window_pattern", rule.pattern);
  return (i) => (i + 1) % everyNth !== 0;
}

function ropesOf(meta: Metadata, family: Family, headDim: number, source: Source): { global: Rope; local: Rope } {
  if (meta.number("rope.dimension_count", headDim) !== headDim) {
    throw new FormatError(`${meta.architecture}.rope.dimension_count: turning part of a head only is not supported`);
  }
  const global = ropeOf(headDim, meta.number("rope.freq_base", 10_000), scalingOf(meta, source));
  if (family.localRopeBase === undefined) return { global, local: global };
  const localBase = meta.number("rope.freq_base_swa", family.localRopeBase);
  return { global, local: ropeOf(headDim, localBase, { type: "none" }) };
}

function scalingOf(meta: Metadata, source: Source): RopeScaling {
  const type = meta.get("rope.scaling.type") ?? (meta.get("rope.scaling.factor") === undefined ? "none" : "linear");
  const old = meta.number("rope.scale_linear", 1);
  const factors = source.tensors.get(ropeFactors);
  if (type === "linear" || (type === "none" && old !== 1)) {
    if (factors) throw new FormatError(`the file has both a linear rope scaling and ${ropeFactors}`);
    return { type: "linear", factor: meta.number("rope.scaling.factor", old) };
  }
  if (type !== "none" && !(type === "llama3" && factors)) {
    throw new FormatError(`rope scaling ${JSON.stringify(type)} is not supported; known: none, linear, ${ropeFactors}`);
  }
  if (!factors) return { type: "none" };
  if (factors.type !== "F32") throw new FormatError(`${ropeFactors} should be F32, it is ${factors.type}`);
  const bytes = source.read(ropeFactors).slice();
  return { type: "divisors", divisors: new Float32Array(bytes.buffer, 0, bytes.length / 4) };
}
