// Owns: what the bytes of every StorageType mean, in plain loops: the reference that the devices' unpackers are tested
// against, bit for bit. Arithmetic is f32 in the order of ggml's own dequantizers: each product and each difference is
// rounded once. A scale of NaN or infinity gives what IEEE 754 says (infinity × 0 is NaN) and touches its block alone.
// Source: ggml-common.h (the blocks), ggml-quants.c (dequantize_row_*).
import { blocks, type StorageType } from "../../base/dtype.js";
import { InternalError } from "../../base/errors.js";
import { f16Values, widenBf16, widenF16 } from "../../base/half.js";

/**
 * Widens out.length values. bytes: consecutive whole blocks, at any alignment, exactly as many as the values take;
 * a matrix of [rows, cols] is just its rows one after the other.
 */
export function dequantize(type: StorageType, bytes: Uint8Array, out: Float32Array): void {
  const block = blocks[type];
  const count = out.length / block.values;
  if (!Number.isInteger(count) || bytes.length !== count * block.bytes) {
    throw new InternalError(`${bytes.length} bytes of ${type} are not ${out.length} values`);
  }
  dequantizers[type](bytes, out, count, f16Values());
}

/** half: all f16 values by their bits. */
type Dequantizer = (b: Uint8Array, out: Float32Array, count: number, half: Float32Array) => void;

const { fround } = Math;

