// Owns: a plan's weights on their way in: which pieces become packed matrices and which become plain f32 vectors, their
// sizes beforehand, and loading them tensor by tensor, so that at most the largest is in memory twice.
import { storageBytes } from "../../base/dtype.js";
import { UserError } from "../../base/errors.js";
import type { HostTensor } from "../../plan/op.js";
import type { Tensor, WeightPiece } from "../../plan/plan.js";
import type { CompileOptions, WeightSource } from "../device.js";
import { cutSize, rawBytes, recipe, transpose, unpermuted, vectorValues } from "../recipe.js";
import { storageCode } from "./code.js";
import type { Handle, Native } from "./native.js";

/** A matrix in the native program's list: rows of one piece. */
export interface PackedPiece {
  readonly piece: WeightPiece;
  readonly index: number;
  readonly rows: number;
  readonly cols: number;
}

interface VectorPlace {
  readonly pieces: readonly WeightPiece[];
  readonly offset: number;
  readonly length: number;
}

export class PlannedWeights {
  readonly packed: PackedPiece[] = [];
  private readonly matrices = new Map<string, PackedPiece[]>();
  private readonly vectors = new Map<string, VectorPlace>();
  /** Floats of all vectors, each on a multiple of 16. */
  vectorFloats = 0;

  constructor(private readonly native: Native) {}

  /** The tensor's pieces as packed matrices, in the order of its rows. Asking twice gives the same. */
  matrix(tensor: Tensor): readonly PackedPiece[] {
    return this.matrices.get(tensor.name) ?? this.place(tensor, recipe(tensor));
  }

  /** One matrix an expert, of the weights of `count` experts stacked along rows. */
  experts(tensor: Tensor, count: number): readonly PackedPiece[] {
    const known = this.matrices.get(tensor.name);
    if (known) return known;
    const rows = (tensor.shape[0] as number) / count;
    const parts = recipe(tensor).flatMap((piece) => {
      const top = piece.rows?.start ?? 0;
      const whole = cutSize(piece).rows / rows;
      if (!Number.isInteger(whole)) {
        throw new UserError(`the cpu device cannot take ${tensor.name}: an expert's rows are not in one tensor`);
      }
      return Array.from({ length: whole }, (_, i) => ({
        ...piece,
        rows: { start: top + i * rows, end: top + (i + 1) * rows },
      }));
    });
    return this.place(tensor, parts);
  }

  private place(tensor: Tensor, parts: readonly WeightPiece[]): readonly PackedPiece[] {
    const pieces = parts.map((piece) => {
      const { rows, cols } = cutSize(piece);
      if (!this.native.supports(storageCode(piece.type), cols)) {
        throw new UserError(
          `the cpu device has no kernel for ${piece.name}: ${piece.type} with rows of ${cols} values`,
        );
      }
      return { piece, index: -1, rows, cols };
    });
    const placed = pieces.map((p, i) => ({ ...p, index: this.packed.length + i }));
    this.packed.push(...placed);
    this.matrices.set(tensor.name, placed);
    return placed;
  }

  /** Offset of the tensor's values in the program's vectors. */
  vector(tensor: Tensor): number {
    const known = this.vectors.get(tensor.name);
    if (known) return known.offset;
    const length = tensor.shape.reduce<number>((product, dim) => product * (dim as number), 1);
    const place = { pieces: recipe(tensor), offset: this.vectorFloats, length };
    this.vectors.set(tensor.name, place);
    this.vectorFloats += Math.ceil(length / 16) * 16;
    return place.offset;
  }

  bytes(): number {
    const matrices = this.packed.reduce(
      (sum, { piece, rows, cols }) => sum + this.native.packedBytes(storageCode(piece.type), rows, cols),
      0,
    );
    return matrices + 4 * this.vectorFloats;
  }

  /** [type, rows, cols]… as the description wants them. */
  describe(): number[] {
    const numbers = [this.packed.length];
    for (const { piece, rows, cols } of this.packed) numbers.push(storageCode(piece.type), rows, cols);
    return numbers;
  }

  async load(program: Handle, source: WeightSource, options: CompileOptions = {}): Promise<void> {
    const uses = new Map<string, number>();
    const count = (pieces: readonly WeightPiece[], by: number) => {
      for (const { name } of pieces) {
        const left = (uses.get(name) ?? 0) + by;
        uses.set(name, left);
        if (left === 0) source.release(name);
      }
    };
    for (const { piece } of this.packed) count([piece], 1);
    for (const { pieces } of this.vectors.values()) count(pieces, 1);

    const total = this.bytes();
    let done = 0;
    let told = 0;
    const progress = async (bytes: number) => {
      done += bytes;
      options.signal?.throwIfAborted();
      options.onProgress?.(done, total);
      if (done - told < 64 << 20) return;
      told = done;
      // Lets an abort or another message in.
      await new Promise((resolve) => setImmediate(resolve));
    };
    for (const { pieces, offset, length } of this.vectors.values()) {
      const values = vectorValues(pieces, length, source);
      this.native.setVector(program, offset, values, length);
      count(pieces, -1);
      await progress(4 * length);
    }
    for (const entry of this.packed) {
      this.pack(program, entry, source);
      count([entry.piece], -1);
      await progress(this.native.packedBytes(storageCode(entry.piece.type), entry.rows, entry.cols));
    }
  }

  /** The tensor as f32, from what was packed. */
  dump(program: Handle, tensor: Tensor): HostTensor {
    const shape = tensor.shape as readonly number[];
    const data = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
    const vector = this.vectors.get(tensor.name);
    if (vector) this.native.getVector(program, vector.offset, data, vector.length);
    let at = 0;
    for (const { index, rows, cols } of this.matrices.get(tensor.name) ?? []) {
      const row = new Float32Array(cols);
      for (let r = 0; r < rows; r++, at += cols) {
        this.native.unpackRow(program, index, r, row);
        data.set(row, at);
      }
    }
    return { shape, data };
  }

  private pack(program: Handle, { piece, index, rows }: PackedPiece, source: WeightSource): void {
    const bytes = rawBytes(piece, source);
    if (piece.transform?.kind === "transpose") {
      const [height, width] = piece.shape;
      const turned = transpose(bytes, height, width, storageBytes(piece.type, 1));
      this.packRows(program, index, { ...piece, shape: [width, height], transform: undefined }, turned, rows);
    } else {
      this.packRows(program, index, piece, bytes, rows);
    }
  }

  private packRows(program: Handle, index: number, piece: WeightPiece, bytes: Uint8Array, rows: number): void {
    const cols = piece.shape[1];
    const top = piece.rows?.start ?? 0;
    const column = storageBytes(piece.type, piece.cols?.start ?? 0);
    const map = piece.transform?.kind === "unpermute" ? unpermuted(piece, piece.transform.heads, top, rows) : null;
    this.native.pack(program, index, bytes, storageBytes(piece.type, cols), column, top, map);
  }
}
