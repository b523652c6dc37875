// Owns: the two 16-bit float formats. Widening is exact; narrowing rounds to nearest, ties to even, and keeps NaN a NaN.

const word = new Uint32Array(1);
const single = new Float32Array(word.buffer);

/** IEEE 754 binary16 bits → the number. */
export function f16ToF32(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function f32ToF16(value: number): number {
  single[0] = value;
  const bits = word[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // from 65520 on: infinity
  if (magnitude >= 0x38800000) {
    // normal: drop 13 bits of the fraction; a carry runs into the exponent as it should
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  // subnormal: a whole number of 2^-24; |value| < 2^-14, so the scaling is exact
  const scaled = Math.abs(single[0]) * 2 ** 24;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  return sign | (rest > 0.5 || (rest === 0.5 && floor & 1) ? floor + 1 : floor);
}

/** bfloat16 bits → the number. */
export function bf16ToF32(bits: number): number {
  word[0] = (bits << 16) >>> 0;
  return single[0];
}

export function f32ToBf16(value: number): number {
  single[0] = value;
  const bits = word[0];
  if ((bits & 0x7fffffff) > 0x7f800000) return ((bits >>> 16) | 0x40) & 0xffff;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export const roundToF16 = (value: number): number => f16ToF32(f32ToF16(value));
export const roundToBf16 = (value: number): number => bf16ToF32(f32ToBf16(value));

let f16Table: Float32Array | undefined;

/** All 65536 values by their bits: for long runs of f16. */
export function f16Values(): Float32Array {
  if (f16Table === undefined) {
    f16Table = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) f16Table[bits] = f16ToF32(bits);
  }
  return f16Table;
}

/** bytes: little-endian f16, at any alignment. */
export function widenF16(bytes: Uint8Array, out: Float32Array): void {
  const table = f16Values();
  for (let i = 0, at = 0; i < out.length; i++, at += 2) out[i] = table[bytes[at] | (bytes[at + 1] << 8)];
}

/** bytes: little-endian bf16, at any alignment. */
export function widenBf16(bytes: Uint8Array, out: Float32Array): void {
  const words = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0, at = 0; i < out.length; i++, at += 2) words[i] = (bytes[at] << 16) | (bytes[at + 1] << 24);
}