const dequantizers: Readonly<Record<StorageType, Dequantizer>> = {
  F32: (b, out) => {
    // Through the bytes: the source may lie at any address, and NaNs keep their payload.
    new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(b);
  },
  F16: (b, out) => widenF16(b, out),
  BF16: (b, out) => widenBf16(b, out),

  // | d f16 | 16 × two codes: low nibbles are values 0–15, high ones 16–31 |   x = d (q − 8)
  Q4_0: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 18, to += 32) {
      const d = half[b[at] | (b[at + 1] << 8)];
      for (let j = 0; j < 16; j++) {
        const q = b[at + 2 + j];
        out[to + j] = d * ((q & 15) - 8);
        out[to + j + 16] = d * ((q >> 4) - 8);
      }
    }
  },

  // | d f16 | m f16 | 16 × two codes |   x = d q + m
  Q4_1: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 20, to += 32) {
      const d = half[b[at] | (b[at + 1] << 8)];
      const m = half[b[at + 2] | (b[at + 3] << 8)];
      for (let j = 0; j < 16; j++) {
        const q = b[at + 4 + j];
        out[to + j] = fround(d * (q & 15)) + m;
        out[to + j + 16] = fround(d * (q >> 4)) + m;
      }
    }
  },

  // | d f16 | 32 fifth bits | 16 × two codes |   x = d (q − 16)
  Q5_0: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 22, to += 32) {
      const d = half[b[at] | (b[at + 1] << 8)];
      const high = b[at + 2] | (b[at + 3] << 8) | (b[at + 4] << 16) | (b[at + 5] << 24);
      for (let j = 0; j < 16; j++) {
        const q = b[at + 6 + j];
        out[to + j] = d * (((q & 15) | (((high >>> j) & 1) << 4)) - 16);
        out[to + j + 16] = d * (((q >> 4) | (((high >>> (j + 16)) & 1) << 4)) - 16);
      }
    }
  },

  // | d f16 | m f16 | 32 fifth bits | 16 × two codes |   x = d q + m
  Q5_1: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 24, to += 32) {
      const d = half[b[at] | (b[at + 1] << 8)];
      const m = half[b[at + 2] | (b[at + 3] << 8)];
      const high = b[at + 4] | (b[at + 5] << 8) | (b[at + 6] << 16) | (b[at + 7] << 24);
      for (let j = 0; j < 16; j++) {
        const q = b[at + 8 + j];
        out[to + j] = fround(d * ((q & 15) | (((high >>> j) & 1) << 4))) + m;
        out[to + j + 16] = fround(d * ((q >> 4) | (((high >>> (j + 16)) & 1) << 4))) + m;
      }
    }
  },

  // | d f16 | 32 × i8 |   x = d q
  Q8_0: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 34, to += 32) {
      const d = half[b[at] | (b[at + 1] << 8)];
      for (let j = 0; j < 32; j++) out[to + j] = d * ((b[at + 2 + j] << 24) >> 24);
    }
  },

  // | d f16 | dmin f16 | 12 bytes: 8 × (scale, min) of 6 bits | 128 × two codes |   x = (d scale) q − (dmin min)
  // Codes in runs of 32 bytes: run i holds sub-block 2i in its low nibbles and 2i + 1 in its high ones.
  Q4_K: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 144, to += 256) {
      const d = half[b[at] | (b[at + 1] << 8)];
      const dmin = half[b[at + 2] | (b[at + 3] << 8)];
      for (let s = 0; s < 8; s++) {
        const scale = fround(d * kScale(b, at + 4, s));
        const min = fround(dmin * kMin(b, at + 4, s));
        const codes = at + 16 + 32 * (s >> 1);
        const shift = 4 * (s & 1);
        for (let j = 0; j < 32; j++) out[to + 32 * s + j] = fround(scale * ((b[codes + j] >> shift) & 15)) - min;
      }
    }
  },

  // As Q4_K, with the fifth bits between scales and codes: byte j's bit s belongs to value j of sub-block s.
  Q5_K: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 176, to += 256) {
      const d = half[b[at] | (b[at + 1] << 8)];
      const dmin = half[b[at + 2] | (b[at + 3] << 8)];
      for (let s = 0; s < 8; s++) {
        const scale = fround(d * kScale(b, at + 4, s));
        const min = fround(dmin * kMin(b, at + 4, s));
        const codes = at + 48 + 32 * (s >> 1);
        const shift = 4 * (s & 1);
        for (let j = 0; j < 32; j++) {
          const q = ((b[codes + j] >> shift) & 15) | (((b[at + 16 + j] >> s) & 1) << 4);
          out[to + 32 * s + j] = fround(scale * q) - min;
        }
      }
    }
  },

  // | 128 × low nibbles | 64 × 2 high bits | 16 × i8 scales | d f16 |   x = (d scale) (q − 32), a scale for 16 values
  // Each half of 128 values takes 64 bytes of low nibbles and 32 of high bits:
  //   values 0–31: bytes 0–31 low, bits 0–1;   32–63: bytes 32–63 low, bits 2–3;
  //          64–95: bytes 0–31 high, bits 4–5;  96–127: bytes 32–63 high, bits 6–7
  Q6_K: (b, out, count, half) => {
    for (let n = 0, at = 0, to = 0; n < count; n++, at += 210, to += 256) {
      const d = half[b[at + 208] | (b[at + 209] << 8)];
      for (let s = 0; s < 16; s++) {
        const scale = fround(d * ((b[at + 192 + s] << 24) >> 24));
        const inHalf = s & 7;
        const low = at + 64 * (s >> 3) + 16 * (inHalf & 3);
        const high = at + 128 + 32 * (s >> 3) + 16 * (s & 1);
        const lowShift = inHalf < 4 ? 0 : 4;
        const highShift = 2 * (inHalf >> 1);
        for (let j = 0; j < 16; j++) {
          const q = ((b[low + j] >> lowShift) & 15) | (((b[high + j] >> highShift) & 3) << 4);
          out[to + 16 * s + j] = scale * (q - 32);
        }
      }
    }
  },
};

// Eight 6-bit scales and eight mins in 12 bytes: sub-blocks 0–3 in the low 6 bits of bytes 0–3 (scales) and 4–7 (mins);
// of sub-blocks 4–7 the low nibbles in bytes 8–11 (scale low, min high), and their top 2 bits above those 6.
function kScale(b: Uint8Array, at: number, s: number): number {
  return s < 4 ? b[at + s] & 63 : (b[at + s + 4] & 15) | ((b[at + s - 4] >> 6) << 4);
}

function kMin(b: Uint8Array, at: number, s: number): number {
  return s < 4 ? b[at + s + 4] & 63 : (b[at + s + 4] >> 4) | ((b[at + s] >> 6) << 4);
}
