// Owns: launches of kernels/cuda/linear_*.cu: packing, products with packed weights of every format, embeddings. The sizes
// here mirror linear_layout.cuh, linear_one.cuh and linear_stream.cuh.
import type { StorageType } from "../../base/dtype.js";
import {
  type Area,
  type Arg,
  activationCodes,
  type CudaProperties,
  type FoldedNorm,
  type Launch,
  type LinearKernels,
  type LinearTask,
  type LowerContext,
  type Matrix,
  type Place,
  storageCodes,
} from "./launch.js";

/** A unit: 16 rows × k values. */
const units: Readonly<Record<StorageType, { k: number; bytes: number }>> = {
  F32: { k: 32, bytes: 2048 },
  F16: { k: 64, bytes: 2048 },
  BF16: { k: 64, bytes: 2048 },
  Q4_0: { k: 64, bytes: 576 },
  Q4_1: { k: 64, bytes: 640 },
  Q5_0: { k: 64, bytes: 704 },
  Q5_1: { k: 64, bytes: 768 },
  Q8_0: { k: 64, bytes: 1088 },
  Q4_K: { k: 256, bytes: 2304 },
  Q5_K: { k: 256, bytes: 2816 },
  Q6_K: { k: 256, bytes: 3360 },
};
const tileRows = 16;
/** A launch takes so many pieces of a weight. */
const maxSegments = 4;

const ptr = (address: bigint): Arg => ({ ptr: address });
const i32 = (value: number): Arg => ({ i32: value });
const tilesOf = (rows: number): number => Math.ceil(rows / tileRows);
const tileCount = (segments: readonly Matrix[]): number => segments.reduce((sum, { rows }) => sum + tilesOf(rows), 0);
const unitsOf = (type: StorageType, cols: number): number => Math.ceil(cols / units[type].k);
const elementBytes = (place: Place): number => (place.dtype === "f32" ? 4 : 2);

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

