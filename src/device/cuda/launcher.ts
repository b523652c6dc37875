// Owns: launches as the driver takes them: each is laid out once in memory that does not move, so that starting it is one
// foreign call. A sequence of launches can be played directly or recorded as a graph.
//
//   a launch:  | CUlaunchConfig 56 | pad 8 | 3 attributes of 72 | pointers to parameters | parameters |
import { check } from "../../base/errors.js";
import type { Arg, Launch } from "./launch.js";
import { type Cuda, tensorMapBytes } from "./native.js";

const attributesAt = 64;
const pointersAt = attributesAt + 3 * 72;
/** CUlaunchAttributeID of cuda.h. */
const cooperative = 2;
const clusterDimension = 4;
const programmaticSerialization = 6;

/** Launches in order, ready to be played. */
export class Sequence {
  private readonly memory: Uint8Array;
  private readonly entries: { config: number; func: number; parameters: number; name: string }[] = [];

  /** dependents: programmatic dependent launch where a launch asks for it and the GPU has it. */
  constructor(
    private readonly cuda: Cuda,
    launches: readonly Launch[],
    dependents: boolean,
  ) {
    const sizes = launches.map(({ args }) => pointersAt + args.reduce((sum, arg) => sum + 8 + room(arg), 64));
    const memory = new Uint8Array(sizes.reduce((sum, size) => sum + Math.ceil(size / 64) * 64, 64));
    this.memory = memory.subarray((64 - (cuda.addressOf(memory) % 64)) % 64);
    const base = cuda.addressOf(this.memory);
    let at = 0;
    for (const [i, launch] of launches.entries()) {
      this.encode(launch, at, base, dependents && cuda.properties.capability >= 90);
      this.entries.push({
        config: base + at,
        func: cuda.function(launch.kernel, launch.sharedBytes),
        parameters: base + at + pointersAt,
        name: launch.kernel,
      });
      at += Math.ceil(sizes[i] / 64) * 64;
    }
  }

  play(): void {
    for (const { config, func, parameters, name } of this.entries) this.cuda.launch(config, func, parameters, name);
  }

  private encode(launch: Launch, at: number, base: number, dependents: boolean): void {
    const view = new DataView(this.memory.buffer, this.memory.byteOffset + at);
    for (const [i, n] of [...launch.grid, launch.block, 1, 1, launch.sharedBytes].entries()) {
      check(n >= 0 && Number.isInteger(n) && (n > 0 || i === 6), `${launch.kernel}: a size of its launch is ${n}`);
      view.setUint32(4 * i, n, true);
    }
    view.setBigUint64(32, BigInt(this.cuda.stream), true);
    view.setBigUint64(40, BigInt(base + at + attributesAt), true);
    let attributes = 0;
    const attribute = (id: number, values: readonly number[]) => {
      const from = attributesAt + 72 * attributes++;
      view.setUint32(from, id, true);
      values.forEach((value, i) => {
        view.setUint32(from + 8 + 4 * i, value, true);
      });
    };
    if (launch.dependent && dependents) attribute(programmaticSerialization, [1]);
    if (launch.cluster && launch.cluster > 1) attribute(clusterDimension, [launch.cluster, 1, 1]);
    if (launch.together) attribute(cooperative, [1]);
    view.setUint32(48, attributes, true);
    let valueAt = Math.ceil((pointersAt + 8 * launch.args.length) / 64) * 64;
    for (const [i, arg] of launch.args.entries()) {
      if (struct(arg)) valueAt = Math.ceil(valueAt / 64) * 64;
      view.setBigUint64(pointersAt + 8 * i, BigInt(base + at + valueAt), true);
      this.put(view, at, valueAt, arg);
      valueAt += struct(arg) ? Math.ceil(struct(arg) / 64) * 64 : 8;
    }
  }

  private put(view: DataView, launchAt: number, at: number, arg: Arg): void {
    if ("ptr" in arg) view.setBigUint64(at, arg.ptr, true);
    else if ("i32" in arg) view.setInt32(at, arg.i32, true);
    else if ("f32" in arg) view.setFloat32(at, arg.f32, true);
    else if ("i64" in arg) view.setBigInt64(at, arg.i64, true);
    else this.memory.set("map" in arg ? this.cuda.tensorMap(arg.map) : arg.bytes, launchAt + at);
  }
}

/** Bytes that a parameter takes at most, its way to the next multiple of 64 included. */
function room(arg: Arg): number {
  return struct(arg) ? Math.ceil(struct(arg) / 64) * 64 + 64 : 8;
}

/** Bytes of a parameter that is a struct, 0 for others. */
function struct(arg: Arg): number {
  return "map" in arg ? tensorMapBytes : "bytes" in arg ? arg.bytes.length : 0;
}
