// Owns: launches of kernels/cuda/linear_*.cu: packing, products with packed weights of every format, embeddings. The sizes
// here mirror linear_layout.cuh and linear_stream.cuh.
import type { StorageType } from "../../base/dtype.js";
import { InternalError } from "../../base/errors.js";
import {
  type Area,
  type Arg,
  activationCodes,
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
const unitsOf = (type: StorageType, cols: number): number => Math.ceil(cols / units[type].k);
const elementBytes = (place: Place): number => (place.dtype === "f32" ? 4 : 2);

/** A kernel for up to `tokens` tokens a pass: Shape of linear_stream.cuh. */
interface Stream {
  readonly tokens: number;
  /** Tiles of 16 rows that a warp holds. */
  readonly tiles: number;
  readonly warpBytes: number;
}
const streams: readonly Stream[] = [
  { tokens: 8, tiles: 1, warpBytes: 8192 + 1152 },
  ...[16, 32, 64].map((tokens) => ({ tokens, tiles: 2, warpBytes: 13824 + 2 * 1152 })),
];
const warps = 8;

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
  /** Rows of a block. */
  readonly rows: number;
  readonly groups: number;
}

function cut(stream: Stream, part: Part, gated: boolean): Cut {
  const slices = gated ? 4 : 8;
  const wk = stream.tiles > 1 ? 2 : slices;
  const tiles = (warps / wk) * stream.tiles;
  const rows = tiles * tileRows;
  const groups = gated
    ? Math.ceil(part.rows / 2 / (rows / 2))
    : part.segments.reduce((sum, { rows }) => sum + Math.ceil(tilesOf(rows) / tiles), 0);
  return { wk, splits: slices / wk, rows, groups };
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
}

function reserve(all: readonly Part[], gated: boolean, context: LowerContext): Shared {
  let partial = 256;
  let tickets = 256;
  for (const part of all) {
    for (const stream of streams) {
      const { groups, splits, rows } = cut(stream, part, gated);
      if (splits > 1) partial = Math.max(partial, groups * splits * stream.tokens * rows * 4);
      tickets = Math.max(tickets, groups * 4);
    }
  }
  return {
    partial: context.shared("linear.partial", partial),
    tickets: context.shared("linear.tickets", tickets, true),
  };
}

interface StreamCall {
  readonly x: Place;
  readonly y: Place;
  readonly bias: bigint;
  readonly gated?: number;
  readonly add: boolean;
}

function streamLaunch(call: StreamCall, part: Part, n: number, shared: Shared, context: LowerContext): Launch {
  const gated = call.gated !== undefined;
  const stream = streams.find(({ tokens }) => n <= tokens) ?? streams[streams.length - 1];
  const { wk, splits, rows, groups } = cut(stream, part, gated);
  const passes = Math.ceil(n / stream.tokens);
  const alone = splits === 1 || passes > 1;
  const count = context.step.info + (call.x.rows ? 8n : 0n);
  const args = [
    ...[ptr(call.x.address), i32(call.x.width)],
    ...[ptr(call.y.address + BigInt(part.column * elementBytes(call.y))), i32(call.y.dtype === "f32" ? 1 : 0)],
    ...[i32(call.y.width), ptr(call.bias === 0n ? 0n : call.bias + BigInt(4 * part.column)), ptr(count)],
    ...[i32(gated ? 2 : call.add ? 1 : 0), i32(call.gated ?? 0), i32(gated ? part.rows / 2 : 0), i32(splits), i32(wk)],
    ...[ptr(shared.partial.address), ptr(shared.tickets.address)],
    ...[i32(part.segments.length), ...segmentArgs(part.segments)],
  ];
  return {
    kernel: `mr_linear_${stream.tokens}`,
    grid: [groups, alone ? 1 : splits, passes],
    block: 32 * warps,
    sharedBytes: warps * stream.warpBytes + (alone && splits > 1 ? stream.tokens * rows * 4 : 0),
    args,
    dependent: true,
  };
}

function lowerLinear(task: LinearTask, context: LowerContext) {
  if (task.norm) throw new InternalError("linear kernels take no norm");
  const half = task.y.width;
  const activation = typeof task.epilogue === "string" ? undefined : activationCodes[task.epilogue.gated];
  const fused = activation !== undefined && pairsUp(task.segments, half);
  const all = fused ? [{ segments: task.segments, column: 0, rows: 2 * half }] : parts(task.segments);
  const shared = reserve(all, fused, context);
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
    };
    const launches = all.map((part) => streamLaunch(call, part, n, shared, context));
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
  fusesNorm: false,
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
