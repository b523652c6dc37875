// Owns: launches of kernels/cuda/plain.cu: products for every format, slow. Weights stay the file's
// rows. What runs where no faster kernel takes the case.
import { storageBytes } from "../../base/dtype.js";
import { type Arg, activationCodes, type Launch, type LinearKernels, type Matrix, storageCodes } from "./launch.js";

const warps = 8;
const ptr = (address: bigint): Arg => ({ ptr: address });
const i32 = (value: number): Arg => ({ i32: value });
const f32 = (value: number): Arg => ({ f32: value });
const wide = (place: { dtype: "f32" | "bf16" }): Arg => i32(place.dtype === "f32" ? 1 : 0);
const rowBytes = (matrix: Pick<Matrix, "type" | "cols">) => storageBytes(matrix.type, matrix.cols);

export const plainLinear: LinearKernels = {
  fusesNorm: false,
  supports: () => true,
  packedBytes: (type, rows, cols) => Math.ceil((rows * storageBytes(type, cols)) / 256) * 256,
  pack(source, to) {
    const args = [
      ...[ptr(source.address), { i64: BigInt(source.rowBytes) }, { i64: BigInt(source.columnByte) }, i32(source.row0)],
      ...[ptr(source.rowMap), ptr(to.address), i32(rowBytes(to))],
    ];
    return [{ kernel: "mr_plain_pack", grid: [to.rows, 1, 1], block: 256, sharedBytes: 0, args }];
  },
  unpack(from, to) {
    const args = [ptr(from.address), i32(storageCodes[from.type]), i32(rowBytes(from)), i32(from.cols), ptr(to)];
    return [{ kernel: "mr_plain_unpack", grid: [from.rows, 1, 1], block: 256, sharedBytes: 0, args }];
  },
  linear({ x, segments, bias, y, epilogue }, { step }) {
    return ({ tokens, rows: bucketRows }) => {
      const n = x.rows ? bucketRows : tokens;
      const launches: Launch[] = [];
      const emit = (w: Matrix, column: number, biasRow: number, up?: { u: Matrix; biasRow: number; kind: number }) => {
        const from = (row: number) => ptr(bias() === 0n ? 0n : bias() + BigInt(4 * row));
        const args = [
          ...[ptr(step.info), i32(x.rows ? 1 : 0), ptr(x.address), wide(x), i32(x.width)],
          ...[ptr(w.address), i32(storageCodes[w.type]), i32(rowBytes(w)), i32(w.rows), from(biasRow)],
          ...[ptr(y.address), wide(y), i32(y.width), i32(column), i32(epilogue === "add" ? 1 : 0)],
          ...(up
            ? [ptr(up.u.address), i32(storageCodes[up.u.type]), i32(rowBytes(up.u)), from(up.biasRow), i32(up.kind)]
            : [ptr(0n), i32(0), i32(0), ptr(0n), i32(0)]),
        ];
        const grid = [Math.ceil(w.rows / warps), n, 1] as const;
        launches.push({ kernel: "mr_plain_linear", grid, block: 32 * warps, sharedBytes: 0, args, dependent: true });
      };
      if (typeof epilogue === "string") {
        let column = 0;
        for (const w of segments) {
          emit(w, column, column);
          column += w.rows;
        }
        return launches;
      }
      const kind = activationCodes[epilogue.gated];
      const half = y.width;
      for (const [column, w, u] of pairs(segments, half)) emit(w, column, column, { u, biasRow: half + column, kind });
      return launches;
    };
  },
  embed({ ids, table, scale, y }, { step }) {
    return ({ tokens }) => {
      let first = 0;
      return table.map((piece): Launch => {
        const args = [
          ...[ptr(step.info), ptr(ids()), ptr(piece.address), i32(storageCodes[piece.type]), i32(rowBytes(piece))],
          ...[i32(first), i32(piece.rows), f32(scale), ptr(y.address), wide(y), i32(y.width)],
        ];
        first += piece.rows;
        return { kernel: "mr_plain_embed", grid: [tokens, 1, 1], block: 128, sharedBytes: 0, args, dependent: true };
      });
    };
  },
};

/** Runs of rows that lie in one segment of the gate's half and in one of the up's. */
function* pairs(segments: readonly Matrix[], half: number): Iterable<[column: number, gate: Matrix, up: Matrix]> {
  const cut = (row: number): { matrix: Matrix; left: number } => {
    let at = 0;
    for (const matrix of segments) {
      if (row < at + matrix.rows) {
        const skip = row - at;
        const rest = { ...matrix, address: matrix.address + BigInt(skip * rowBytes(matrix)) };
        return { matrix: rest, left: matrix.rows - skip };
      }
      at += matrix.rows;
    }
    throw new RangeError(`a weight has no row ${row}`);
  };
  for (let row = 0; row < half; ) {
    const [gate, up] = [cut(row), cut(half + row)];
    const rows = Math.min(gate.left, up.left, half - row);
    yield [row, { ...gate.matrix, rows }, { ...up.matrix, rows }];
    row += rows;
  }
}
