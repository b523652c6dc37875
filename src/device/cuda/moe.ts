// Owns: launches of kernels/cuda/moe*.cu: routing, and a mixture of experts' MLPs over assignments (a token and one of its
// experts) sorted by expert. The sizes of the products are those of linear.ts.
import type { Activation } from "../../plan/ops/elementwise.js";
import {
  type Area,
  type Arg,
  activationCodes,
  type Launch,
  type LowerContext,
  type Place,
  storageCodes,
} from "./launch.js";
import { cutFor, launchBytes, streamFor } from "./linear.js";
import { wide } from "./lowering.js";
import type { Stack } from "./weights.js";

export interface RouteTask {
  readonly logits: Place;
  readonly bias: () => bigint;
  /** i32 and f32 [n, used] */
  readonly experts: Place;
  readonly weights: Place;
  readonly softmax: boolean;
  readonly normalize: boolean;
  readonly scale: number;
}

export interface MoeTask {
  /** bf16 [n, cols] */
  readonly x: Place;
  readonly experts: Place;
  readonly weights: Place;
  readonly gate: Stack;
  readonly up: Stack;
  readonly down: Stack;
  readonly kind: Activation;
  readonly y: Place;
}

type Lowered = (bucket: { tokens: number; rows: number }) => readonly Launch[];

const ptr = (address: bigint): Arg => ({ ptr: address });
const i32 = (value: number): Arg => ({ i32: value });
/** Few assignments an expert: passes of 8, else of 64. */
const fewest = 8;

export function route(task: RouteTask, { step }: LowerContext): Lowered {
  const { logits, experts, weights } = task;
  return (bucket) => {
    const args: Arg[] = [
      ...[ptr(step.info), i32(logits.rows ? 1 : 0), ptr(logits.address), wide(logits), i32(logits.width)],
      ...[ptr(task.bias()), i32(experts.width), i32(task.softmax ? 1 : 0), i32(task.normalize ? 1 : 0)],
      ...[{ f32: task.scale }, ptr(experts.address), ptr(weights.address)],
    ];
    const grid = [logits.rows ? bucket.rows : bucket.tokens, 1, 1] as const;
    return [{ kernel: "mr_route", grid, block: 32, sharedBytes: 8 * logits.width, args, dependent: true }];
  };
}

export function moe(task: MoeTask, context: LowerContext): Lowered {
  const { x, experts, y, gate, up, down } = task;
  const used = experts.width;
  const most = used * (x.rows ? context.limits.maxRows : context.limits.maxTokens);
  const { count } = gate;
  const room = {
    counts: context.scratch(4 * count),
    start: context.scratch(4 * (count + 1)),
    place: context.scratch(4 * most),
    items: context.scratch(4 + 8 * itemsOf(most, count, fewest)),
    sorted: context.scratch(2 * most * gate.cols + 256),
    hidden: context.scratch(2 * most * gate.rows + 256),
    out: context.scratch(4 * most * down.rows),
  };
  return (bucket) => {
    const n = x.rows ? bucket.rows : bucket.tokens;
    const assignments = n * used;
    const tokens = assignments > fewest * count ? 64 : fewest;
    const items = itemsOf(assignments, count, tokens);
    const step = [ptr(context.step.info), i32(x.rows ? 1 : 0)];
    const lists = [ptr(room.counts.address), ptr(room.start.address)];
    const launch = (kernel: string, grid: Launch["grid"], block: number, args: Arg[], sharedBytes = 0): Launch => {
      return { kernel, grid, block, sharedBytes, args: [...step, ...args], dependent: true };
    };
    return [
      launch(
        "mr_moe_sort",
        [1, 1, 1],
        1024,
        [
          ...[ptr(experts.address), i32(used), i32(count), i32(tokens), ...lists],
          ...[ptr(room.place.address), ptr(room.items.address)],
        ],
        8 * count,
      ),
      launch("mr_moe_gather", [assignments, 1, 1], 128, [
        ...[ptr(x.address), i32(x.width), i32(used), ptr(room.place.address), ptr(room.sorted.address)],
      ]),
      product({ from: room.sorted, to: room.hidden, first: gate, second: up, kind: task.kind }, room, tokens, items),
      product({ from: room.hidden, to: room.out, first: down }, room, tokens, items),
      launch("mr_moe_sum", [Math.ceil(y.width / 256), n, 1], 256, [
        ...[ptr(room.out.address), i32(y.width), i32(used), ptr(room.place.address), ptr(task.weights.address)],
        ...[ptr(y.address), wide(y)],
      ]),
    ];
  };
}

/** Passes of at most `tokens` assignments over all experts, however they are spread. */
function itemsOf(assignments: number, experts: number, tokens: number): number {
  return Math.min(experts, assignments) + Math.floor(assignments / tokens);
}

interface Product {
  readonly from: Area;
  readonly to: Area;
  readonly first: Stack;
  /** The up's, where first is the gate's. */
  readonly second?: Stack;
  readonly kind?: Activation;
}

function product(
  { from, to, first, second, kind }: Product,
  lists: { counts: Area; start: Area; items: Area },
  tokens: number,
  items: number,
): Launch {
  const gated = second !== undefined;
  const stream = streamFor(tokens);
  const cut = cutFor(stream, first.rows, gated);
  const stackArgs = ({ address, apart, type }: Stack) => [
    ptr(address),
    { i64: BigInt(apart) },
    i32(storageCodes[type]),
  ];
  const args: Arg[] = [
    ...[ptr(from.address), i32(first.cols), ptr(to.address), i32(gated ? 0 : 1), i32(first.rows)],
    ...[i32(gated ? 1 : 0), i32(kind === undefined ? 0 : activationCodes[kind])],
    ...[...stackArgs(first), ...stackArgs(second ?? first)],
    ...[ptr(lists.counts.address), ptr(lists.start.address), ptr(lists.items.address), i32(cut.splits), i32(cut.wk)],
  ];
  const sharedBytes = launchBytes(stream, cut, true);
  return { kernel: `mr_moe_${tokens}`, grid: [cut.groups, 1, items], block: 256, sharedBytes, args, dependent: true };
}
