// Owns: quantising a model: every tensor of an open checkpoint as the storage type that a quantisation gives it, one after
// another, on all cores, beside the calling thread. Holds one tensor and its quantised bytes at a time.
import { type StorageType, storageBytes } from "../base/dtype.js";
import { FormatError, UserError } from "../base/errors.js";
import { storageCode } from "../device/cpu/code.js";
import { loadNative } from "../device/cpu/native.js";
import type { TensorInfo } from "../formats/checkpoint.js";

export interface QuantizeTensor {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly from: StorageType;
  readonly to: StorageType;
}

const plain: readonly StorageType[] = ["F32", "F16", "BF16"];

/** Values of one call: short enough that an abort is seen soon. */
const valuesAtOnce = 1 << 22;

/** What a tensor becomes. Throws UserError where it is quantised already: that would lose twice. */
export function quantizedInfo(info: TensorInfo, to: StorageType): TensorInfo {
  if (info.type === to) return info;
  if (!plain.includes(info.type)) {
    throw new UserError(
      `${info.name} is ${info.type} already: quantise from a model in F32, F16 or BF16, each rounding loses something`,
      { code: "already_quantized" },
    );
  }
  return {
    ...info,
    type: to,
    bytes: storageBytes(
      to,
      info.shape.reduce((a, b) => a * b, 1),
    ),
  };
}

/** A whole tensor's blocks. Throws FormatError for values that are not finite, UserError where there is no native code. */
export async function quantize(
  { name, bytes, from, to }: QuantizeTensor,
  threads: number,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  if (from === to) return bytes;
  const native = loadNative();
  const values = bytes.length / storageBytes(from, 1);
  const out = new Uint8Array(storageBytes(to, values));
  for (let at = 0; at < values; at += valuesAtOnce) {
    signal?.throwIfAborted();
    const count = Math.min(valuesAtOnce, values - at);
    const source = bytes.subarray(storageBytes(from, at), storageBytes(from, at + count));
    const target = out.subarray(storageBytes(to, at), storageBytes(to, at + count));
    if (!(await native.quantize(storageCode(from), source, count, storageCode(to), target, threads))) {
      throw new FormatError(`tensor ${name} holds values that are not finite numbers: it cannot be quantised`);
    }
  }
  return out;
}
