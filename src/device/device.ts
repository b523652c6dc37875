// Owns: all that a backend is. A Device turns a Plan into a Program; a Program runs Batches. The engine knows these
// types and nothing of any backend; backends know these types and nothing of the engine or of each other.
import type { DType } from "../base/dtype.js";
import type { TensorInfo } from "../formats/checkpoint.js";
import type { HostTensor } from "../plan/op.js";
import type { Plan } from "../plan/plan.js";
import type { Batch, Step } from "./batch.js";

export interface DeviceInfo {
  /** "reference", "cpu", "cuda:0", "null"... */
  readonly name: string;
  /** For people: "AMD EPYC, AVX2, 2 threads". */
  readonly description: string;
  /** Free memory now, in bytes. */
  readonly memoryBytes: number;
  /** That memory is the device's own, not the machine's. */
  readonly ownMemory?: boolean;
  /** Tokens a page, preferred by the device's attention kernels. */
  readonly pageTokens: number;
  /** The same request gives the same bits whatever runs beside it, also without Limits.deterministic. */
  readonly rowInvariant: boolean;
  /** Tokens of one step at most that make good use of it, and steps in flight; hosts have defaults for a CPU. */
  readonly stepTokens?: number;
  readonly depth?: number;
  /** What the bytes of readPages mean, arithmetic included: programs of one plan and equal weights on devices of equal
   *  formats can exchange pages, and do so without holding up a step. Absent: pages are not to leave. */
  readonly pageFormat?: string;
  /** Names of the ops that compile() takes; fusion passes ask. */
  readonly ops: ReadonlySet<string>;
}

/** q8: 8-bit whole multiples of an f32 scale, one a token's row of a head. */
export const kvDTypes = ["f32", "f16", "bf16", "q8"] as const;
export type KvDType = (typeof kvDTypes)[number];

/** What one program must be able to hold and do. Everything is allocated from this, once. */
export interface Limits {
  /** Most tokens, sampled rows and sequences in one step. */
  readonly maxTokens: number;
  readonly maxRows: number;
  readonly maxSequences: number;
  /** Device slots: live sequences, those that wait for a step included. At least maxSequences. */
  readonly slots: number;
  /** Longest sequence, in tokens. */
  readonly contextLength: number;
  /** For caches: what is left of it after weights and workspace becomes pages. */
  readonly memoryBytes: number;
  readonly kvDtype: KvDType;
  readonly threads: number;
  /** Steps that may be in flight at once: 1, 2 or 3. */
  readonly depth: number;
  /** Asks for row invariance of devices whose fastest arithmetic has none. */
  readonly deterministic: boolean;
  /** LoRA adapters that may be loaded at once. */
  readonly adapterSlots: number;
  /** Most pages of a paged group that are any use; fewer where memoryBytes says so. 0: no bound but memory. */
  readonly maxPages: number;
}

export interface MemoryReport {
  readonly weights: number;
  readonly workspace: number;
  /** Of all page groups. */
  readonly cache: number;
  readonly pagesPerGroup: readonly number[];
  /** Longest single sequence the pages hold. */
  readonly maxContext: number;
}

/** The checkpoint as a device sees it: raw bytes and a type. Views are valid until release(name). */
export interface WeightSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  read(name: string): Uint8Array;
  /** The bytes will not be read again: their pages may go. */
  release(name: string): void;
}

export interface CompileOptions {
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
  /** Keep every activation so that dump() works; MILLRACE_DUMP where not said. Costs memory and time. */
  readonly dump?: boolean;
}

/**
 * A pool of pages that a set of layers shares.
 *   paged: pageTokens consecutive positions of one sequence, of every layer in the group
 *   state: the recurrent state of one sequence, of every layer in the group (pageTokens is 0)
 */
export interface PageGroup {
  readonly kind: "paged" | "state";
  readonly pageTokens: number;
  readonly pageBytes: number;
  readonly numPages: number;
  /** Positions before (newest − window + 1) are never read again. */
  readonly window?: number;
}

export interface AdapterSource {
  /** Low-rank factors by the site's name: the linear's path in the plan ("layers.0.self_attn.q_proj", the same for every
   *  kind of file). a: [r, in], b: [out, r]. */
  readonly sites: ReadonlyMap<string, { a: HostTensor<Float32Array>; b: HostTensor<Float32Array> }>;
  /** alpha / r. */
  readonly scale: number;
  /** Of its contents. Absent: what was computed with it is of no use to another process. */
  readonly digest?: string;
}

export interface Program {
  readonly memory: MemoryReport;
  readonly caches: readonly PageGroup[];
  readonly vocabSize: number;
  /**
   * Starts a step; steps, page copies and writes take effect in the order of the calls. At most limits.depth steps may
   * be in flight. Throws InternalError on a malformed batch (nothing has run then); a fault while running rejects
   * Step.result.
   */
  run(batch: Batch): Step;
  /** Of a plan without samples (an encoder's): runs a step and gives the last node's output, [tokens, width]. */
  encode?(batch: Batch): Promise<Float32Array>;
  /** Of limits.threads, how many may work from the next step on. Absent where a device has no threads to share. */
  setThreads?(threads: number): void;
  copyPages(group: number, from: Int32Array, to: Int32Array): void;
  readPages(group: number, ids: Int32Array): Promise<Uint8Array>;
  writePages(group: number, ids: Int32Array, bytes: Uint8Array): void;
  /** null frees the slot. */
  loadAdapter(slot: number, source: AdapterSource | null): Promise<void>;
  /** The same shapes from another source (a fine-tune): pages become invalid. */
  swapWeights(source: WeightSource): Promise<void>;
  /** Gives back weights and pages but stays compiled; wake() reads the weights again. */
  sleep(): Promise<void>;
  wake(): Promise<void>;
  /** The named tensor as the last completed step left it. Names: Tensor.name. Works only where the program was compiled
   *  with dump; a UserError otherwise. */
  dump(tensor: string): Promise<HostTensor>;
  /** True once the device has failed so that nothing can run on it in this process any more: its host should end. */
  readonly lost?: boolean;
  close(): Promise<void>;
}

export interface Device {
  readonly info: DeviceInfo;
  /** Before anything is allocated; throws UserError with the numbers where it cannot fit. */
  estimate(plan: Plan, limits: Limits): MemoryReport;
  compile(plan: Plan, weights: WeightSource, limits: Limits, options?: CompileOptions): Promise<Program>;
  close(): Promise<void>;
}

/** Bytes of a token's row of `width` keys or values of one head. */
export function kvRowBytes(dtype: KvDType, width: number): number {
  if (dtype === "q8") return width + 4;
  return width * (dtype === "f32" ? 4 : 2);
}

/** Bytes of a cached value, its share of its row's scale included: the mean over the plan's caches. */
export function kvBytes(dtype: KvDType, plan: Plan): number {
  let [values, bytes] = [0, 0];
  for (const cache of plan.caches) {
    if (cache.kind !== "paged") continue;
    for (const width of [cache.headDim, cache.vHeadDim]) {
      values += cache.numKvHeads * width;
      bytes += cache.numKvHeads * kvRowBytes(dtype, width);
    }
  }
  return values > 0 ? bytes / values : 0;
}

export type { DType };
