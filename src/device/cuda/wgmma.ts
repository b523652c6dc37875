// Owns: launches of products on Hopper's wgmma: linear_few.cu for up to 128 tokens, linear_gemm.cu beyond them, linear_packed.cu for
// up to 64 where weights are packed; how each cuts a product into blocks. The sizes here mirror those files.
import { type Area, type Launch, type LowerContext, type Matrix, type Place, storageCodes } from "./launch.js";
import {
  type Call,
  i32,
  maxSegments,
  type Part,
  packedBytes,
  productArgs,
  ptr,
  type Shared,
  segmentArgs,
  tileRows,
  tilesOf,
  units,
  unitsOf,
} from "./products.js";

/** Weights of other formats are widened to bf16 at every step that multiplies them on wgmma: at most so many bytes. */
const mostWide = 512 * 1024 * 1024;
const wideBytes = ({ rows, cols }: Matrix): number => packedBytes("BF16", rows, cols);

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

/** Room for weights in bf16 and for x in other orders, where one of the parts may want them. */
export function reserveWgmma(
  all: readonly Part[],
  gated: boolean,
  x: Place,
  context: LowerContext,
): Pick<Shared, "wide" | "turned"> {
  const limit = x.rows ? context.limits.maxRows : context.limits.maxTokens;
  const gemmed = all.filter((part) => limit >= (gemmFrom(part, x, context) ?? Number.POSITIVE_INFINITY));
  const narrow = gemmed.map((part) => part.segments.filter(({ type }) => type !== "BF16"));
  const wide = Math.max(0, ...narrow.map((some) => some.reduce((sum, matrix) => sum + wideBytes(matrix), 0)));
  const turning = Math.min(limit, mostPacked);
  const turned = all.some((part) => packs(part, gated, x, context)) && limit >= leastPacked;
  return {
    wide: wide > 0 ? context.shared("linear.wide", wide) : undefined,
    turned: turned ? context.shared("linear.turned", 4 * turning * x.width) : undefined,
  };
}

/** The part's product on wgmma, or undefined where weights are better streamed. */
export function wgmmaLaunches(
  call: Call,
  part: Part,
  n: number,
  shared: Shared,
  context: LowerContext,
): Launch[] | undefined {
  if (shared.turned && n >= leastPacked && n <= mostPacked && packs(part, call.gated !== undefined, call.x, context))
    return packedLaunches(call, part, n, shared.turned, context);
  const from = gemmFrom(part, call.x, context);
  return from !== undefined && n >= from ? gemmLaunches(call, part, n, shared, context) : undefined;
}
