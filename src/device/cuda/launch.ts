// Owns: what the parts of the CUDA device say to each other: a kernel launch, where tensors lie, what a step's shape is
// known to be beforehand, and what a family of kernels is asked to do. Addresses are device addresses.
//
// Lowering happens before anything is allocated: an Area's address may be read only inside the functions that lowering
// returns, which are called once the program has its memory.
import type { StorageType } from "../../base/dtype.js";
import type { Activation } from "../../plan/ops/elementwise.js";
import type { KvDType } from "../device.js";

/** bytes: a struct by value, on a multiple of 64 bytes. map: a tensor map by value, for Hopper's copy engine. */
export type Arg =
  | { ptr: bigint }
  | { i32: number }
  | { f32: number }
  | { i64: bigint }
  | { bytes: Uint8Array }
  | { map: TensorMap };

/** A tensor that the copy engine reads in boxes: of 2-byte values, each box laid down with the 128-byte swizzle, or of 8-byte
 *  words, laid down as they are. */
export interface TensorMap {
  readonly address: bigint;
  readonly words?: boolean;
  /** Innermost first. */
  readonly sizes: readonly number[];
  /** Bytes from one to the next along each dimension but the innermost. */
  readonly strides: readonly number[];
  /** The innermost is 64 values, or at most 256 words. */
  readonly box: readonly number[];
}

/** One kernel launch. Sizes that change from step to step live in device memory (StepView.info), so a captured graph stays
 *  valid: grids are those of the bucket, and blocks beyond the real counts return at once. */
export interface Launch {
  readonly kernel: string;
  readonly grid: readonly [number, number, number];
  readonly block: number;
  /** Dynamic shared memory. */
  readonly sharedBytes: number;
  readonly args: readonly Arg[];
  /** May start while the launch before it still runs: the kernel waits (mr::wait) before it reads what any launch of the step
   *  wrote. What was there before the step's first launch (weights, StepView) may be read earlier. */
  readonly dependent?: boolean;
  /** Blocks of a thread block cluster, along x. */
  readonly cluster?: number;
  /** Blocks wait for each other: none may run before there is room for all (a cooperative launch). */
  readonly together?: boolean;
}

/** A shape of steps: upper bounds; the real counts are in StepView.info. decode: every sequence has exactly one token. */
export interface Bucket {
  readonly tokens: number;
  readonly rows: number;
  readonly sequences: number;
  readonly decode: boolean;
}

export type Lowered = (bucket: Bucket) => readonly Launch[];

/** Device memory that a program will have; on a multiple of 256 bytes. */
export interface Area {
  readonly bytes: number;
  /** Throws before the program has its memory. */
  readonly address: bigint;
}

/** A tensor [n, width], rows one after another, n up to the tokens (or rows) of a step. */
export interface Place {
  readonly address: bigint;
  readonly dtype: "f32" | "bf16";
  readonly width: number;
  /** n is the step's rows, not its tokens. */
  readonly rows: boolean;
}

/** Addresses of a step's arrays in device memory; contents as in device/batch.ts. info: struct mr::StepInfo of common.cuh. */
export interface StepView {
  readonly info: bigint;
  /** [tokens] real ids; [tokens] positions; [tokens] index of the token's sequence. */
  readonly tokenIds: bigint;
  readonly positions: bigint;
  readonly tokenSequence: bigint;
  /** [sequences], [sequences + 1], [sequences] */
  readonly slots: bigint;
  readonly tokenStart: bigint;
  readonly kvStart: bigint;
  /** [slots, SlotInt] */
  readonly slotInts: bigint;
  /** [rows] indices into tokens. */
  readonly rowTokens: bigint;
  /** One a page group: start [sequences + 1], first [sequences], ids. */
  readonly pages: readonly { readonly start: bigint; readonly first: bigint; readonly ids: bigint }[];
}

export interface CudaProperties {
  readonly name: string;
  readonly multiprocessors: number;
  /** The highest, in Hz. */
  readonly clock: number;
  /** Most dynamic shared memory that a block may ask for, in bytes. */
  readonly sharedBytes: number;
  readonly l2Bytes: number;
  /** 90 for compute capability 9.0. */
  readonly capability: number;
}

export interface LowerContext {
  readonly properties: CudaProperties;
  readonly limits: {
    readonly maxTokens: number;
    readonly maxRows: number;
    readonly maxSequences: number;
    readonly contextLength: number;
  };
  /** Row-invariant kernels only. */
  readonly deterministic: boolean;
  readonly step: StepView;
  /** Memory of this op alone. zeroed: zero before the first step, afterwards as the kernels leave it. */
  scratch(bytes: number, zeroed?: boolean): Area;
  /** Memory that every caller of the same key shares (ops run one after another); as large as the largest wish. */
  shared(key: string, bytes: number, zeroed?: boolean): Area;
  /** Launches at the start of every step, before the first node: once a key, whoever asks first. */
  once(key: string, lowered: Lowered): void;
}

