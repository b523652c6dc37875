// Owns: which launches of a step of one token become one: kernels/cuda/walk.cuh goes through them as instructions, each with the
// parameters of the launch it stands for, that leave their results for each other in exchanges. Only whole steps: from the
// first product to the last, with nothing between that has no instruction. The sizes here mirror walk.cuh.
import { InternalError } from "../../base/errors.js";
import type { Arg, CudaProperties, Launch, TensorMap } from "./launch.js";
import type { PlannedArea, Workspace } from "./memory.js";
import { tensorMapBytes } from "./native.js";

const warps = 8;
const threads = 32 * (warps + 1 + 3);
const parametersAt = 40;
const instructionBytes = 384;
const stride = instructionBytes + 2 * tensorMapBytes;
const exchanges = 8;
/** Shared memory that the kernel declares itself. */
const ownShared = 7168;
/** Room for keys or values of 16 positions of the widest head, a few times. */
const leastRing = 16384;
/** Epilogues of mr_linear_1. */
const [addY, gatedY] = [1, 2];
/** Storage codes of units of 256 values. */
const superBlocks = new Set([8, 9, 10]);

/** What an instruction says beside its launches' parameters. */
interface Instruction {
  readonly op: "linear" | "attend";
  /** The instruction whose exchange it reads; −1: it reads x from memory. */
  readonly from: number;
  readonly logSlices: number;
  readonly logGrain: number;
  /** Tiles of every block; `more` blocks from `start` on have one more. */
  readonly each: number;
  readonly more: number;
  readonly start: number;
  readonly residual: bigint;
  readonly args: readonly Arg[];
  readonly maps: readonly TensorMap[];
  /** Bytes that each warp wants beside its ring. */
  readonly corner: number;
}

export class Walk {
  /** [instructions | blocks that have begun | exchanges] */
  private readonly area: PlannedArea;
  private readonly begunAt: number;
  private readonly pairs: number;
  private readonly tiles: number;

  /** most: launches of a step; widest: values that one of them leaves. */
  constructor(
    workspace: Workspace,
    private readonly most: number,
    widest: number,
  ) {
    this.pairs = Math.ceil(widest / 32) * 16;
    this.tiles = this.pairs / 8;
    this.begunAt = most * stride;
    this.area = workspace.add(this.begunAt + 256 + 8 * exchanges * (this.pairs + this.tiles));
  }

  /**
   * The launches of a step of one token, those that can be as one; or as they were. write: takes bytes to the device, before any
   * launch that is made later.
   */
  of(
    launches: readonly Launch[],
    properties: CudaProperties,
    write: (to: bigint, bytes: Uint8Array) => void,
    encodeMap: (map: TensorMap) => Uint8Array,
  ): readonly Launch[] {
    const first = launches.findIndex(({ kernel }) => kernel === "mr_linear_1");
    const last = launches.findLastIndex(({ kernel }) => kernel === "mr_linear_1");
    const kind = attentionKind(launches);
    const positions = new Set(launches.filter(({ kernel }) => kernel === "mr_qkv").map(({ args }) => ptr(args[1])));
    if (first < 0 || kind === undefined || positions.size !== 1 || properties.capability !== 90) return launches;
    const instructions = new Translation(2 * this.pairs, properties).of(launches.slice(first, last + 1));
    if (!instructions || instructions.length > this.most) return launches;
    const corner = Math.max(...instructions.map((one) => one.corner));
    const dynamic = properties.sharedBytes - ownShared;
    if (Math.floor(dynamic / warps) - corner < leastRing) return launches;
    const bytes = new Uint8Array(stride * instructions.length);
    for (const [i, one] of instructions.entries()) encode(one, bytes.subarray(i * stride, (i + 1) * stride), encodeMap);
    const { address } = this.area;
    write(address, bytes);
    const walk: Launch = {
      kernel: `mr_walk_${kind}`,
      grid: [properties.multiprocessors, 1, 1],
      block: threads,
      sharedBytes: dynamic,
      args: [
        ...[{ ptr: address }, { i32: instructions.length }, { ptr: [...positions][0] }],
        ...[{ ptr: address + BigInt(this.begunAt) }, { ptr: address + BigInt(this.begunAt + 256) }],
        ...[{ i32: this.pairs }, { i32: this.tiles }, { i32: corner }],
      ],
      dependent: true,
      together: true,
    };
    const before = launches.slice(0, first).filter(({ kernel }) => kernel !== "mr_attention_plan");
    return [...before, walk, ...launches.slice(last + 1)];
  }
}

