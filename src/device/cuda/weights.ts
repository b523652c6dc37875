// Owns: a plan's weights on the device: one allocation with every matrix in the linear kernels' layout and every vector in
// f32. Pieces go up one by one, raw, and are laid out there; at most the largest is there twice.
import { storageBytes } from "../../base/dtype.js";
import { InternalError, UserError } from "../../base/errors.js";
import type { HostTensor } from "../../plan/op.js";
import type { Tensor, WeightPiece } from "../../plan/plan.js";
import type { CompileOptions, WeightSource } from "../device.js";
import { cutSize, rawBytes, recipe, transpose, unpermuted, vectorValues } from "../recipe.js";
import type { Launch, LinearKernels, Matrix } from "./launch.js";
import { Sequence } from "./launcher.js";
import type { Cuda } from "./native.js";

/** Pinned memory through which bytes go up, twice: one is filled while the other is on its way. */
const stagingBytes = 32 << 20;

/** Matrices of one shape and type, `apart` bytes from each other. */
export interface Stack extends Matrix {
  readonly count: number;
  readonly apart: number;
}

interface Placed {
  readonly piece: WeightPiece;
  readonly matrix: Matrix;
}

const align = (bytes: number) => Math.ceil(bytes / 256) * 256;

export class CudaWeights {
  /** Bytes of all. */
  bytes = 0;
  /** Raw bytes of the largest piece. */
  private largest = 0;
  private address = 0;
  private readonly matrices = new Map<string, Placed[]>();
  private readonly vectors = new Map<string, { pieces: readonly WeightPiece[]; offset: number; length: number }>();

  constructor(private readonly kernels: LinearKernels) {}

  /** The tensor's pieces, in the order of its rows. Asking twice gives the same. */
  matrix(tensor: Tensor): readonly Matrix[] {
    const known = this.matrices.get(tensor.name);
    if (known) return known.map(({ matrix }) => matrix);
    const placed = recipe(tensor).map((piece): Placed => {
      const { type } = piece;
      const { rows, cols } = cutSize(piece);
      if (!this.kernels.supports(type, cols)) {
        throw new UserError(`the cuda device has no kernel for ${piece.name}: ${type} with rows of ${cols} values`, {
          code: "unsupported_weight",
        });
      }
      const offset = this.reserve(this.kernels.packedBytes(type, rows, cols));
      const raw = piece.transform?.kind === "unpermute" ? piece.shape[0] : rows;
      const width = piece.transform?.kind === "transpose" ? piece.shape[0] : piece.shape[1];
      this.largest = Math.max(this.largest, raw * storageBytes(type, width));
      const at = () => this.at(offset);
      return {
        piece,
        matrix: {
          type,
          rows,
          cols,
          get address() {
            return at();
          },
        },
      };
    });
    this.matrices.set(tensor.name, placed);
    return placed.map(({ matrix }) => matrix);
  }

  /** One matrix an expert, of the weights of `count` experts stacked along rows. */
  experts(tensor: Tensor, count: number): Stack {
    const rows = (tensor.shape[0] as number) / count;
    const pieces = recipe(tensor).flatMap((piece) => {
      const top = piece.rows?.start ?? 0;
      const whole = cutSize(piece).rows / rows;
      return Array.from({ length: Math.ceil(whole) }, (_, i) => {
        return { ...piece, rows: { start: top + i * rows, end: top + Math.min(i + 1, whole) * rows } };
      });
    });
    const { type } = pieces[0];
    if (pieces.length !== count || pieces.some((piece) => piece.type !== type)) {
      throw new UserError(`the cuda device wants the experts of ${tensor.name} whole and of one type`, {
        code: "unsupported_weight",
      });
    }
    const [first] = this.matrix({ ...tensor, from: pieces });
    const apart = align(this.kernels.packedBytes(type, first.rows, first.cols));
    return {
      ...{ type, count, apart, rows: first.rows, cols: first.cols },
      get address() {
        return first.address;
      },
    };
  }

  /** Gives the address of the tensor's values in f32. */
  vector(tensor: Tensor): () => bigint {
    const known = this.vectors.get(tensor.name);
    if (known) return () => this.at(known.offset);
    const length = tensor.shape.reduce<number>((product, dim) => product * (dim as number), 1);
    const offset = this.reserve(4 * length);
    this.vectors.set(tensor.name, { pieces: recipe(tensor), offset, length });
    return () => this.at(offset);
  }

  async load(cuda: Cuda, source: WeightSource, options: CompileOptions = {}): Promise<void> {
    if (!this.address) this.lieAt(cuda.alloc(this.bytes));
    const uploader = new Uploader(cuda, this.largest);
    const uses = new Map<string, number>();
    const count = (pieces: readonly WeightPiece[], by: number) => {
      for (const { name } of pieces) {
        const left = (uses.get(name) ?? 0) + by;
        uses.set(name, left);
        if (left === 0) source.release(name);
      }
    };
    const all = [...this.matrices.values()].flat();
    for (const { piece } of all) count([piece], 1);
    for (const { pieces } of this.vectors.values()) count(pieces, 1);
    let done = 0;
    let told = 0;
    const progress = async (bytes: number) => {
      done += bytes;
      options.signal?.throwIfAborted();
      options.onProgress?.(done, this.bytes);
      if (done - told < 64 << 20) return;
      told = done;
      // Lets an abort or another message in.
      await new Promise((resolve) => setImmediate(resolve));
    };
    try {
      for (const { pieces, offset, length } of this.vectors.values()) {
        const values = vectorValues(pieces, length, source);
        uploader.up(Number(this.at(offset)), new Uint8Array(values.buffer));
        count(pieces, -1);
        await progress(align(4 * length));
      }
      for (const placed of all) {
        this.pack(cuda, uploader, placed, source);
        count([placed.piece], -1);
        const { type, rows, cols } = placed.matrix;
        await progress(this.kernels.packedBytes(type, rows, cols));
      }
      cuda.synchronize();
    } finally {
      uploader.close();
    }
  }

