// Owns: small GGUFs of any shape: heads that do not divide the hidden size, odd vocabularies, biases, norms of q and k,
// rope scalings, a type for each kind of matrix. Token ids only: they have no tokenizer.
import type { StorageType } from "../../src/base/dtype.js";
import { type MetaInput, randomWeights, type TensorInput, writeGguf } from "../support/gguf-writer.js";
import { seededRandom } from "../support/random.js";

export interface OddModel {
  readonly type: StorageType;
  readonly architecture?: "llama" | "qwen2" | "qwen3";
  readonly valueType?: StorageType;
  readonly downType?: StorageType;
  readonly embeddingType?: StorageType;
  readonly layers?: number;
  readonly hidden?: number;
  readonly feedForward?: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabSize?: number;
  readonly tied?: boolean;
  readonly qkvBias?: boolean;
  readonly qkNorm?: boolean;
  readonly ropeBase?: number;
  readonly ropeLinear?: number;
  readonly ropeFactors?: boolean;
}

export function writeOddGguf(path: string, o: OddModel): void {
  writeGguf(path, { meta: oddMetadata(o), tensors: oddTensors(o) });
}

export function oddTensors(o: OddModel): TensorInput[] {
  const { type, layers = 2, hidden = 256, feedForward = 512, heads, kvHeads, headDim, vocabSize = 301 } = o;
  const random = seededRandom(heads * 1000 + headDim);
  const tensors: TensorInput[] = [];
  const matrix = (name: string, rows: number, cols: number, as = type, rms = 1 / Math.sqrt(cols)) =>
    tensors.push({ name, type: as, shape: [rows, cols], data: randomWeights(as, rows * cols, random, rms) });
  const vector = (name: string, size: number, centre: number, spread: number) => {
    const values = Float32Array.from({ length: size }, () => centre + spread * random.normal());
    tensors.push({ name, type: "F32", shape: [size], data: new Uint8Array(values.buffer) });
  };
  matrix("token_embd.weight", vocabSize, hidden, o.embeddingType, 1);
  for (let layer = 0; layer < layers; layer++) {
    const at = `blk.${layer}`;
    vector(`${at}.attn_norm.weight`, hidden, 1, 0.1);
    for (const [which, count, as] of [
      ["q", heads, type],
      ["k", kvHeads, type],
      ["v", kvHeads, o.valueType],
    ] as const) {
      matrix(`${at}.attn_${which}.weight`, count * headDim, hidden, as);
      if (o.qkvBias) vector(`${at}.attn_${which}.bias`, count * headDim, 0, 0.3);
      if (o.qkNorm && which !== "v") vector(`${at}.attn_${which}_norm.weight`, headDim, 1, 0.1);
    }
    matrix(`${at}.attn_output.weight`, hidden, heads * headDim);
    vector(`${at}.ffn_norm.weight`, hidden, 1, 0.1);
    matrix(`${at}.ffn_gate.weight`, feedForward, hidden);
    matrix(`${at}.ffn_up.weight`, feedForward, hidden);
    matrix(`${at}.ffn_down.weight`, hidden, feedForward, o.downType);
  }
  vector("output_norm.weight", hidden, 1, 0.1);
  if (!o.tied) matrix("output.weight", vocabSize, hidden, type, 4 / Math.sqrt(hidden));
  if (o.ropeFactors) vector("rope_freqs.weight", headDim / 2, 4, 0.5);
  return tensors;
}

export function oddMetadata(o: OddModel): Record<string, MetaInput> {
  const { architecture = "llama", layers = 2, hidden = 256, feedForward = 512, heads, kvHeads, headDim } = o;
  const own: Record<string, MetaInput> = {
    context_length: 512,
    embedding_length: hidden,
    block_count: layers,
    feed_forward_length: feedForward,
    "attention.head_count": heads,
    "attention.head_count_kv": kvHeads,
    "attention.key_length": headDim,
    "attention.value_length": headDim,
    "attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-6 },
    "rope.dimension_count": headDim,
    "rope.freq_base": { type: "f32", value: o.ropeBase ?? 10_000 },
    ...(o.ropeLinear && {
      "rope.scaling.type": "linear",
      "rope.scaling.factor": { type: "f32", value: o.ropeLinear } as const,
    }),
  };
  const pairs = Object.entries(own).map(([key, value]) => [`${architecture}.${key}`, value] as const);
  return { "general.architecture": architecture, ...Object.fromEntries(pairs) };
}
