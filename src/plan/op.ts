// Owns: how an operation is declared: once, with its shapes, its parameters, its cost and its reference in plain loops.
// The declarations themselves are in ops/, one file a family; every device is tested against the reference there.

/** A tensor in host memory. data: f32 for floating tensors, i32 for integer ones, whatever the device stores. */
export interface HostTensor<A extends Float32Array | Int32Array = Float32Array | Int32Array> {
  readonly shape: readonly number[];
  readonly data: A;
}

/**
 * What a reference may see of the step besides its tensors.
 *
 *   tokens of the step, packed:  | sequence 0      | sequence 1 | ...
 *   tokenStart:                  0                 n0           n0+n1
 *   a sequence's positions:      kvStart[s] … kvStart[s] + n_s − 1
 */
export interface StepContext {
  readonly numTokens: number;
  readonly numSequences: number;
  readonly tokenStart: Int32Array;
  readonly kvStart: Int32Array;
  /** Adapter slot of each sequence, −1: none. */
  readonly adapters: Int32Array;
  /** The cache that the node's input of this name stands for. */
  cache(input: string): CacheAccess;
  adapter(slot: number, site: string): AdapterWeights | undefined;
  /** Draws (or scores) the next token of row `row` of the batch from its logits, by the slot's parameters. */
  sample(row: number, logits: Float32Array): Sampled;
  /** Exchange between the ranks of a split plan. */
  readonly group: RankGroup;
}

/** A cache as the reference sees it. Paged: rows of numKvHeads × headDim values, whatever the dtype they are stored in. */
export interface CacheAccess {
  /** Copies k and v of the position; stores in the cache's dtype (so reads see its rounding). */
  write(sequence: number, position: number, k: Float32Array, v: Float32Array): void;
  /** Views or copies: valid until the next call. Positions that a window has let go are an InternalError. */
  readK(sequence: number, position: number): Float32Array;
  readV(sequence: number, position: number): Float32Array;
  /** Recurrent state of the sequence: a live view, zero before position 0. */
  state(sequence: number): Float32Array;
}

export interface Sampled {
  readonly token: number;
  readonly logprob: number;
  readonly rank: number;
}

/** Low-rank weights at one site: y += scale · B (A x). a: [r, in], b: [out, r]. */
export interface AdapterWeights {
  readonly a: HostTensor<Float32Array>;
  readonly b: HostTensor<Float32Array>;
  readonly scale: number;
}

export interface RankGroup {
  readonly rank: number;
  readonly size: number;
  /** Sums data over ranks, in rank order, into data, on every rank. */
  allReduce(data: Float32Array): void;
}

export type Tensors = Readonly<Record<string, HostTensor>>;

/**
 * Sizes bound for one step: the letters of the op's shape strings ("n", "d"), and
 *   tokens, sequences, rows: of the step
 *   context: positions that a sequence has in the cache once the step is done
 *   kvBytes: bytes of a stored cache element
 */
export type Sizes = Readonly<Record<string, number>>;

export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

/**
 * Shapes are strings: "[n, d]", "i32[n]" for integers, "paged" and "state" for caches; "?" at the end marks an optional
 * input. A dimension is a sum of products of numbers, of letters (bound by the tensors) and of names of numeric
 * parameters: "[n, groups*d]". The first dimension may be symbolic ("tokens"), the others are numbers.
 */
export interface Op<P = Readonly<Record<string, unknown>>> {
  readonly name: string;
  readonly inputs: Readonly<Record<string, string>>;
  readonly outputs: Readonly<Record<string, string>>;
  /** Parameter name → kind (i32, f32, f32[], bool, string, or the allowed words a|b|c), for printing and for checking.
   *  "?" at the end: optional. */
  readonly params: Readonly<Record<string, string>>;
  /** FLOPs and bytes moved (weights at their storage size), for `inspect --plan` and roofs. */
  cost(sizes: Sizes, params: P, weightBytes: number): Cost;
  /** Plain loops in f32 (sums in double where the order would matter). Writes into outputs, which are allocated. */
  reference(inputs: Tensors, outputs: Tensors, params: P, step: StepContext): void;
}

const registry = new Map<string, Op>();

/** P: the parameters' type; a type alias, never an interface (it must fit a record of unknowns). */
export function defineOp<P extends Readonly<Record<string, unknown>>>(op: Op<P>): Op<P> {
  if (registry.has(op.name)) throw new Error(`op ${op.name} is declared twice`);
  registry.set(op.name, op as Op);
  return op;
}

/** Every op declared so far, by name: what the conformance suite walks. */
export function allOps(): ReadonlyMap<string, Op> {
  return registry;
}
