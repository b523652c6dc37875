// Owns: any checkpoint as a GGUF file has it: the same tensors under GGUF's names, in its order of rows. A checkpoint that
// is GGUF already stays as it is. Knows no tokenizer: text/to-gguf.ts does.
import { type StorageType, storageBytes } from "../base/dtype.js";
import { FormatError } from "../base/errors.js";
import { bf16ToF32, f16ToF32 } from "../base/half.js";
import type { Checkpoint, TensorInfo } from "../formats/checkpoint.js";
import type { Tensor, WeightPiece } from "../plan/plan.js";
import { type ModelConfig, modelConfig } from "./config.js";
import { ropeFactors } from "./config-gguf.js";
import { ggufModel } from "./config-to-gguf.js";
import { decoderPlan } from "./decoder.js";

export interface GgufTensorSource {
  /** GGUF's name, the source's type. */
  readonly info: TensorInfo;
  /** Valid until the next read. */
  read(): Uint8Array;
  /** The source's pages may go. */
  release(): void;
}

export interface GgufSource {
  readonly config: ModelConfig;
  readonly tensors: readonly GgufTensorSource[];
}

/** Throws FormatError for a model that is not known. */
export function ggufSource(checkpoint: Checkpoint): GgufSource {
  const config = modelConfig(checkpoint);
  if (checkpoint.meta.kind === "gguf") {
    decoderPlan(config, checkpoint.tensors); // every tensor is known and has its shape
    return { config, tensors: [...checkpoint.tensors.values()].map((info) => whole(checkpoint, info)) };
  }
  const own = weightsOf(decoderPlan(config, checkpoint.tensors).tensors);
  const renamed: { name: string; shape: readonly number[] }[] = [];
  decoderPlan(
    { ...config, source: "gguf" },
    {
      keys: () => [],
      get: (name, shape) => {
        renamed.push({ name, shape });
        return { name, shape, type: "F32", bytes: 0 };
      },
    },
  );
  // The same builder walked the same layers: weights come in the same order.
  const tensors = renamed.map(({ name, shape }, i) => assembled(checkpoint, config, own[i].from!, name, shape));
  const { ropeDivisors } = ggufModel(config, "", 0);
  if (ropeDivisors) {
    const { length, byteLength: bytes } = ropeDivisors;
    const info: TensorInfo = { name: ropeFactors, type: "F32", shape: [length], bytes };
    tensors.push({ info, read: () => new Uint8Array(ropeDivisors.buffer), release: () => {} });
  }
  return { config, tensors };
}

const weightsOf = (tensors: readonly Tensor[]) => tensors.filter(({ role }) => role === "weight");

function whole(checkpoint: Checkpoint, info: TensorInfo): GgufTensorSource {
  const { name } = info;
  return { info, read: () => checkpoint.read(name), release: () => checkpoint.release(name) };
}

/** Pieces one after another, with what GGUF does to them. */
function assembled(
  checkpoint: Checkpoint,
  config: ModelConfig,
  pieces: readonly WeightPiece[],
  name: string,
  shape: readonly number[],
): GgufTensorSource {
  const { type: stored } = pieces[0];
  if (pieces.some(({ type }) => type !== stored)) throw new FormatError(`${name}: its parts are of different types`);
  const plusOne = pieces[0].transform?.kind === "addOne";
  const type: StorageType = plusOne ? "F32" : stored;
  const bytes = storageBytes(
    type,
    shape.reduce((a, b) => a * b, 1),
  );
  const heads = permutedHeads(config, name);
  const read = () => {
    const parts = pieces.map((piece) => checkpoint.read(piece.name));
    const joined = parts.length === 1 ? parts[0] : concatenate(parts);
    if (plusOne) return addOne(joined, stored);
    return heads === 0 ? joined : permute(joined, heads, shape[0]);
  };
  const release = () => {
    for (const piece of pieces) checkpoint.release(piece.name);
  };
  return { info: { name, type, shape, bytes }, read, release };
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** How many heads' rows GGUF stores in the order of an interleaved rope; 0: it does not. */
function permutedHeads({ family, numHeads, numKvHeads }: ModelConfig, name: string): number {
  if (!family.permutedInGguf) return 0;
  if (/\.attn_q\.(weight|bias)$/.test(name)) return numHeads;
  return /\.attn_k\.(weight|bias)$/.test(name) ? numKvHeads : 0;
}

/** Of each head, row i of the first half comes before row i of the second: 0, h/2, 1, h/2 + 1, … */
function permute(bytes: Uint8Array, heads: number, rows: number): Uint8Array {
  const rowBytes = bytes.length / rows;
  const headDim = rows / heads;
  const out = new Uint8Array(bytes.length);
  for (let row = 0; row < rows; row++) {
    const within = row % headDim;
    const from = row - within + (within % 2) * (headDim / 2) + Math.floor(within / 2);
    out.set(bytes.subarray(from * rowBytes, (from + 1) * rowBytes), row * rowBytes);
  }
  return out;
}

function addOne(bytes: Uint8Array, type: StorageType): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const width = storageBytes(type, 1);
  const value = (i: number) => {
    if (type === "F32") return view.getFloat32(4 * i, true);
    const bits = view.getUint16(2 * i, true);
    return type === "F16" ? f16ToF32(bits) : bf16ToF32(bits);
  };
  return new Uint8Array(Float32Array.from({ length: bytes.length / width }, (_, i) => value(i) + 1).buffer);
}
