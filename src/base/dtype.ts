// Owns: the names and sizes of number formats. DType is how activations, caches and inputs lie in memory; StorageType is
// how a checkpoint's bytes lie on disk (ggml's names, and safetensors' where they coincide).

export type DType = "f32" | "f16" | "bf16" | "i32" | "u8";

export const dtypeBytes: Record<DType, number> = { f32: 4, f16: 2, bf16: 2, i32: 4, u8: 1 };

export type StorageType =
  | "F32"
  | "F16"
  | "BF16"
  | "Q4_0"
  | "Q4_1"
  | "Q5_0"
  | "Q5_1"
  | "Q8_0"
  | "Q4_K"
  | "Q5_K"
  | "Q6_K";

/** A row of k values takes k / block.values × block.bytes bytes. Source: ggml-common.h's block structs. */
export const blocks: Record<StorageType, { values: number; bytes: number }> = {
  F32: { values: 1, bytes: 4 },
  F16: { values: 1, bytes: 2 },
  BF16: { values: 1, bytes: 2 },
  Q4_0: { values: 32, bytes: 18 },
  Q4_1: { values: 32, bytes: 20 },
  Q5_0: { values: 32, bytes: 22 },
  Q5_1: { values: 32, bytes: 24 },
  Q8_0: { values: 32, bytes: 34 },
  Q4_K: { values: 256, bytes: 144 },
  Q5_K: { values: 256, bytes: 176 },
  Q6_K: { values: 256, bytes: 210 },
};

export const storageTypes = Object.keys(blocks) as StorageType[];

/** Bytes of `values` consecutive values of one row; values must be a whole number of blocks. */
export function storageBytes(type: StorageType, values: number): number {
  const block = blocks[type];
  return (values / block.values) * block.bytes;
}