/** "f16_128": the cache's type and the heads' size, where all attention of the step is of one kind that walk.cuh has. */
function attentionKind(launches: readonly Launch[]): string | undefined {
  const kinds = new Set(
    launches.filter(({ kernel }) => /^mr_attention_(?!plan)/.test(kernel)).map(({ kernel }) => kernel),
  );
  if (kinds.size !== 1) return undefined;
  return /^mr_attention_decode_boxes_((?:f16|bf16)_(?:64|128))$/.exec([...kinds][0])?.[1];
}

function int(arg: Arg): number {
  if ("i32" in arg) return arg.i32;
  throw new InternalError("a parameter of a launch is not the number it should be");
}
function ptr(arg: Arg): bigint {
  if ("ptr" in arg) return arg.ptr;
  throw new InternalError("a parameter of a launch is not the address it should be");
}

/** Launches as instructions; undefined where one has none. */
class Translation {
  private readonly out: Instruction[] = [];
  /** By the address where its launch would have left them: the instruction that leaves values. */
  private readonly leaves = new Map<bigint, number>();
  /** Copies of the step's only row are none: the place of the copy → that of the row. */
  private readonly copies = new Map<bigint, bigint>();
  /** By block: values of weights that it reads beyond what every block does. */
  private readonly loads: number[];

  constructor(
    private readonly widest: number,
    private readonly properties: CudaProperties,
  ) {
    this.loads = new Array<number>(properties.multiprocessors).fill(0);
  }

  of(launches: readonly Launch[]): Instruction[] | undefined {
    for (let i = 0; i < launches.length; i++) {
      const one = launches[i];
      const next = launches[i + 1];
      if (one.kernel === "mr_gather") {
        this.copies.set(ptr(one.args[2]), ptr(one.args[1]));
        continue;
      }
      let made: Instruction | undefined;
      if (one.kernel === "mr_linear_1") made = this.linear(one);
      else if (one.kernel === "mr_qkv" && next?.kernel.startsWith("mr_attention_decode_boxes_")) {
        made = this.attend(one, next);
        i++;
      }
      if (!made || (made.from >= 0 && this.out.length - made.from >= exchanges)) return undefined;
      this.out.push(made);
    }
    return this.out;
  }

  /** From which block on `count` blocks have had least. */
  private lightest(count: number): number {
    const { loads } = this;
    const sums = loads.map((_, start) => {
      let sum = 0;
      for (let i = 0; i < count; i++) sum += loads[(start + i) % loads.length];
      return sum;
    });
    return sums.indexOf(Math.min(...sums));
  }

  private source(address: bigint): number {
    return this.leaves.get(this.copies.get(address) ?? address) ?? -1;
  }

