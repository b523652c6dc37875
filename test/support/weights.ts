// Owns: a checkpoint in memory for tests: random tensors of any storage type, and plans' pieces of them.
import { blocks, type StorageType, storageBytes } from "../../src/base/dtype.js";
import { f32ToBf16, f32ToF16 } from "../../src/base/half.js";
import type { WeightSource } from "../../src/device/device.js";
import type { TensorInfo } from "../../src/formats/checkpoint.js";
import type { WeightPiece } from "../../src/plan/plan.js";
import { type Random, seededRandom } from "./random.js";

const poolRandom = seededRandom(2024);
const pool = Float32Array.from({ length: 65_537 }, () => poolRandom.normal());

/** Where a block's f16 scales stand, and what size they should have for values of about 1. */
const scales: Partial<Record<StorageType, readonly (readonly [at: number, size: number])[]>> = {
  Q4_0: [[0, 0.2]],
  Q4_1: [
    [0, 0.2],
    [2, -1.5],
  ],
  Q5_0: [[0, 0.1]],
  Q5_1: [
    [0, 0.1],
    [2, -1.5],
  ],
  Q8_0: [[0, 0.012]],
  Q4_K: [
    [0, 0.006],
    [2, 0.04],
  ],
  Q5_K: [
    [0, 0.003],
    [2, 0.04],
  ],
  Q6_K: [[208, 0.0008]],
};

export class MemoryWeights implements WeightSource {
  readonly tensors = new Map<string, TensorInfo>();
  private readonly bytes = new Map<string, Uint8Array>();

  /** Values of about unit size; `of` a matrix [rows, cols] or a vector [n]. Gives the whole tensor as a piece. */
  random(name: string, type: StorageType, shape: readonly number[], random: Random): WeightPiece {
    const count = shape.reduce((a, b) => a * b, 1);
    const exact = type === "F32" || type === "F16" || type === "BF16";
    const bytes = exact ? narrow(type, normals(count, random)) : randomBlocks(type, count, random);
    return this.put(name, type, shape, bytes);
  }

  floats(name: string, shape: readonly number[], values: ArrayLike<number>): WeightPiece {
    return this.put(name, "F32", shape, narrow("F32", Float32Array.from(values)));
  }

  read(name: string): Uint8Array {
    return this.bytes.get(name)!;
  }

  release(): void {}

  private put(name: string, type: StorageType, shape: readonly number[], bytes: Uint8Array): WeightPiece {
    this.tensors.set(name, { name, type, shape, bytes: bytes.length });
    this.bytes.set(name, bytes);
    return { name, type, shape: [shape[0], shape[1] ?? 1] };
  }
}

/** Drawing them one by one would take longer than the tests: a stretch of a pool, from a random place on. */
function normals(count: number, random: Random): Float32Array {
  const out = new Float32Array(count);
  const start = random.below(pool.length);
  for (let i = 0; i < count; i++) out[i] = pool[(start + i) % pool.length];
  return out;
}

function narrow(type: StorageType, values: Float32Array): Uint8Array {
  if (type === "F32") return new Uint8Array(values.buffer);
  return new Uint8Array(Uint16Array.from(values, type === "F16" ? f32ToF16 : f32ToBf16).buffer);
}

function randomBlocks(type: StorageType, count: number, random: Random): Uint8Array {
  const bytes = random.bytes(storageBytes(type, count));
  for (let start = 0; start < bytes.length; start += blocks[type].bytes) {
    for (const [at, size] of scales[type] ?? []) {
      const bits = f32ToF16(size * (0.5 + random.next()));
      bytes[start + at] = bits & 255;
      bytes[start + at + 1] = bits >> 8;
    }
  }
  return bytes;
}
