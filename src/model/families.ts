// Owns: the table of differences: a family of models is a row. Everything that the rows share is in decoder.ts and the
// config readers; what no row says is refused there.
import type { Activation } from "../plan/ops/elementwise.js";

export interface Family {
  readonly name: string;
  /** config.json's model_type. */
  readonly modelTypes: readonly string[];
  /** GGUF's general.architecture. */
  readonly architectures: readonly string[];
  /** Whether output and embedding weights are one where config.json does not say. */
  readonly tied: boolean;
  /** Where the file does not say (GGUF never does). */
  readonly activation: Activation;
  /** Head dimension where config.json does not say; undefined: hidden size / heads. */
  readonly headDim?: number;
  /** Which linears carry biases in a Hugging Face folder; "config": as attention_bias, mlp_bias say. (In GGUF: those that
   *  are there.) */
  readonly attentionBias: "none" | "qkv" | "config";
  readonly mlpBias: "none" | "config";
  /** q and k are normed head by head before they are turned. */
  readonly qkNorm: boolean;
  /** Norms after attention and after the MLP, besides those before them. */
  readonly postNorms: boolean;
  /** Norm weights are stored as w − 1 in safetensors. */
  readonly normsMinusOne: boolean;
  /** The GGUF converter reorders rows of q and k for an interleaved rope; we put them back (exact, and the plan is then
   *  the same for both formats). */
  readonly permutedInGguf: boolean;
  /** Every layer's MLP is a mixture of experts; normalize: where the file does not say (GGUF never does). */
  readonly experts?: { readonly normalize: boolean };
  readonly embedScale: (hiddenSize: number) => number;
  /** Which layers see a window only, where the file gives a window. */
  readonly windows: WindowRule;
  /** What a window in a GGUF file means, where that differs. */
  readonly windowsInGguf?: WindowRule;
  /** Rope base where config.json does not say; undefined: 10,000. */
  readonly ropeBase?: number;
  /** Queries are divided by its root where config.json does not say; undefined: the head dimension. */
  readonly queryPreAttnScalar?: number;
  /** Rope base of window layers, where it differs from the others' and the file does not say. */
  readonly localRopeBase?: number;
}

/** every: all layers. from: layers from max_window_layers on, if use_sliding_window. pattern: each n-th layer sees all.
 *  none: a window in the file is refused. */
export type WindowRule =
  | { readonly kind: "none" | "every" | "from" }
  | { readonly kind: "pattern"; readonly pattern: number };

const llama: Family = {
  name: "llama",
  modelTypes: ["llama"],
  architectures: ["llama"],
  tied: false,
  activation: "silu",
  attentionBias: "config",
  mlpBias: "config",
  qkNorm: false,
  postNorms: false,
  normsMinusOne: false,
  permutedInGguf: true,
  embedScale: () => 1,
  windows: { kind: "none" },
  // mistral's files call themselves llama
  windowsInGguf: { kind: "every" },
};

const qwen3: Family = {
  ...llama,
  name: "qwen3",
  modelTypes: ["qwen3"],
  architectures: ["qwen3"],
  headDim: 128,
  mlpBias: "none",
  qkNorm: true,
  permutedInGguf: false,
  windows: { kind: "from" },
  windowsInGguf: { kind: "none" },
};

export const families: readonly Family[] = [
  llama,
  {
    ...llama,
    name: "mistral",
    modelTypes: ["mistral"],
    architectures: [],
    attentionBias: "none",
    mlpBias: "none",
    windows: { kind: "every" },
  },
  {
    ...llama,
    name: "qwen2",
    modelTypes: ["qwen2"],
    architectures: ["qwen2"],
    attentionBias: "qkv",
    mlpBias: "none",
    permutedInGguf: false,
    windows: { kind: "from" },
    windowsInGguf: { kind: "none" },
  },
  qwen3,
  {
    ...qwen3,
    name: "qwen3moe",
    modelTypes: ["qwen3_moe"],
    architectures: ["qwen3moe"],
    experts: { normalize: true },
  },
  {
    ...llama,
    name: "gemma3",
    modelTypes: ["gemma3_text"],
    architectures: ["gemma3"],
    tied: true,
    activation: "geluTanh",
    headDim: 256,
    mlpBias: "none",
    qkNorm: true,
    postNorms: true,
    normsMinusOne: true,
    permutedInGguf: false,
    embedScale: Math.sqrt,
    windows: { kind: "pattern", pattern: 6 },
    windowsInGguf: undefined,
    ropeBase: 1_000_000,
    queryPreAttnScalar: 256,
    localRopeBase: 10_000,
  },
];

export const knownModelTypes = [...new Set(families.flatMap((family) => family.modelTypes))];
export const knownArchitectures = [...new Set(families.flatMap((family) => family.architectures))];