  /** mr_linear_1's parameters by their places. */
  private linear({ args, grid }: Launch): Instruction | undefined {
    const [x, y, squares, next, nextSquares] = [0, 2, 10, 14, 15].map((i) => ptr(args[i]));
    const [cols, yF32, epilogue, half, segments] = [1, 3, 7, 9, 16].map((i) => int(args[i]));
    const rows = Array.from({ length: segments }, (_, s) => int(args[19 + 3 * s]));
    const types = Array.from({ length: segments }, (_, s) => int(args[18 + 3 * s]));
    const width = epilogue === gatedY ? half : rows.reduce((sum, one) => sum + one, 0);
    const leaves = next !== 0n || !yF32;
    const whole = rows.slice(0, -1).every((one) => one % 16 === 0) && width % 2 === 0;
    if (cols % 8 !== 0 || (leaves && (!whole || width > this.widest))) return undefined;
    const from = this.source(x);
    if (squares !== 0n && (from < 0 || from !== this.leaves.get(squares))) return undefined;
    const residual = this.copies.get(y) ?? y;
    this.copies.delete(y);

    const logGrain = types.some((type) => superBlocks.has(type)) ? 8 : 6;
    const grains = Math.ceil(cols / 2 ** logGrain);
    const halves = epilogue === gatedY ? 2 : 1;
    const logSlices = Math.floor(Math.log2(Math.min(warps, grains * halves)));
    const slice = Math.ceil(grains / (2 ** logSlices / halves)) * 2 ** logGrain;
    const corner = 2 * Math.ceil(slice / 256) * 256;
    const number = this.out.length;
    if (next !== 0n) this.leaves.set(next, number).set(nextSquares, number);
    if (!yF32) this.leaves.set(y, number);
    const reads = epilogue === addY ? residual : 0n;
    const each = Math.floor(grid[0] / this.loads.length);
    const more = grid[0] % this.loads.length;
    // Who adds to the residual row has written what it adds to.
    const start = epilogue === addY ? 0 : this.lightest(more);
    for (let i = 0; i < more; i++) this.loads[(start + i) % this.loads.length] += cols * halves;
    return { op: "linear", from, logSlices, logGrain, each, more, start, residual: reads, args, maps: [], corner };
  }

  /** mr_qkv's parameters, then those of attention. */
  private attend(turn: Launch, attention: Launch): Instruction | undefined {
    const [wide, heads, kvHeads, d, valueD, rotary, interleaved] = [4, 7, 8, 9, 10, 11, 12].map((i) =>
      int(turn.args[i]),
    );
    const group = heads / kvHeads;
    const from = this.source(ptr(turn.args[3]));
    const whole = rotary === d && valueD === d && !interleaved && !wide && ptr(turn.args[13]) !== 0n;
    if (!whole || from < 0 || group > 8 || kvHeads > this.properties.multiprocessors) return undefined;
    if (heads * d > this.widest) return undefined;
    const plain = attention.args.filter((arg) => !("map" in arg));
    const maps = attention.args.flatMap((arg) => ("map" in arg ? [{ ...arg.map, box: [64, 16, 1] }] : []));
    this.leaves.set(ptr(attention.args[1]), this.out.length);
    const args = [...turn.args, ...plain];
    const corner = 4 * group * d;
    return {
      op: "attend",
      from,
      logSlices: 0,
      logGrain: 0,
      each: 0,
      more: 0,
      start: 0,
      residual: 0n,
      args,
      maps,
      corner,
    };
  }
}

/** As C lays out a struct of these members. */
function encode(one: Instruction, to: Uint8Array, encodeMap: (map: TensorMap) => Uint8Array): void {
  const view = new DataView(to.buffer, to.byteOffset, to.byteLength);
  const head = [one.op === "linear" ? 0 : 1, one.from, one.logSlices, one.logGrain, one.each, one.more, one.start];
  for (const [i, value] of head.entries()) view.setInt32(4 * i, value, true);
  view.setBigUint64(32, one.residual, true);
  let at = parametersAt;
  for (const arg of one.args) {
    const size = "i32" in arg || "f32" in arg ? 4 : 8;
    at = Math.ceil(at / size) * size;
    if ("ptr" in arg) view.setBigUint64(at, arg.ptr, true);
    else if ("i64" in arg) view.setBigInt64(at, arg.i64, true);
    else if ("i32" in arg) view.setInt32(at, arg.i32, true);
    else if ("f32" in arg) view.setFloat32(at, arg.f32, true);
    else throw new InternalError("an instruction takes no such parameter");
    at += size;
  }
  if (at > instructionBytes) throw new InternalError(`an instruction has ${at} bytes`);
  for (const [i, map] of one.maps.entries()) to.set(encodeMap(map), instructionBytes + i * tensorMapBytes);
}
