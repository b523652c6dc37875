// Owns: what a model is, in one shape for every family and both kinds of file: sizes, and what each layer sees. Text's
// affairs (special tokens, templates) are not here. Refuses what it cannot run: see config-hf.ts and config-gguf.ts.
import { FormatError } from "../base/errors.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import type { Activation } from "../plan/ops/elementwise.js";
import { ggufConfig } from "./config-gguf.js";
import { huggingFaceConfig } from "./config-hf.js";
import type { Family } from "./families.js";
import { most, size } from "./limits.js";
import type { Rope } from "./rope.js";

export interface ModelConfig {
  readonly family: Family;
  readonly source: "gguf" | "huggingface";
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** What the checkpoint was trained for, in tokens. */
  readonly contextLength: number;
  readonly normEps: number;
  readonly activation: Activation;
  readonly tiedEmbeddings: boolean;
  readonly biases: {
    readonly q: boolean;
    readonly k: boolean;
    readonly v: boolean;
    readonly o: boolean;
    readonly mlp: boolean;
  };
  readonly embedScale: number;
  /** Of q · k. */
  readonly attentionScale: number;
  readonly logitsScale: number;
  /** Instead of one MLP of intermediateSize, in every layer. */
  readonly experts?: ExpertsConfig;
  readonly layers: readonly LayerConfig[];
}

export interface ExpertsConfig {
  readonly count: number;
  /** Experts that a token goes to. */
  readonly used: number;
  readonly intermediateSize: number;
  /** The weights of a token's experts sum up to 1. */
  readonly normalize: boolean;
}

export interface LayerConfig {
  /** A token sees itself and window − 1 before it; undefined: everything before it. */
  readonly window?: number;
  readonly rope: Rope;
}

export function modelConfig(checkpoint: Checkpoint): ModelConfig {
  const { meta } = checkpoint;
  return checked(meta.kind === "gguf" ? ggufConfig(meta.values, checkpoint) : huggingFaceConfig(meta.files.config));
}

function checked(config: ModelConfig): ModelConfig {
  size("number of layers", config.layers.length, most.layers);
  size("hidden size", config.hiddenSize, most.width);
  size("intermediate size", config.intermediateSize, most.width);
  size("number of attention heads", config.numHeads, most.heads);
  size("number of key/value heads", config.numKvHeads, most.heads);
  size("head dimension", config.headDim, most.headDim);
  size("vocabulary size", config.vocabSize, most.vocab);
  size("context length", config.contextLength, most.context);
  if (config.numHeads % config.numKvHeads !== 0) {
    throw new FormatError(
      `${config.numHeads} attention heads cannot share ${config.numKvHeads} key/value heads evenly`,
    );
  }
  if (config.experts) {
    size("number of experts", config.experts.count, most.experts);
    size("number of experts a token", config.experts.used, config.experts.count);
    size("experts' intermediate size", config.experts.intermediateSize, most.width);
  }
  if (!(config.normEps >= 0 && config.normEps < 1)) throw new FormatError(`the norm's epsilon is ${config.normEps}`);
  if (!(config.attentionScale > 0 && Number.isFinite(config.attentionScale))) {
    throw new FormatError(`the attention scale must be positive, it is ${config.attentionScale}`);
  }
  for (const { window } of config.layers) if (window !== undefined) size("attention window", window, most.context);
  return config;
}
