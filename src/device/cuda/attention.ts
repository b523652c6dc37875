// Owns: which attention kernels a layer runs on, and with what: heads of 64, 96, 128 and 256 with f16 or bf16 caches go
// to the tensor cores, cut into runs and tiles by a plan that is made once a step; the rest goes to a plain kernel.
// What the kernels do, and in which order they add: kernels/cuda/attention.cuh.
import { UserError } from "../../base/errors.js";
import type {
  Area,
  Arg,
  AttentionKernels,
  AttentionTask,
  CudaProperties,
  Launch,
  LowerContext,
  Lowered,
} from "./launch.js";

const partTokens = 64;
const tileRows = 16;
const planThreads = 512;
const decodeThreads = 128;
const anyThreads = 128;
/** Runs a block, about, at most. */
const mostWaves = 4;
/** Up to so many the copy engine is the faster way to bring keys and values (docs/SPEED.md); the bits are the same. Hopper
 *  alone: newer GPUs compile the PTX of those before it, where that kernel is empty. */
const fewSequences = 4;
/** Ints of a plan's header, of a run, of a tile. */
const [headerInts, runInts, tileInts] = [8, 16, 8];
/** Memory for partial results of runs. More of it would only let more sequences be cut. */
const partialBytes = 48 << 20;

/**
 * As kernels/cuda/attention.cu instantiates them. slots: parts on their way into a block of a decode kernel; blocks: such
 * blocks a multiprocessor. boxes: there is one on the copy engine, too. rows and threads: of a prefill block.
 */
interface Variant {
  readonly slots: number;
  readonly blocks: number;
  readonly boxes?: { readonly slots: number };
  readonly prefill: { readonly rows: number; readonly threads: number };
  readonly exact: { readonly rows: number; readonly threads: number };
}
const wide = { prefill: { rows: 128, threads: 128 }, exact: { rows: 128, threads: 256 } };
const variants: Readonly<Record<number, Variant>> = {
  64: { slots: 3, blocks: 4, boxes: { slots: 3 }, ...wide },
  96: { slots: 2, blocks: 3, ...wide },
  128: { slots: 3, blocks: 2, boxes: { slots: 3 }, ...wide },
  256: {
    slots: 2,
    blocks: 1,
    boxes: { slots: 3 },
    prefill: { rows: 128, threads: 256 },
    exact: { rows: 64, threads: 128 },
  },
};

/** Bytes of `rows` rows of keys, values or queries in shared memory (mr::attn::Rows). */
const tileBytes = (headDim: number, rows: number): number =>
  rows * (headDim % 64 === 0 ? 2 * headDim : 2 * headDim + 16);

function decodeBytes(headDim: number, slots: number): number {
  return slots * 2 * tileBytes(headDim, partTokens) + tileBytes(64, tileRows) + 4 * tileRows * 4 + 2 * slots * 8 + 16;
}

function prefillBytes(headDim: number, rows: number, exact: boolean): number {
  return tileBytes(headDim, rows) + 4 * tileBytes(headDim, partTokens) + (exact ? rows * headDim * 4 : 0);
}

const ptr = (address: bigint): Arg => ({ ptr: address });
const i32 = (value: number): Arg => ({ i32: value });
const f32 = (value: number): Arg => ({ f32: value });

export const attentionKernels: AttentionKernels = {
  attention(task, context) {
    const { kv } = task;
    if (kv.vHeadDim > 1024)
      throw new UserError(`the cuda device's attention takes value heads of up to 1024, not ${kv.vHeadDim}`);
    const variant = kv.dtype === "f32" || kv.headDim !== kv.vHeadDim ? undefined : variants[kv.headDim];
    if (!variant || !fits(kv.headDim, variant, context)) return anyAttention(task, context);
    return tiledAttention(task, context, variant);
  },
};

function fits(headDim: number, variant: Variant, { properties, deterministic }: LowerContext): boolean {
  const { rows } = deterministic ? variant.exact : variant.prefill;
  const most = Math.max(decodeBytes(headDim, variant.slots), prefillBytes(headDim, rows, deterministic));
  return most <= properties.sharedBytes;
}

function anyAttention(task: AttentionTask, { step }: LowerContext): Lowered {
  const { q, y, kv } = task;
  return (bucket) => {
    const pages = step.pages[kv.group];
    return [
      {
        kernel: `mr_attention_any_${kv.dtype}`,
        grid: [bucket.tokens, task.numHeads, 1],
        block: anyThreads,
        sharedBytes: 4 * (kv.headDim + partTokens + 4),
        args: [
          ...[ptr(q.address), ptr(y.address), ptr(kv.k), ptr(kv.v), { i64: BigInt(kv.pageBytes) }, ptr(pages.ids)],
          ...[ptr(task.sinks()), i32(task.numHeads), i32(kv.numKvHeads), f32(task.scale), f32(task.softcap ?? 0)],
          ...[i32(task.window ?? 0), i32(task.causal ? 1 : 0), i32(kv.headDim), i32(kv.vHeadDim)],
          ...[ptr(step.info), ptr(step.tokenSequence), ptr(step.tokenStart), ptr(step.kvStart)],
          ...[ptr(pages.start), ptr(pages.first)],
        ],
        dependent: true,
      },
    ];
  };
}