/** One launch's part of a product: up to four segments, and where their columns lie. */
interface Part {
  readonly segments: readonly Matrix[];
  readonly column: number;
  readonly rows: number;
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

function parts(segments: readonly Matrix[]): Part[] {
  const out: Part[] = [];
  let column = 0;
  for (let i = 0; i < segments.length; i += maxSegments) {
    const some = segments.slice(i, i + maxSegments);
    const rows = some.reduce((sum, { rows }) => sum + rows, 0);
    out.push({ segments: some, column, rows });
    column += rows;
  }
  return out;
}

const segmentArgs = (segments: readonly Matrix[]): Arg[] =>
  Array.from({ length: maxSegments }, (_, i) => segments[i]).flatMap((s) =>
    s ? [ptr(s.address), i32(storageCodes[s.type]), i32(s.rows)] : [ptr(0n), i32(0), i32(0)],
  );

/** Whether gate and up of the same output lie in tiles of their own. */
function pairsUp(segments: readonly Matrix[], half: number): boolean {
  if (segments.length === 2) return segments.every(({ rows }) => rows === half);
  return segments.length === 1 && half % tileRows === 0;
}

/** Sums that blocks leave each other; the next product finds the tickets at zero again. */
interface Shared {
  readonly partial: Area;
  readonly tickets: Area;
  /** Weights in bf16, where one of the parts may want it. */
  readonly wide?: Area;
  /** x as linear_packed.cu wants it, in both orders, where one of the parts may want it. */
  readonly turned?: Area;
}

function reserve(all: readonly Part[], gated: boolean, x: Place, context: LowerContext): Shared {
  const limit = x.rows ? context.limits.maxRows : context.limits.maxTokens;
  const gemmed = all.filter((part) => limit >= (gemmFrom(part, x, context) ?? Number.POSITIVE_INFINITY));
  let partial = 256;
  let tickets = 256;
  for (const part of all) {
    for (const stream of streams) {
      const { groups, splits, rows } = cut(stream, part, gated, context.properties.multiprocessors);
      if (splits > 1) partial = Math.max(partial, groups * splits * stream.tokens * rows * 4);
      tickets = Math.max(tickets, groups * 4);
    }
  }
  const turning = Math.min(limit, mostPacked);
  const turned = all.some((part) => packs(part, gated, x, context)) && limit >= leastPacked;
  const narrow = gemmed.map((part) => part.segments.filter(({ type }) => type !== "BF16"));
  const wide = Math.max(0, ...narrow.map((some) => some.reduce((sum, matrix) => sum + wideBytes(matrix), 0)));
  return {
    partial: context.shared("linear.partial", partial),
    tickets: context.shared("linear.tickets", tickets, true),
    wide: wide > 0 ? context.shared("linear.wide", wide) : undefined,
    turned: turned ? context.shared("linear.turned", 4 * turning * x.width) : undefined,
  };
}

/** Weights of other formats are widened to bf16 at every step that multiplies them on wgmma: at most so many bytes. */
const mostWide = 512 * 1024 * 1024;
const wideBytes = ({ rows, cols }: Matrix): number => linearKernels.packedBytes("BF16", rows, cols);

/** From how many tokens on the tensor cores of Hopper take a part; undefined: never. */
function gemmFrom(part: Part, x: Place, context: LowerContext): number | undefined {
  const wide = part.segments.filter(({ type }) => type !== "BF16").reduce((sum, matrix) => sum + wideBytes(matrix), 0);
  if (context.deterministic || context.properties.capability !== 90 || x.width % 8 !== 0 || wide > mostWide)
    return undefined;
  return wide > 0 ? 17 : 9;
}

/** Up to so many tokens the kernel that streams weights (linear_few.cu) is the faster one. */
const mostFew = 128;
const mostStages = 24;
const fewRows = [32, 64, 96, 128, 192, 224, 256];

/** Blocks of so many rows: none goes across segments. */
function blocksOf(part: Part, gated: boolean, rows: number): number {
  if (gated) return Math.ceil(tilesOf(part.rows / 2) / (rows / 32));
  return part.segments.reduce((sum, segment) => sum + Math.ceil(tilesOf(segment.rows) / (rows / tileRows)), 0);
}

/** Rows a block and blocks along k. In row-steps (128 bytes of W): what the busiest multiprocessor reads, x from the second-level
 *  cache at half the cost, a copy's own cost, and what the blocks of a cluster exchange; as measured on an H200. Clusters of
 *  four and more do not fill the last multiprocessors. */
function fewCut(part: Part, gated: boolean, n: number, cols: number, multiprocessors: number) {
  const steps = Math.ceil(cols / 64);
  let best = { rows: 128, splits: 1, cost: Number.POSITIVE_INFINITY };
  for (const rows of fewRows) {
    for (let splits = 1; splits <= Math.min(8, steps); splits *= 2) {
      const room = splits > 2 ? Math.floor(0.9 * multiprocessors) : multiprocessors;
      const waves = Math.ceil((blocksOf(part, gated, rows) * splits) / room);
      const exchanged = splits > 1 ? (n * rows * splits) / 6 : 0;
      const cost = waves * (rows + n / 2 + 16) * Math.ceil(steps / splits) + exchanged;
      if (cost < best.cost) best = { rows, splits, cost };
    }
  }
  return best;
}

/** linear_few.cu: grid, kernel and what it takes beyond what all products on wgmma take. */
function fewLaunch(part: Part, gated: boolean, n: number, late: boolean, cols: number, context: LowerContext) {
  const { rows, splits } = fewCut(part, gated, n, cols, context.properties.multiprocessors);
  const most = n <= 64 ? 64 : 128;
  const pass = Math.ceil(n / 8) * 8;
  const stage = (pass + rows) * 128;
  const stages = Math.max(2, Math.min(mostStages, Math.floor((fewShared - 1024) / stage)));
  const sums = pass * (rows + 8) * 4;
  return {
    kernel: `mr_linear_few_${most}_${rows}`,
    grid: [blocksOf(part, gated, rows) * splits, 1, 1] as const,
    block: 288,
    cluster: splits,
    sharedBytes: 1024 + Math.max(stages * stage, (stages - 1) * stage + most * 128, sums),
    rows,
    pass,
    more: [i32(pass), i32(splits), i32(stages), i32(late ? 1 : 0)],
  };
}
const fewShared = 226 * 1024;

/** From and up to so many tokens linear_packed.cu multiplies packed weights as they lie. */
const leastPacked = 9;
const mostPacked = 64;
const packedRows = 128;
/** The order of x: Q6_K's fragments, or the others'. */
const orderOf = ({ type }: Matrix): number => (type === "Q6_K" ? 1 : 0);

function packs(part: Part, gated: boolean, x: Place, { deterministic, properties }: LowerContext): boolean {
  if (deterministic || properties.capability !== 90 || x.width % 256 !== 0) return false;
  if (part.segments.some(({ type }) => ["F32", "F16", "BF16"].includes(type))) return false;
  return !gated || part.segments.every((segment) => orderOf(segment) === orderOf(part.segments[0]));
}

/** Blocks along k: steps of 256 values of the busiest multiprocessor, and one for what a cluster exchanges. Clusters of four
 *  and more do not fill the last multiprocessors where a block takes all of one. */
function packedSplits(part: Part, gated: boolean, n: number, cols: number, multiprocessors: number): number {
  let best = { splits: 1, cost: Number.POSITIVE_INFINITY };
  for (let splits = 1; splits <= Math.min(8, cols / 256); splits *= 2) {
    const room = n > 32 && splits > 2 ? Math.floor(0.9 * multiprocessors) : multiprocessors;
    const waves = Math.ceil((blocksOf(part, gated, packedRows) * splits) / room);
    if (splits > 1 && waves > 2) break;
    const cost = waves * Math.ceil(cols / 256 / splits) + (splits > 1 ? 1 : 0);
    if (cost < best.cost) best = { splits, cost };
  }
  return best.splits;
}

function packedLaunches(call: Call, part: Part, n: number, turned: Area, context: LowerContext): Launch[] {
  const { multiprocessors, sharedBytes } = context.properties;
  const { width: cols } = call.x;
  const [, , ...product] = productArgs(call, part, context);
  const count = product[4];
  const orders = part.segments.map(orderOf);
  const first = Math.min(...orders);
  const apart = cols * Math.min(mostPacked, call.x.rows ? context.limits.maxRows : context.limits.maxTokens);
  const turn: Launch = {
    kernel: "mr_linear_turn",
    grid: [Math.ceil(cols / 2048), n, Math.max(...orders) - first + 1],
    block: 256,
    sharedBytes: 0,
    args: [ptr(call.x.address), i32(cols), count, ptr(turned.address), { i64: BigInt(apart) }, i32(first)],
    dependent: true,
  };
  const most = [16, 32, mostPacked].find((tokens) => n <= tokens)!;
  const pass = Math.ceil(n / 8) * 8;
  const splits = packedSplits(part, call.gated !== undefined, n, cols, multiprocessors);
  const slot = Math.max(...part.segments.map(({ type }) => (units[type].bytes * 256) / units[type].k));
  // Two blocks a multiprocessor up to 32 tokens.
  const room = n <= 32 ? Math.floor((sharedBytes + 1024) / 2) - 1536 : sharedBytes - 512;
  const xStages = n <= 32 ? 8 : 12;
  const others = 1024 + xStages * pass * 128 + 8 * 16 * 72;
  const wStages = Math.min(8, Math.floor((room - others) / (8 * slot)));
  const x = [0, 1].map((order) => ({
    map: {
      address: turned.address + BigInt(2 * apart * order),
      sizes: [cols, n],
      strides: [2 * cols],
      box: [64, pass],
    },
  }));
  return [
    turn,
    {
      kernel: `mr_linear_packed_${most}`,
      grid: [blocksOf(part, call.gated !== undefined, packedRows) * splits, 1, 1],
      block: 320,
      cluster: splits,
      sharedBytes: others + wStages * 8 * slot,
      args: [
        ...[...x, i32(cols), ...product, i32(part.segments.length), ...segmentArgs(part.segments)],
        ...[i32(pass), i32(splits), i32(slot), i32(wStages), i32(xStages)],
      ],
      dependent: true,
    },
  ];
}

/** linear_gemm.cu, likewise. */
function manyLaunch(part: Part, gated: boolean, n: number, { properties }: LowerContext) {
  const [rows, stages] = n <= 512 ? [128, 6] : [256, 4];
  const pairs = Math.ceil(n / 256);
  const clusters = Math.min(Math.floor(properties.multiprocessors / 2), pairs * blocksOf(part, gated, rows));
  return {
    kernel: `mr_linear_gemm_${rows}`,
    grid: [2 * clusters, 1, 1] as const,
    block: 384,
    cluster: 2,
    sharedBytes: stages * (128 + rows) * 128 + 1024 + 8 * 16 * 40 * 4,
    rows,
    pass: 128,
    more: [i32(pairs)],
  };
}

function gemmLaunches(call: Call, part: Part, n: number, shared: Shared, context: LowerContext): Launch[] {
  const launches: Launch[] = [];
  let at = 0;
  const segments = part.segments.map((matrix): Matrix => {
    if (matrix.type === "BF16" || !shared.wide) return matrix;
    const wide: Matrix = { ...matrix, type: "BF16", address: shared.wide.address + BigInt(at) };
    const args = [i32(storageCodes[matrix.type]), ptr(matrix.address), i32(matrix.cols), ptr(wide.address)];
    const grid = [Math.ceil(unitsOf("BF16", matrix.cols) / 8), tilesOf(matrix.rows), 1] as const;
    launches.push({ kernel: "mr_linear_widen", grid, block: 256, sharedBytes: 0, args, dependent: true });
    at += wideBytes(matrix);
    return wide;
  });
  const gated = call.gated !== undefined;
  const { width: cols } = call.x;
  const { rows, pass, more, ...launch } =
    n <= mostFew ? fewLaunch(part, gated, n, launches.length > 0, cols, context) : manyLaunch(part, gated, n, context);
  const x = { address: call.x.address, sizes: [cols, n], strides: [2 * cols], box: [64, pass] };
  const maps = Array.from({ length: maxSegments }, (_, i) => {
    const segment = segments[Math.min(i, segments.length - 1)];
    const words = unitsOf("BF16", cols) * 256;
    const sizes = [words, tilesOf(segment.rows)];
    return { map: { address: segment.address, words: true, sizes, strides: [8 * words], box: [256, rows / 32] } };
  });
  const heights = Array.from({ length: maxSegments }, (_, i) => i32(segments[i]?.rows ?? 0));
  const [, , ...product] = productArgs(call, part, context);
  const args = [{ map: x }, ...maps, i32(cols), ...product, i32(segments.length), ...heights, ...more];
  launches.push({ ...launch, args, dependent: true });
  return launches;
}

interface Call {
  readonly x: Place;
  readonly y: Place;
  readonly bias: bigint;
  readonly gated?: number;
  readonly add: boolean;
  readonly norm?: FoldedNorm;
  readonly next?: FoldedNorm;
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

/** What every product's kernel begins with. */
function productArgs(call: Call, part: Part, context: LowerContext): Arg[] {
  const gated = call.gated !== undefined;
  const count = context.step.info + (call.x.rows ? 8n : 0n);
  return [
    ...[ptr(call.x.address), i32(call.x.width)],
    ...[ptr(call.y.address + BigInt(part.column * elementBytes(call.y))), i32(call.y.dtype === "f32" ? 1 : 0)],
    ...[i32(call.y.width), ptr(call.bias === 0n ? 0n : call.bias + BigInt(4 * part.column)), ptr(count)],
    ...[i32(gated ? 2 : call.add ? 1 : 0), i32(call.gated ?? 0), i32(gated ? part.rows / 2 : 0)],
  ];
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
    const call = {
      x: task.x,
      y,
      bias: task.bias(),
      gated: fused ? activation : undefined,
      add: task.epilogue === "add",
      norm: task.norm,
      next: task.next,
    };
    const launches = all.flatMap((part) => {
      if (shared.turned && n >= leastPacked && n <= mostPacked && packs(part, fused, task.x, context))
        return packedLaunches(call, part, n, shared.turned, context);
      const from = gemmFrom(part, task.x, context);
      return from !== undefined && n >= from
        ? gemmLaunches(call, part, n, shared, context)
        : [streamLaunch(call, part, n, shared, context)];
    });
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
  packedBytes(type, rows, cols) {
    return Math.ceil((tilesOf(rows) * unitsOf(type, cols) * units[type].bytes) / 256) * 256;
  },
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
