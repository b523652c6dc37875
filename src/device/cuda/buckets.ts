// Owns: the shapes for which launches are kept: a batch is run as the smallest that holds it.
import type { Batch } from "../batch.js";
import type { Limits } from "../device.js";
import type { Bucket } from "./launch.js";

/** One token a sequence: every number up to 8, then steps of at most a third. */
const decodeSizes = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128];

export function bucketOf(batch: Batch, limits: Limits): Bucket {
  const [tokens, sequences, rows] = [batch.tokens.length, batch.slots.length, batch.rows.length];
  if (tokens === sequences && rows === sequences && tokens > 0 && everyOne(batch)) {
    const size = Math.min(decodeSizes.find((n) => n >= tokens) ?? Math.ceil(tokens / 32) * 32, limits.maxSequences);
    if (size <= limits.maxTokens && size <= limits.maxRows) {
      return { tokens: size, rows: size, sequences: size, decode: true };
    }
  }
  return {
    tokens: Math.min(roundUp(tokens), limits.maxTokens),
    rows: Math.min(powerOfTwo(rows), limits.maxRows),
    sequences: Math.min(powerOfTwo(sequences), limits.maxSequences),
    decode: false,
  };
}

function everyOne({ tokenStart }: Batch): boolean {
  return tokenStart.every((start, s) => start === s);
}

function roundUp(tokens: number): number {
  const step = tokens <= 128 ? 16 : tokens <= 1024 ? 64 : 256;
  return Math.ceil(tokens / step) * step;
}

function powerOfTwo(n: number): number {
  return n === 0 ? 0 : 2 ** Math.ceil(Math.log2(n));
}