  /** The tensor as f32, from what was packed. */
  dump(cuda: Cuda, tensor: Tensor): HostTensor {
    const shape = tensor.shape as readonly number[];
    const data = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
    const vector = this.vectors.get(tensor.name);
    const scratch = cuda.alloc(data.byteLength);
    if (vector) cuda.copy(scratch, Number(this.at(vector.offset)), data.byteLength);
    let at = scratch;
    for (const { matrix } of this.matrices.get(tensor.name) ?? []) {
      play(cuda, this.kernels.unpack(matrix, BigInt(at)));
      at += 4 * matrix.rows * matrix.cols;
    }
    cuda.toHost(cuda.addressOf(data), scratch, data.byteLength);
    cuda.synchronize();
    cuda.free(scratch);
    return { shape, data };
  }

  unload(cuda: Cuda): void {
    if (this.address) cuda.free(this.address);
    this.address = 0;
  }

  /** Where the memory of all weights is. */
  lieAt(address: number): void {
    this.address = address;
  }

  private reserve(bytes: number): number {
    const offset = this.bytes;
    this.bytes += align(bytes);
    return offset;
  }

  private at(offset: number): bigint {
    if (!this.address) throw new InternalError("a weight's address was asked for before it had one");
    return BigInt(this.address + offset);
  }

  private pack(cuda: Cuda, uploader: Uploader, { piece, matrix }: Placed, source: WeightSource): void {
    const raw = rawBytes(piece, source);
    const turned = piece.transform?.kind === "transpose";
    const width = turned ? piece.shape[0] : piece.shape[1];
    const height = turned ? piece.shape[1] : piece.shape[0];
    const rowBytes = storageBytes(piece.type, width);
    const bytes = turned ? transpose(raw, piece.shape[0], piece.shape[1], storageBytes(piece.type, 1)) : raw;
    const row0 = piece.rows?.start ?? 0;
    const { transform } = piece;
    const map = transform?.kind === "unpermute" ? unpermuted(piece, transform.heads, row0, matrix.rows) : undefined;
    // Only the rows that are wanted go up; a map may name any.
    const [first, end] = map ? [0, height] : [row0, row0 + matrix.rows];
    const address = uploader.raw(bytes.subarray(first * rowBytes, end * rowBytes));
    const rowMap = map ? uploader.extra(new Uint8Array(map.buffer)) : 0;
    const columnByte = storageBytes(piece.type, piece.cols?.start ?? 0);
    const from = { address: BigInt(address), rowBytes, columnByte, row0: 0, rowMap: BigInt(rowMap) };
    play(cuda, this.kernels.pack(from, matrix));
    uploader.packed();
  }
}

function play(cuda: Cuda, launches: readonly Launch[]): void {
  const sequence = new Sequence(cuda, launches, false);
  sequence.play();
  // Its parameters have been taken; the driver copies them at the launch.
}

/** Bytes on their way to the device, through two halves of pinned memory. */
class Uploader {
  private readonly halves;
  private readonly events: number[] = [0, 0];
  private readonly place: number;
  private turn = 0;
  private extras: number[] = [];

  constructor(
    private readonly cuda: Cuda,
    largest: number,
  ) {
    this.halves = [cuda.allocHost(stagingBytes), cuda.allocHost(stagingBytes)];
    this.place = cuda.alloc(largest);
  }

  up(to: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += stagingBytes) {
      const half = this.halves[this.turn];
      const part = bytes.subarray(at, at + stagingBytes);
      if (this.events[this.turn]) this.cuda.waitEvent(this.events[this.turn]);
      half.bytes.set(part);
      this.cuda.toDevice(to + at, half.address, part.length);
      this.events[this.turn] = this.cuda.event();
      this.turn ^= 1;
    }
  }

  /** Copies into the place for raw rows: everything that reads the bytes there before was launched earlier. */
  raw(bytes: Uint8Array): number {
    this.up(this.place, bytes);
    return this.place;
  }

  extra(bytes: Uint8Array): number {
    const address = this.cuda.alloc(bytes.length);
    this.up(address, bytes);
    this.extras.push(address);
    return address;
  }

  /** What extra() gave is no longer needed once what was launched is done. */
  packed(): void {
    if (this.extras.length === 0) return;
    this.cuda.synchronize();
    for (const address of this.extras.splice(0)) this.cuda.free(address);
  }

  close(): void {
    for (const event of this.events) if (event) this.cuda.waitEvent(event);
    for (const address of [...this.extras, this.place]) this.cuda.free(address);
    for (const half of this.halves) this.cuda.freeHost(half);
  }
}