function tiledAttention(task: AttentionTask, context: LowerContext, variant: Variant): Lowered {
  const { kv } = task;
  const { deterministic, properties } = context;
  const shape = deterministic ? variant.exact : variant.prefill;
  const plan = stepPlan(task, context, variant, shape.rows);
  const rowTiles = context.limits.maxSequences * Math.ceil(task.numHeads / kv.numKvHeads / tileRows);
  const arrived = context.shared("attention arrived", 4 * rowTiles * kv.numKvHeads, true);
  const partial = context.shared("attention partial", partialBytes);
  const launch = (kernel: string, grid: Launch["grid"], block: number, sharedBytes: number): Launch => ({
    kernel: `mr_attention_${kernel}_${kv.dtype}_${kv.headDim}`,
    ...{ grid, block, sharedBytes, dependent: true },
    args: [
      ...[ptr(task.q.address), ptr(task.y.address), ptr(kv.k), ptr(kv.v), { i64: BigInt(kv.pageBytes) }],
      ...[ptr(plan.area.address), { i64: BigInt(plan.tilesAt) }, ptr(context.step.pages[kv.group].ids)],
      ...[ptr(partial.address), ptr(arrived.address), ptr(task.sinks()), i32(task.numHeads), i32(kv.numKvHeads)],
      ...[f32(task.scale), f32(task.softcap ?? 0), i32(task.window ?? 0), i32(task.causal ? 1 : 0)],
    ],
  });
  const blocks = decodeBlocks(properties, variant);
  const decodeOf = (sequences: number): Launch => {
    if (!variant.boxes || properties.capability !== 90 || sequences > fewSequences)
      return launch("decode", [blocks, 1, 1], decodeThreads, decodeBytes(kv.headDim, variant.slots));
    const bytes = decodeBytes(kv.headDim, variant.boxes.slots);
    const plain = launch("decode_boxes", [blocks, 1, 1], decodeThreads, bytes);
    return { ...plain, args: [...plain.args, pageMap(kv, kv.k), pageMap(kv, kv.v)] };
  };
  return (bucket) => {
    const decode = decodeOf(bucket.sequences);
    if (bucket.decode) return [decode];
    const tiles = mostTiles(task, bucket.tokens, bucket.sequences, shape.rows);
    const name = deterministic ? "prefill_exact" : "prefill";
    const more = prefillBytes(kv.headDim, shape.rows, deterministic);
    return [decode, launch(name, [tiles, kv.numKvHeads, 1], shape.threads, more)];
  };
}

/** A layer's keys or values as [pages][kv heads × 64 positions][D], in boxes of 64 columns of a page of a head. */
function pageMap({ numKvHeads, headDim, pageBytes }: AttentionTask["kv"], address: bigint): Arg {
  const sizes = [headDim, numKvHeads * partTokens, 1 << 24];
  return { map: { address, sizes, strides: [2 * headDim, pageBytes], box: [64, partTokens, 1] } };
}

const mostTiles = ({ numHeads, kv }: AttentionTask, tokens: number, sequences: number, rows: number): number =>
  Math.ceil((tokens * numHeads) / kv.numKvHeads / rows) + sequences;

/** Blocks of a decode launch: each takes its share of the plan's runs. */
const decodeBlocks = ({ multiprocessors }: CudaProperties, variant: Variant): number =>
  variant.blocks * multiprocessors;

/** The plan that all layers of one geometry share: [header | runs | tiles], made at the start of each step. */
function stepPlan(
  task: AttentionTask,
  context: LowerContext,
  variant: Variant,
  rows: number,
): { area: Area; tilesAt: number } {
  const { kv, numHeads } = task;
  const { limits, step } = context;
  const blocks = decodeBlocks(context.properties, variant);
  const groups = limits.maxSequences * Math.ceil(numHeads / kv.numKvHeads / tileRows);
  const tilesAt = headerInts + runInts * (Math.ceil((mostWaves * blocks) / kv.numKvHeads) + groups);
  const ints = tilesAt + tileInts * mostTiles(task, limits.maxTokens, limits.maxSequences, rows);
  const { window = 0, causal } = task;
  const key = ["attention plan", kv.group, numHeads, kv.numKvHeads, kv.headDim, window, causal].join(" ");
  const area = context.shared(key, 4 * ints);
  const room = Math.floor(partialBytes / (4 * kv.numKvHeads * tileRows * (kv.headDim + 2)));
  context.once(key, () => {
    const pages = step.pages[kv.group];
    return [
      {
        kernel: "mr_attention_plan",
        ...{ grid: [1, 1, 1], block: planThreads, sharedBytes: 0, dependent: true },
        args: [
          ...[ptr(area.address), { i64: BigInt(tilesAt) }, i32(numHeads), i32(kv.numKvHeads), i32(window)],
          ...[i32(causal ? 1 : 0), i32(rows), i32(blocks), i32(room), ptr(step.info)],
          ...[ptr(step.tokenStart), ptr(step.kvStart), ptr(pages.start), ptr(pages.first), ptr(pages.ids)],
        ],
      },
    ];
  });
  return { area, tilesAt };
}
