// Owns: launches of kernels/cuda/linear_*.cu: packing, products with weights of every format, streamed (here) or on wgmma
// (wgmma.ts), embeddings. The sizes here mirror linear_one.cuh and linear_stream.cuh.
import {
  activationCodes,
  type CudaProperties,
  type Launch,
  type LinearKernels,
  type LinearTask,
  type LowerContext,
  type Matrix,
  type Place,
  storageCodes,
} from "./launch.js";
import {
  type Call,
  i32,
  maxSegments,
  type Part,
  packedBytes,
  parts,
  productArgs,
  ptr,
  type Shared,
  segmentArgs,
  tileCount,
  tileRows,
  tilesOf,
  unitsOf,
} from "./products.js";
import { reserveWgmma, wgmmaLaunches } from "./wgmma.js";

/** A kernel for up to `tokens` tokens a pass: Shape of linear_stream.cuh. */
interface Stream {
  readonly tokens: number;
  /** Tiles of 16 rows that a warp holds. */
  readonly tiles: number;
  readonly warpBytes: number;
  /** Blocks that a multiprocessor runs at once, where each goes through several tiles. */
  readonly blocks?: number;
}
/** Measured on an H200: one tile a block streams faster than several (277 tokens/s against 255, 8B bf16). */
const mostTiles = 1;
const streams: readonly Stream[] = [
  { tokens: 8, tiles: 1, warpBytes: 11264 + 1152, blocks: 2 },
  ...[16, 32, 64].map((tokens) => ({ tokens, tiles: 2, warpBytes: 13824 + 2 * 1152 })),
];
const warps = 8;
/** linear_one.cuh: its shared memory beside the rings, with what the driver keeps of each block's; two pieces a ring. */
const oneOthers = 1152 + 1024;
const leastRings = warps * 2 * 3360;

/** Rings so large that no multiprocessor gets more than its share of few blocks; of many, three. */
function oneBytes(blocks: number, { multiprocessors, sharedBytes }: CudaProperties): number {
  const each = Math.min(3, Math.ceil(blocks / multiprocessors));
  const ring = Math.floor((sharedBytes + 1024) / each) - oneOthers;
  return Math.max(leastRings, Math.min(ring, sharedBytes - oneOthers));
}

/** How a kernel cuts a part: slices of k = splits × wk whatever the kernel, so that all give the same bits. */
interface Cut {
  readonly wk: number;
  readonly splits: number;
  /** Rows that a block has at once. */
  readonly rows: number;
  /** Tiles that a row of warps goes through. */
  readonly each: number;
  readonly groups: number;
}

function cut(stream: Stream, part: Part, gated: boolean, multiprocessors: number): Cut {
  const slices = gated ? 4 : 8;
  const wk = stream.tiles > 1 ? 2 : slices;
  const tiles = (warps / wk) * stream.tiles;
  const rows = tiles * tileRows;
  const all = tileCount(part.segments);
  const waves = Math.floor((all * wk) / warps / (multiprocessors * (stream.blocks ?? 1)));
  const each = stream.blocks ? Math.max(1, Math.min(mostTiles, waves)) : 1;
  const groups = gated
    ? Math.ceil(part.rows / 2 / ((rows / 2) * each))
    : part.segments.reduce((sum, { rows }) => sum + Math.ceil(tilesOf(rows) / (tiles * each)), 0);
  return { wk, splits: slices / wk, rows, each, groups };
}

/** The kernel for passes of `tokens` tokens, and how it cuts a single matrix (gated: two, of so many rows each). */
export const streamFor = (tokens: number): Stream => streams.find((stream) => stream.tokens === tokens)!;
export function cutFor(stream: Stream, rows: number, gated: boolean): Cut {
  const matrix = { rows } as Matrix;
  const part = gated
    ? { segments: [matrix, matrix], column: 0, rows: 2 * rows }
    : { segments: [matrix], column: 0, rows };
  return cut(stream, part, gated, 1);
}

/** Shared memory of a block. alone: it takes all splits. */
export function launchBytes(stream: Stream, { wk, splits, rows }: Cut, alone: boolean): number {
  const held = stream.tokens * rows * 4;
  return warps * stream.warpBytes + (stream.blocks ? 2 * wk * held : alone && splits > 1 ? held : 0);
}

/** Whether gate and up of the same output lie in tiles of their own. */
function pairsUp(segments: readonly Matrix[], half: number): boolean {
  if (segments.length === 2) return segments.every(({ rows }) => rows === half);
  return segments.length === 1 && half % tileRows === 0;
}

function reserve(all: readonly Part[], gated: boolean, x: Place, context: LowerContext): Shared {
  let partial = 256;
  let tickets = 256;
  for (const part of all) {
    for (const stream of streams) {
      const { groups, splits, rows } = cut(stream, part, gated, context.properties.multiprocessors);
      if (splits > 1) partial = Math.max(partial, groups * splits * stream.tokens * rows * 4);
      tickets = Math.max(tickets, groups * 4);
    }
  }
  return {
    partial: context.shared("linear.partial", partial),
    tickets: context.shared("linear.tickets", tickets, true),
    ...reserveWgmma(all, gated, x, context),
  };
}

