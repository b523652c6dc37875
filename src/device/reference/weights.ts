// Owns: following a weight's recipe: pieces of the checkpoint's tensors → one f32 array.
import { InternalError } from "../../base/errors.js";
import { dequantize } from "../../formats/quant/dequantize.js";
import type { Tensor, WeightPiece } from "../../plan/plan.js";
import type { WeightSource } from "../device.js";

/** The tensor's values, row after row; the source has been checked against the plan. Releases nothing: other tensors may
 *  want the same piece. */
export function materialise(tensor: Tensor, source: WeightSource): Float32Array {
  const values = tensor.shape.reduce<number>((product, dim) => product * (dim as number), 1);
  const out = new Float32Array(values);
  let at = 0;
  for (const piece of tensor.from ?? []) {
    const part = pieceValues(piece, source);
    if (at + part.length > values)
      throw new InternalError(`${tensor.name}: its pieces hold more than ${values} values`);
    out.set(part, at);
    at += part.length;
  }
  if (at !== values) throw new InternalError(`${tensor.name}: its pieces hold ${at} of ${values} values`);
  return out;
}

function pieceValues(piece: WeightPiece, source: WeightSource): Float32Array {
  const [rows, cols] = piece.shape;
  const values = new Float32Array(rows * cols);
  dequantize(piece.type, source.read(piece.name), values);
  const [height, width, whole] = transformed(piece, values);
  return cut(piece, whole, height, width);
}

function transformed(piece: WeightPiece, values: Float32Array): [rows: number, cols: number, values: Float32Array] {
  const [rows, cols] = piece.shape;
  const { transform } = piece;
  if (transform === undefined) return [rows, cols, values];
  if (transform.kind === "addOne") return [rows, cols, values.map((value) => value + 1)];
  const out = new Float32Array(values.length);
  if (transform.kind === "transpose") {
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) out[c * rows + r] = values[r * cols + c];
    return [cols, rows, out];
  }
  const head = rows / transform.heads;
  for (let row = 0; row < rows; row++) {
    const [h, within] = [Math.floor(row / head), row % head];
    const target = h * head + (within % 2) * (head / 2) + (within >> 1);
    out.set(values.subarray(row * cols, (row + 1) * cols), target * cols);
  }
  return [rows, cols, out];
}

function cut(piece: WeightPiece, values: Float32Array, rows: number, cols: number): Float32Array {
  const { start: top, end: bottom } = piece.rows ?? { start: 0, end: rows };
  const { start: left, end: right } = piece.cols ?? { start: 0, end: cols };
  if (left === 0 && right === cols) return values.subarray(top * cols, bottom * cols);
  const out = new Float32Array((bottom - top) * (right - left));
  for (let r = top; r < bottom; r++) {
    out.set(values.subarray(r * cols + left, r * cols + right), (r - top) * (right - left));
  }
  return out;
}
