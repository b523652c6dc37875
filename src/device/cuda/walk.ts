// Owns: which launches of a step of one token become one: kernels/cuda/walk.cuh goes through them as instructions, each with the
// parameters of the launch it stands for. Only whole steps: from the first product to the last, with nothing between that
// has no instruction. The sizes here mirror walk.cuh.
import { InternalError } from "../../base/errors.js";
import type { Arg, CudaProperties, Launch, TensorMap } from "./launch.js";
import type { PlannedArea, Workspace } from "./memory.js";
import { tensorMapBytes } from "./native.js";

const warps = 16;
const threads = 32 * (warps + 4);
const parametersAt = 32;
const instructionBytes = 384;
const stride = instructionBytes + 2 * tensorMapBytes;
/** Shared memory that the kernel declares itself. */
const ownShared = 14 * 1024;
const ops = { linear: 0, attend: 1, copy: 2 } as const;
const gatedEpilogue = 2;
/** Storage codes of units of 256 values. */
const superBlocks = new Set([8, 9, 10]);

/** What an instruction says beside its launches' parameters. */
interface Instruction {
  readonly op: keyof typeof ops;
  /** It need not wait for the one before. */
  readonly free?: boolean;
  readonly logSlices?: number;
  readonly tiles?: number;
  readonly grain?: number;
  readonly args: readonly Arg[];
  readonly maps: readonly TensorMap[];
  /** Bytes that each warp wants beside its ring. */
  readonly corner: number;
}

export class Walk {
  /** [instructions], then the counters by which blocks tell each other. */
  private readonly area: PlannedArea;
  private readonly syncAt: number;
  /** Of the areas that must be zero before the first step. */
  readonly bytes: number;

  /** most: launches of a step. */
  constructor(
    workspace: Workspace,
    private readonly most: number,
  ) {
    this.syncAt = most * stride;
    this.bytes = this.syncAt + 128 * (most + 1);
    this.area = workspace.add(this.bytes);
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
    if (first < 0 || kind === undefined || properties.capability !== 90) return launches;
    const instructions = translate(launches.slice(first, last + 1), properties);
    if (!instructions || instructions.length > this.most) return launches;
    const corner = Math.ceil(Math.max(...instructions.map((one) => one.corner)) / 128) * 128;
    const dynamic = properties.sharedBytes - ownShared;
    const ring = Math.floor(dynamic / warps) - corner;
    if (ring < leastRing) return launches;
    const bytes = new Uint8Array(stride * instructions.length);
    for (const [i, one] of instructions.entries()) encode(one, bytes.subarray(i * stride, (i + 1) * stride), encodeMap);
    write(this.area.address, bytes);
    const others = launches.slice(0, first).filter(({ kernel }) => kernel !== "mr_attention_plan");
    const walk: Launch = {
      kernel: `mr_walk_${kind}`,
      grid: [properties.multiprocessors, 1, 1],
      block: threads,
      sharedBytes: dynamic,
      args: [
        ...[{ ptr: this.area.address }, { i32: instructions.length }, { ptr: this.area.address + BigInt(this.syncAt) }],
        ...[{ i32: corner }, { i32: ring >= 3 * 4096 ? 2 : 1 }],
      ],
      dependent: true,
    };
    return [...others, walk, ...launches.slice(last + 1)];
  }
}

/** Room for keys or values of 16 positions of the widest head, twice. */
const leastRing = 8192;

/** "f16_128": the cache's type and the heads' size, where all attention of the step is of one kind that walk.cuh has. */
function attentionKind(launches: readonly Launch[]): string | undefined {
  const kinds = new Set(
    launches.filter(({ kernel }) => /^mr_attention_(?!plan)/.test(kernel)).map(({ kernel }) => kernel),
  );
  if (kinds.size !== 1) return undefined;
  return /^mr_attention_decode_boxes_((?:f16|bf16)_(?:64|128))$/.exec([...kinds][0])?.[1];
}

function translate(launches: readonly Launch[], properties: CudaProperties): Instruction[] | undefined {
  const out: Instruction[] = [];
  for (let i = 0; i < launches.length; i++) {
    const one = launches[i];
    const next = launches[i + 1];
    let made: Instruction | undefined;
    if (one.kernel === "mr_linear_1") made = linear(one);
    else if (one.kernel === "mr_gather") made = copy(one, out.at(-1)?.op === "copy");
    else if (one.kernel === "mr_qkv" && next?.kernel.startsWith("mr_attention_decode_boxes_")) {
      made = attend(one, next, properties);
      i++;
    }
    if (!made) return undefined;
    out.push(made);
  }
  return out;
}

function int(arg: Arg): number {
  if ("i32" in arg) return arg.i32;
  throw new InternalError("a parameter of a launch is not the number it should be");
}
const isNull = (arg: Arg): boolean => "ptr" in arg && arg.ptr === 0n;

/** mr_linear_1's parameters by their places. */
function linear({ args, grid }: Launch): Instruction | undefined {
  const [cols, epilogue, segments] = [int(args[1]), int(args[7]), int(args[16])];
  if (cols % 8 !== 0) return undefined;
  const types = Array.from({ length: segments }, (_, s) => int(args[18 + 3 * s]));
  const grain = types.some((type) => superBlocks.has(type)) ? 256 : 64;
  const grains = Math.ceil(cols / grain);
  const halves = epilogue === gatedEpilogue ? 2 : 1;
  const logSlices = Math.floor(Math.log2(Math.min(warps, grains * halves)));
  const slice = Math.ceil(grains / (2 ** logSlices / halves)) * grain;
  const corner = 2 * Math.ceil(slice / 256) * 256;
  return { op: "linear", logSlices, tiles: grid[0], grain, args, maps: [], corner };
}

function copy({ args }: Launch, free: boolean): Instruction | undefined {
  return int(args[4]) % 16 === 0 ? { op: "copy", free, args, maps: [], corner: 0 } : undefined;
}

/** mr_qkv's parameters, then those of attention. */
function attend(turn: Launch, attention: Launch, { multiprocessors }: CudaProperties): Instruction | undefined {
  const [wide, heads, kvHeads, d, valueD] = [4, 7, 8, 9, 10].map((i) => int(turn.args[i]));
  const [rotary, interleaved] = [int(turn.args[11]), int(turn.args[12])];
  const group = heads / kvHeads;
  if (wide || interleaved || rotary !== d || valueD !== d || group > 8 || kvHeads > multiprocessors) return undefined;
  if (isNull(turn.args[13])) return undefined;
  const plain = attention.args.filter((arg) => !("map" in arg));
  const maps = attention.args.flatMap((arg) => ("map" in arg ? [{ ...arg.map, box: [64, 16, 1] }] : []));
  return { op: "attend", args: [...turn.args, ...plain], maps, corner: 4 * group * d };
}

/** As C lays out a struct of these members. */
function encode(one: Instruction, to: Uint8Array, encodeMap: (map: TensorMap) => Uint8Array): void {
  const view = new DataView(to.buffer, to.byteOffset, to.byteLength);
  const head = [ops[one.op], one.free ? 1 : 0, one.logSlices ?? 0, one.tiles ?? 0, one.grain ?? 0];
  for (const [i, value] of head.entries()) view.setInt32(4 * i, value, true);
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