/** A packed matrix on the device: rows of one piece of a weight, in the layout of the linear kernels. */
export interface Matrix {
  readonly type: StorageType;
  readonly rows: number;
  readonly cols: number;
  readonly address: bigint;
}

/**
 * A norm of a row that a product ends, read by products alone. At steps that LinearKernels.foldsNorm names nothing is launched
 * for it: the first product leaves row · weight in y and the sums of the row's squares, those that read y multiply by 1 / rms.
 */
export interface FoldedNorm {
  /** bf16: the norm's output, or at such steps what is to be multiplied. */
  readonly y: Place;
  /** f32 [y.width] */
  readonly weight: () => bigint;
  readonly eps: number;
  /** f32 [count] */
  readonly squares: { readonly area: Area; readonly count: number };
}

/** y = x · weightᵀ + bias over stacked segments (each segment's rows are consecutive columns of y). */
export interface LinearTask {
  /** bf16 */
  readonly x: Place;
  /** x is this norm's y. */
  readonly norm?: FoldedNorm;
  /** y is the row of this norm. */
  readonly next?: FoldedNorm;
  readonly segments: readonly Matrix[];
  /** f32 [m], or 0n. */
  readonly bias: () => bigint;
  readonly y: Place;
  /** store: y = …; add: y += … (y is f32); gated: y = f(gate) · up, the first half of the rows being the gate's. */
  readonly epilogue: "store" | "add" | { readonly gated: Activation };
}

export interface EmbedTask {
  readonly ids: () => bigint;
  readonly table: readonly Matrix[];
  readonly scale: number;
  readonly y: Place;
}

/** Raw rows of a checkpoint's tensor in device memory. Row r of the matrix is row (rowMap ? rowMap[r] : row0 + r) there;
 *  its first byte is columnByte. */
export interface RawRows {
  readonly address: bigint;
  readonly rowBytes: number;
  readonly columnByte: number;
  readonly row0: number;
  /** i32 [rows] on the device, or 0n. */
  readonly rowMap: bigint;
}

/** What src/device/cuda/linear.ts exports as linearKernels. */
export interface LinearKernels {
  /** Whether products of n tokens fold norms. */
  foldsNorm(n: number, context: { readonly deterministic: boolean }): boolean;
  /** How many sums of squares a product with the segments leaves; 0: it leaves none. */
  squares(segments: readonly Matrix[]): number;
  supports(type: StorageType, cols: number): boolean;
  /** A multiple of 256. */
  packedBytes(type: StorageType, rows: number, cols: number): number;
  pack(source: RawRows, to: Matrix): readonly Launch[];
  /** To f32 [rows, cols], row after row. */
  unpack(from: Matrix, to: bigint): readonly Launch[];
  linear(task: LinearTask, context: LowerContext): Lowered;
  embed(task: EmbedTask, context: LowerContext): Lowered;
}

/** One layer's keys and values: position p of a sequence is in page ids[p / 64 − first]; that page's keys of kv head h
 *  start at k + page · pageBytes + h · 64 · headDim · element, position within as rows of headDim; values likewise. */
export interface KvPlace {
  readonly group: number;
  readonly k: bigint;
  readonly v: bigint;
  readonly pageBytes: number;
  readonly dtype: KvDType;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vHeadDim: number;
}

export const pageTokens = 64;

export interface AttentionTask {
  /** bf16 [tokens, numHeads · headDim] */
  readonly q: Place;
  /** bf16 [tokens, numHeads · vHeadDim] */
  readonly y: Place;
  readonly kv: KvPlace;
  readonly numHeads: number;
  readonly scale: number;
  readonly window?: number;
  readonly softcap?: number;
  readonly causal: boolean;
  /** f32 [numHeads], or 0n. */
  readonly sinks: () => bigint;
}

/** What src/device/cuda/attention.ts exports as attentionKernels. */
export interface AttentionKernels {
  attention(task: AttentionTask, context: LowerContext): Lowered;
}

export const storageCodes: Readonly<Record<StorageType, number>> = {
  F32: 0,
  F16: 1,
  BF16: 2,
  Q4_0: 3,
  Q4_1: 4,
  Q5_0: 5,
  Q5_1: 6,
  Q8_0: 7,
  Q4_K: 8,
  Q5_K: 9,
  Q6_K: 10,
};
export const activationCodes: Readonly<Record<Activation, number>> = {
  silu: 0,
  gelu: 1,
  geluTanh: 2,
  relu: 3,
  relu2: 4,
};
