// Owns: what the number formats of the KV cache do to a number, for devices that compute in f32.
import { roundToBf16, roundToF16 } from "../base/half.js";
import type { KvDType } from "./device.js";

/** Rounds rows of `width` numbers, one a head, in place. */
export function roundKv(dtype: KvDType, rows: Float32Array, width: number): void {
  if (dtype === "f32") return;
  if (dtype === "q8") {
    for (let at = 0; at < rows.length; at += width) roundToQ8(rows.subarray(at, at + width));
    return;
  }
  const round = dtype === "f16" ? roundToF16 : roundToBf16;
  for (let i = 0; i < rows.length; i++) rows[i] = round(rows[i]);
}

/** To whole multiples of a 127th of the largest magnitude, halves to the even one. A row with a number that is not finite
 *  is not a number anywhere. */
function roundToQ8(row: Float32Array): void {
  const most = row.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  if (most === 0) return;
  if (!Number.isFinite(most)) {
    row.fill(Number.NaN);
    return;
  }
  const { fround } = Math;
  const scale = fround(most / 127);
  for (let i = 0; i < row.length; i++) row[i] = roundEven(fround(fround(row[i] / most) * 127)) * scale;
}

function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}
