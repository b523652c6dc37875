// Owns: models of random weights: a config.json and a quantisation → a checkpoint as if read from a GGUF file, its bytes
// made when they are asked for. The same seed gives the same bytes. Weights have about the size that trained ones have,
// so that numbers stay finite; nothing that such a model says means anything.
import { blocks, type StorageType, storageBytes } from "../base/dtype.js";
import { FormatError } from "../base/errors.js";
import { f32ToBf16, f32ToF16 } from "../base/half.js";
import type { Checkpoint, CheckpointMeta, MetaValue, TensorInfo } from "../formats/checkpoint.js";
import { fileType, type Quantisation, storageFor } from "../formats/quant/recipe.js";
import { modelConfig } from "./config.js";
import { ropeFactors } from "./config-gguf.js";
import { ggufModel } from "./config-to-gguf.js";
import { decoderPlan } from "./decoder.js";
import type { TensorLookup } from "./weights.js";

export interface RandomModel {
  /** What config.json says. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly quantisation: Quantisation;
  readonly seed: number;
  readonly name: string;
}

/** Throws FormatError for a config that cannot be run. */
export function randomCheckpoint({ config, quantisation, seed, name }: RandomModel): Checkpoint {
  const meta: CheckpointMeta = { kind: "huggingface", files: { config } };
  const wanted = { ...modelConfig({ meta } as Checkpoint), source: "gguf" as const };
  const { values, ropeDivisors } = ggufModel(wanted, name, fileType(quantisation));
  const tensors = new Map<string, TensorInfo>();
  const invent: TensorLookup = {
    keys: () => [],
    get: (tensor, shape) => {
      const model = { layers: wanted.layers.length, tied: wanted.tiedEmbeddings };
      const type = storageFor(quantisation, tensor, shape, model);
      const bytes = storageBytes(
        type,
        shape.reduce((a, b) => a * b, 1),
      );
      const info = { name: tensor, type, shape, bytes };
      tensors.set(tensor, info);
      return info;
    },
  };
  decoderPlan(wanted, invent);
  if (ropeDivisors) {
    const { length, byteLength: bytes } = ropeDivisors;
    tensors.set(ropeFactors, { name: ropeFactors, type: "F32", shape: [length], bytes });
  }
  const pools = new Map<string, Uint8Array>();
  const read = (tensor: string) => {
    const info = tensors.get(tensor);
    if (!info) throw new FormatError(`the random model has no tensor ${tensor}`);
    if (tensor === ropeFactors) return new Uint8Array(ropeDivisors!.buffer);
    const key = info.shape.length < 2 ? (tensor.endsWith("bias") ? "bias" : "norm") : info.type;
    let pool = pools.get(key);
    if (!pool) pools.set(key, (pool = randomBlocks(key as PoolKind, seed)));
    return drawn(pool, info, seed);
  };
  const plain = new Map<string, MetaValue>([...values].map(([key, { value }]) => [key, value as MetaValue]));
  return {
    meta: { kind: "gguf", values: plain, stored: values },
    tensors,
    read,
    release: () => {},
    close: () => {},
    fileBytes: [...tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0),
    label: name,
  };
}

/** Bytes of one tensor of trained matrices' size, by itself. */
export function randomTensor(type: StorageType, shape: readonly number[], seed: number): Uint8Array {
  const bytes = storageBytes(
    type,
    shape.reduce((a, b) => a * b, 1),
  );
  return drawn(randomBlocks(type, seed), { name: "", type, shape, bytes }, seed);
}

type PoolKind = StorageType | "norm" | "bias";

/** Of a trained matrix's values, about. */
const deviation = 0.02;

/** Where a block's f16 scales stand, and their values; signs are drawn, a block's all alike. The codes between are uniform. */
const scales: Partial<Record<StorageType, readonly (readonly [at: number, value: number])[]>> = {
  Q4_0: [[0, deviation / 4.6]],
  Q4_1: [
    [0, deviation / 4.6],
    [2, (-7.5 * deviation) / 4.6],
  ],
  Q5_0: [[0, deviation / 9.2]],
  Q5_1: [
    [0, deviation / 9.2],
    [2, (-15.5 * deviation) / 9.2],
  ],
  Q8_0: [[0, deviation / 74]],
  // scales and mins of 32 are uniform in 0 to 63
  Q4_K: [
    [0, deviation / 240],
    [2, (7.5 * deviation) / 240],
  ],
  Q5_K: [
    [0, deviation / 480],
    [2, (15.5 * deviation) / 480],
  ],
  // scales of 16 are uniform in −128 to 127
  Q6_K: [[208, deviation / 1370]],
};

/** Blocks in a pool: a prime, so that rows do not repeat each other. */
const poolBlocks = 8191;

function randomBlocks(kind: PoolKind, seed: number): Uint8Array {
  const random = generator(seed ^ 0x5bd1e995);
  if (kind === "norm" || kind === "bias") {
    const middle = kind === "norm" ? 1 : 0;
    return new Uint8Array(Float32Array.from({ length: poolBlocks }, () => middle + 0.1 * (random() - 0.5)).buffer);
  }
  const { values, bytes } = blocks[kind];
  if (values === 1) {
    const normal = () => deviation * Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    const numbers = Float32Array.from({ length: 32 * poolBlocks }, normal);
    if (kind === "F32") return new Uint8Array(numbers.buffer);
    return new Uint8Array(Uint16Array.from(numbers, kind === "F16" ? f32ToF16 : f32ToBf16).buffer);
  }
  const pool = Uint8Array.from({ length: poolBlocks * bytes }, () => 256 * random());
  const view = new DataView(pool.buffer);
  for (let block = 0; block < pool.length; block += bytes) {
    const factor = (random() < 0.5 ? -1 : 1) * (0.75 + random() / 2);
    for (const [at, value] of scales[kind]!) view.setUint16(block + at, f32ToF16(value * factor), true);
  }
  return pool;
}

/** The tensor's bytes: the pool from a place that its name gives, over and over. */
function drawn(pool: Uint8Array, { name, type, bytes }: TensorInfo, seed: number): Uint8Array {
  const unit = blocks[type].bytes;
  let hash = seed >>> 0;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193) >>> 0;
  const out = new Uint8Array(bytes);
  let from = (hash % (pool.length / unit)) * unit;
  for (let at = 0; at < bytes; ) {
    const count = Math.min(pool.length - from, bytes - at);
    out.set(pool.subarray(from, from + count), at);
    at += count;
    from = 0;
  }
  return out;
}

/** Uniform in [0, 1): mulberry32. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
