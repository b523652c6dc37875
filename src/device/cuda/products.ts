// Owns: what the launches of all products share: how packed weights lie (linear_layout.cuh), a launch's part of a product, and the
// parameters that every product's kernel has.
import type { StorageType } from "../../base/dtype.js";
import {
  type Area,
  type Arg,
  type FoldedNorm,
  type LowerContext,
  type Matrix,
  type Place,
  storageCodes,
} from "./launch.js";

/** A unit: 16 rows × k values. */
export const units: Readonly<Record<StorageType, { k: number; bytes: number }>> = {
  F32: { k: 32, bytes: 2048 },
  F16: { k: 64, bytes: 2048 },
  BF16: { k: 64, bytes: 2048 },
  Q4_0: { k: 64, bytes: 576 },
  Q4_1: { k: 64, bytes: 640 },
  Q5_0: { k: 64, bytes: 704 },
  Q5_1: { k: 64, bytes: 768 },
  Q8_0: { k: 64, bytes: 1088 },
  Q4_K: { k: 256, bytes: 2304 },
  Q5_K: { k: 256, bytes: 2816 },
  Q6_K: { k: 256, bytes: 3360 },
};
export const tileRows = 16;
/** A launch takes so many pieces of a weight. */
export const maxSegments = 4;

export const ptr = (address: bigint): Arg => ({ ptr: address });
export const i32 = (value: number): Arg => ({ i32: value });
export const tilesOf = (rows: number): number => Math.ceil(rows / tileRows);
export const tileCount = (segments: readonly Matrix[]): number =>
  segments.reduce((sum, { rows }) => sum + tilesOf(rows), 0);
export const unitsOf = (type: StorageType, cols: number): number => Math.ceil(cols / units[type].k);
const elementBytes = (place: Place): number => (place.dtype === "f32" ? 4 : 2);
export const packedBytes = (type: StorageType, rows: number, cols: number): number =>
  Math.ceil((tilesOf(rows) * unitsOf(type, cols) * units[type].bytes) / 256) * 256;

/** One launch's part of a product: up to four segments, and where their columns lie. */
export interface Part {
  readonly segments: readonly Matrix[];
  readonly column: number;
  readonly rows: number;
}

export function parts(segments: readonly Matrix[]): Part[] {
  const out: Part[] = [];
  let column = 0;
  for (let i = 0; i < segments.length; i += maxSegments) {
    const some = segments.slice(i, i + maxSegments);
    const rows = some.reduce((sum, { rows }) => sum + rows, 0);
    out.push({ segments: some, column, rows });
    column += rows;
  }
  return out;
}

export const segmentArgs = (segments: readonly Matrix[]): Arg[] =>
  Array.from({ length: maxSegments }, (_, i) => segments[i]).flatMap((s) =>
    s ? [ptr(s.address), i32(storageCodes[s.type]), i32(s.rows)] : [ptr(0n), i32(0), i32(0)],
  );

/** Sums that blocks leave each other; the next product finds the tickets at zero again. */
export interface Shared {
  readonly partial: Area;
  readonly tickets: Area;
  /** Weights in bf16, where one of the parts may want it. */
  readonly wide?: Area;
  /** x as linear_packed.cu wants it, in both orders, where one of the parts may want it. */
  readonly turned?: Area;
}

export interface Call {
  readonly x: Place;
  readonly y: Place;
  readonly bias: bigint;
  readonly gated?: number;
  readonly add: boolean;
  readonly norm?: FoldedNorm;
  readonly next?: FoldedNorm;
}

/** What every product's kernel begins with. */
export function productArgs(call: Call, part: Part, context: LowerContext): Arg[] {
  const gated = call.gated !== undefined;
  const count = context.step.info + (call.x.rows ? 8n : 0n);
  return [
    ...[ptr(call.x.address), i32(call.x.width)],
    ...[ptr(call.y.address + BigInt(part.column * elementBytes(call.y))), i32(call.y.dtype === "f32" ? 1 : 0)],
    ...[i32(call.y.width), ptr(call.bias === 0n ? 0n : call.bias + BigInt(4 * part.column)), ptr(count)],
    ...[i32(gated ? 2 : call.add ? 1 : 0), i32(call.gated ?? 0), i32(gated ? part.rows / 2 : 0)],
  ];
}
