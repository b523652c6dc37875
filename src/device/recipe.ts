// Owns: a weight's recipe carried out: which bytes of the checkpoint its pieces are, in what order their rows come, and the
// plain values of vectors. What every backend with packed weights shares.
import { storageBytes } from "../base/dtype.js";
import { FormatError, InternalError } from "../base/errors.js";
import { dequantize } from "../formats/quant/dequantize.js";
import type { Tensor, WeightPiece } from "../plan/plan.js";
import type { WeightSource } from "./device.js";

export function recipe(tensor: Tensor): readonly WeightPiece[] {
  if (!tensor.from || tensor.from.length === 0) throw new InternalError(`the weight ${tensor.name} has no recipe`);
  return tensor.from;
}

export function cutSize(piece: WeightPiece): { rows: number; cols: number } {
  const [height, width] = piece.transform?.kind === "transpose" ? [piece.shape[1], piece.shape[0]] : piece.shape;
  const rows = piece.rows ? piece.rows.end - piece.rows.start : height;
  const cols = piece.cols ? piece.cols.end - piece.cols.start : width;
  return { rows, cols };
}

export function rawBytes(piece: WeightPiece, source: WeightSource): Uint8Array {
  const info = source.tensors.get(piece.name);
  if (!info) throw new FormatError(`the file has no tensor ${piece.name}`);
  const [rows, cols] = piece.shape;
  const bytes = source.read(piece.name);
  const wanted = rows * storageBytes(piece.type, cols);
  if (info.type !== piece.type || bytes.length < wanted) {
    throw new FormatError(
      `tensor ${piece.name} is ${info.type} of ${bytes.length} bytes; ${piece.type} of ${wanted} is wanted`,
    );
  }
  return bytes;
}

/** Row h·d + 2·i + j of the file is row h·d + j·d/2 + i of the weight: the file's row of each of the weight's. */
export function unpermuted(piece: WeightPiece, heads: number, top: number, rows: number): Int32Array {
  const head = piece.shape[0] / heads;
  const map = new Int32Array(rows);
  for (let r = 0; r < rows; r++) {
    const within = (top + r) % head;
    const half = head / 2;
    map[r] = top + r - within + 2 * (within % half) + Math.floor(within / half);
  }
  return map;
}

export function transpose(bytes: Uint8Array, height: number, width: number, size: number): Uint8Array {
  const out = new Uint8Array(height * width * size);
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      const from = (r * width + c) * size;
      const to = (c * height + r) * size;
      for (let i = 0; i < size; i++) out[to + i] = bytes[from + i];
    }
  }
  return out;
}

export function vectorValues(pieces: readonly WeightPiece[], length: number, source: WeightSource): Float32Array {
  const out = new Float32Array(length);
  let at = 0;
  for (const piece of pieces) {
    const [height, width] = piece.shape;
    const whole = new Float32Array(height * width);
    const bytes = rawBytes(piece, source);
    // Norms and biases are nearly always F32: no need to make the reference dequantiser's tables.
    if (piece.type === "F32") new Uint8Array(whole.buffer).set(bytes);
    else dequantize(piece.type, bytes, whole);
    if (piece.transform?.kind === "addOne") for (let i = 0; i < whole.length; i++) whole[i] += 1;
    const map = piece.transform?.kind === "unpermute" ? unpermuted(piece, piece.transform.heads, 0, height) : undefined;
    const { rows, cols } = cutSize(piece);
    const top = piece.rows?.start ?? 0;
    const left = piece.cols?.start ?? 0;
    for (let r = 0; r < rows; r++) {
      const from = (map ? map[top + r] : top + r) * width + left;
      out.set(whole.subarray(from, from + cols), at);
      at += cols;
    }
  }
  if (at !== length) throw new InternalError(`a vector's pieces hold ${at} of ${length} values`);
  return out;
}