/** Fewer than two tokens; another order of the sums than for more. */
function oneLaunch(call: Call, part: Part, n: number, context: LowerContext): Launch {
  const gated = call.gated !== undefined;
  const { norm, next } = call;
  const tiles = gated ? tilesOf(part.rows / 2) : tileCount(part.segments);
  const args = [
    ...productArgs(call, part, context),
    ...[ptr(norm?.squares.area.address ?? 0n), i32(norm?.squares.count ?? 0), { f32: norm?.eps ?? 0 }],
    ...[ptr(next?.weight() ?? 0n), ptr(next?.y.address ?? 0n), ptr(next?.squares.area.address ?? 0n)],
    ...[i32(part.segments.length), ...segmentArgs(part.segments)],
  ];
  return {
    kernel: "mr_linear_1",
    grid: [tiles, 1, n],
    block: 32 * warps,
    sharedBytes: oneBytes(tiles, context.properties),
    args,
    dependent: true,
  };
}

function streamLaunch(call: Call, part: Part, n: number, shared: Shared, context: LowerContext): Launch {
  const gated = call.gated !== undefined;
  if (linearKernels.foldsNorm(n, context)) return oneLaunch(call, part, n, context);
  const stream = streams.find(({ tokens }) => n <= tokens) ?? streams[streams.length - 1];
  const how = cut(stream, part, gated, context.properties.multiprocessors);
  const { wk, splits, each, groups } = how;
  const passes = Math.ceil(n / stream.tokens);
  const alone = splits === 1 || passes > 1;
  const args = [
    ...productArgs(call, part, context),
    ...[i32(splits), i32(wk), i32(each), ptr(shared.partial.address), ptr(shared.tickets.address)],
    ...[i32(part.segments.length), ...segmentArgs(part.segments)],
  ];
  return {
    kernel: `mr_linear_${stream.tokens}`,
    grid: [groups, alone ? 1 : splits, passes],
    block: 32 * warps,
    sharedBytes: launchBytes(stream, how, alone),
    args,
    dependent: true,
  };
}

function lowerLinear(task: LinearTask, context: LowerContext) {
  const half = task.y.width;
  const activation = typeof task.epilogue === "string" ? undefined : activationCodes[task.epilogue.gated];
  const fused = activation !== undefined && pairsUp(task.segments, half);
  const all = fused ? [{ segments: task.segments, column: 0, rows: 2 * half }] : parts(task.segments);
  const shared = reserve(all, fused, task.x, context);
  const limit = task.x.rows ? context.limits.maxRows : context.limits.maxTokens;
  // Gate and up that no tile pairs: side by side in f32 first.
  const apart = activation !== undefined && !fused ? context.shared("linear.gated", limit * 2 * half * 4) : undefined;
  return (bucket: { tokens: number; rows: number }): readonly Launch[] => {
    const n = task.x.rows ? bucket.rows : bucket.tokens;
    const y: Place = apart ? { address: apart.address, dtype: "f32", width: 2 * half, rows: task.y.rows } : task.y;
    const call: Call = {
      x: task.x,
      y,
      bias: task.bias(),
      gated: fused ? activation : undefined,
      add: task.epilogue === "add",
      norm: task.norm,
      next: task.next,
    };
    const launches = all.flatMap(
      (part) => wgmmaLaunches(call, part, n, shared, context) ?? [streamLaunch(call, part, n, shared, context)],
    );
    if (apart) {
      const args = [
        ...[ptr(apart.address), ptr(task.y.address), i32(task.y.dtype === "f32" ? 1 : 0), i32(half)],
        ...[i32(activation ?? 0), ptr(context.step.info + (task.x.rows ? 8n : 0n))],
      ];
      const grid = [Math.ceil(half / 256), n, 1] as const;
      launches.push({ kernel: "mr_linear_gate", grid, block: 256, sharedBytes: 0, args, dependent: true });
    }
    return launches;
  };
}

export const linearKernels: LinearKernels = {
  foldsNorm: (n, { deterministic }) => n <= 1 && !deterministic,
  squares: (segments) => (segments.length <= maxSegments ? tileCount(segments) : 0),
  supports: () => true,
  packedBytes,
  pack(source, to) {
    const args = [
      ...[i32(storageCodes[to.type]), ptr(source.address), { i64: BigInt(source.rowBytes) }],
      ...[{ i64: BigInt(source.columnByte) }, i32(source.row0), ptr(source.rowMap), i32(to.rows), i32(to.cols)],
      ptr(to.address),
    ];
    const grid = [unitsOf(to.type, to.cols), tilesOf(to.rows), 1] as const;
    return [{ kernel: "mr_linear_pack", grid, block: 256, sharedBytes: 0, args }];
  },
  unpack(from, to) {
    const args = [i32(storageCodes[from.type]), ptr(from.address), i32(from.rows), i32(from.cols), ptr(to)];
    const grid = [unitsOf(from.type, from.cols), tilesOf(from.rows), 1] as const;
    return [{ kernel: "mr_linear_unpack", grid, block: 256, sharedBytes: 0, args }];
  },
  linear: lowerLinear,
  embed({ ids, table, scale, y }, { step }) {
    return ({ tokens }) => {
      const launches: Launch[] = [];
      let first = 0;
      for (const { segments, rows } of parts(table)) {
        const args = [
          ...[ptr(step.info), ptr(ids()), i32(first), { f32: scale }, ptr(y.address), i32(y.dtype === "f32" ? 1 : 0)],
          ...[i32(y.width), i32(segments.length), ...segmentArgs(segments)],
        ];
        const grid = [tokens, 1, 1] as const;
        launches.push({ kernel: "mr_linear_embed", grid, block: 256, sharedBytes: 0, args, dependent: true });
        first += rows;
      }
      return launches;
    };
  },
};
