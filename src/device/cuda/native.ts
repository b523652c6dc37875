// Owns: the binding to NVIDIA's driver (libcuda.so.1), which is all that this device needs on a machine, and the kernels'
// modules of build/cuda. The only file of this device that touches koffi. Addresses and handles are plain numbers here:
// device addresses have at most 48 bits.
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { InternalError, UserError } from "../../base/errors.js";
import type { CudaProperties, TensorMap } from "./launch.js";

const buildDir = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..", "build", "cuda");

/** CUdevice_attribute numbers of cuda.h. */
const attributes = { clock: 13, multiprocessors: 16, l2: 38, major: 75, minor: 76, sharedOptin: 97 };
const notReady = 600;
/** sizeof(CUtensorMap). */
export const tensorMapBytes = 128;

/** A fault of the device or the driver: nothing that ran in this context can be trusted any more. */
export class CudaError extends InternalError {
  constructor(
    message: string,
    readonly code: number,
  ) {
    super(message);
    this.name = "CudaError";
  }
}

type Call = (...args: (number | bigint | ArrayBufferView | string | null)[]) => number;

const signatures = {
  cuInit: ["uint32_t"],
  cuDeviceGetCount: ["void*"],
  cuDeviceGet: ["void*", "int"],
  cuDeviceGetName: ["void*", "int", "int"],
  cuDeviceGetAttribute: ["void*", "int", "int"],
  cuDevicePrimaryCtxRetain: ["void*", "int"],
  cuDevicePrimaryCtxRelease_v2: ["int"],
  cuCtxSetCurrent: ["uint64_t"],
  cuMemGetInfo_v2: ["void*", "void*"],
  cuMemAlloc_v2: ["void*", "uint64_t"],
  cuMemFree_v2: ["uint64_t"],
  cuMemHostAlloc: ["void*", "uint64_t", "uint32_t"],
  cuMemFreeHost: ["uint64_t"],
  cuMemcpyHtoDAsync_v2: ["uint64_t", "uint64_t", "uint64_t", "uint64_t"],
  cuMemcpyDtoHAsync_v2: ["uint64_t", "uint64_t", "uint64_t", "uint64_t"],
  cuMemcpyDtoDAsync_v2: ["uint64_t", "uint64_t", "uint64_t", "uint64_t"],
  cuMemsetD8Async: ["uint64_t", "uint8_t", "uint64_t", "uint64_t"],
  cuStreamCreate: ["void*", "uint32_t"],
  cuStreamDestroy_v2: ["uint64_t"],
  cuStreamSynchronize: ["uint64_t"],
  cuStreamQuery: ["uint64_t"],
  cuEventCreate: ["void*", "uint32_t"],
  cuEventDestroy_v2: ["uint64_t"],
  cuEventSynchronize: ["uint64_t"],
  cuEventRecord: ["uint64_t", "uint64_t"],
  cuEventElapsedTime: ["void*", "uint64_t", "uint64_t"],
  cuModuleLoadData: ["void*", "void*"],
  cuModuleUnload: ["uint64_t"],
  cuModuleGetFunction: ["void*", "uint64_t", "str"],
  cuFuncSetAttribute: ["uint64_t", "int", "int"],
  cuLaunchKernelEx: ["uint64_t", "uint64_t", "uint64_t", "uint64_t"],
  cuStreamBeginCapture_v2: ["uint64_t", "int"],
  cuStreamEndCapture: ["uint64_t", "void*"],
  cuGraphInstantiateWithFlags: ["void*", "uint64_t", "uint64_t"],
  cuGraphDestroy: ["uint64_t"],
  cuGraphExecDestroy: ["uint64_t"],
  cuGraphLaunch: ["uint64_t", "uint64_t"],
  cuTensorMapEncodeTiled: [
    ...["void*", "int", "uint32_t", "uint64_t", "void*", "void*", "void*", "void*"],
    ...["int", "int", "int", "int"],
  ],
} as const;

type Driver = Record<keyof typeof signatures, Call> & { text(code: number): string };

let loaded: { driver: Driver; koffi: typeof import("koffi") } | undefined;

/** Throws UserError where there is no driver. */
function load(): { driver: Driver; koffi: typeof import("koffi") } {
  if (loaded) return loaded;
  const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
  let library: ReturnType<typeof koffi.load>;
  try {
    library = koffi.load("libcuda.so.1");
  } catch {
    throw unavailable("there is no NVIDIA driver here (libcuda.so.1 cannot be loaded)");
  }
  const calls = Object.entries(signatures).map(([name, args]) => [name, library.func(name, "int", [...args])]);
  const errorName = library.func("cuGetErrorName", "int", ["int", "_Out_ const char**"]);
  const errorString = library.func("cuGetErrorString", "int", ["int", "_Out_ const char**"]);
  const text = (code: number) => {
    const [name, meaning] = [[null], [null]];
    errorName(code, name);
    errorString(code, meaning);
    return `${name[0] ?? code}: ${meaning[0] ?? "unknown error"}`;
  };
  const driver = { ...Object.fromEntries(calls), text } as Driver;
  const failed = driver.cuInit(0);
  if (failed) throw unavailable(`the NVIDIA driver does not start (${text(failed)})`);
  loaded = { driver, koffi };
  return loaded;
}

function unavailable(why: string): UserError {
  return new UserError(`no cuda device: ${why}`, { code: "device_unavailable" });
}

interface Manifest {
  readonly modules: readonly string[];
}

/** Why there is no CUDA device here, or undefined where there is one. */
export function whyNoCuda(): string | undefined {
  try {
    new Cuda(0).close();
    return undefined;
  } catch (error) {
    if (error instanceof UserError) return error.message;
    throw error;
  }
}

/** Pinned host memory that the device reads and writes at the same address. */
export interface HostMemory {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** One GPU: its context and one stream, in which everything happens in the order of the calls. */
export class Cuda {
  readonly properties: CudaProperties;
  readonly stream: number;
  private readonly driver: Driver;
  private readonly koffi: typeof import("koffi");
  private readonly device: number;
  private readonly modules: number[] = [];
  private readonly functions = new Map<string, number>();
  /** What a function may ask for at most, where that was raised: other launches of it ask for less. */
  private readonly dynamicShared = new Map<string, number>();
  private closed = false;
  /** Something went wrong on the GPU: its memory and all handles are lost. */
  failed = false;

  /** Throws UserError where there is no driver, no such GPU, or no kernels for it. */
  constructor(ordinal: number) {
    const { driver, koffi } = load();
    this.driver = driver;
    this.koffi = koffi;
    const count = this.int((out) => driver.cuDeviceGetCount(out));
    if (ordinal >= count) throw unavailable(`there are ${count} GPUs, cuda:${ordinal} is none of them`);
    const manifest = join(buildDir, "manifest.json");
    if (!existsSync(manifest))
      throw unavailable("the CUDA kernels are not built: run node scripts/build-cuda.mjs (it needs nvcc)");
    this.device = this.int((out) => driver.cuDeviceGet(out, ordinal));
    this.check(
      "cuCtxSetCurrent",
      driver.cuCtxSetCurrent(this.handle((o) => driver.cuDevicePrimaryCtxRetain(o, this.device))),
    );
    const attribute = (number: number) => this.int((out) => driver.cuDeviceGetAttribute(out, number, this.device));
    const name = Buffer.alloc(128);
    this.check("cuDeviceGetName", driver.cuDeviceGetName(name, name.length, this.device));
    this.properties = {
      name: name.toString("utf8").replace(/\0.*$/s, ""),
      multiprocessors: attribute(attributes.multiprocessors),
      clock: 1000 * attribute(attributes.clock),
      sharedBytes: attribute(attributes.sharedOptin),
      l2Bytes: attribute(attributes.l2),
      capability: 10 * attribute(attributes.major) + attribute(attributes.minor),
    };
    if (this.properties.capability < 80) {
      const { capability } = this.properties;
      throw unavailable(`${this.properties.name} is of compute capability ${capability / 10}; 8.0 or newer is needed`);
    }
    this.stream = this.handle((out) => driver.cuStreamCreate(out, 1));
    for (const file of (JSON.parse(readFileSync(manifest, "utf8")) as Manifest).modules) {
      const image = readFileSync(join(buildDir, file));
      this.modules.push(this.handle((out) => driver.cuModuleLoadData(out, image)));
    }
  }

  /** Free and all memory of the GPU, in bytes. */
  memory(): { free: number; total: number } {
    const [free, total] = [new BigUint64Array(1), new BigUint64Array(1)];
    this.check("cuMemGetInfo", this.driver.cuMemGetInfo_v2(free, total));
    return { free: Number(free[0]), total: Number(total[0]) };
  }

  alloc(bytes: number): number {
    const out = new BigUint64Array(1);
    const failed = this.driver.cuMemAlloc_v2(out, Math.max(bytes, 256));
    if (failed === 2) {
      const { free } = this.memory();
      throw new UserError(`the GPU has ${free} bytes left, ${bytes} are needed: give less memory to the cache`, {
        code: "out_of_memory",
      });
    }
    this.check("cuMemAlloc", failed);
    return Number(out[0]);
  }

  free(address: number): void {
    this.check("cuMemFree", this.driver.cuMemFree_v2(address));
  }

  allocHost(bytes: number): HostMemory {
    // Portable and mapped.
    const address = this.handle((out) => this.driver.cuMemHostAlloc(out, bytes, 3));
    return { address, bytes: new Uint8Array(this.koffi.view(BigInt(address), bytes)) };
  }

  freeHost(memory: HostMemory): void {
    this.check("cuMemFreeHost", this.driver.cuMemFreeHost(memory.address));
  }

  /** The address of bytes of this process. The caller keeps them alive. */
  addressOf(bytes: ArrayBufferView): number {
    return Number(this.koffi.address(bytes));
  }

  toDevice(to: number, from: number, bytes: number): void {
    if (bytes > 0) this.check("cuMemcpyHtoD", this.driver.cuMemcpyHtoDAsync_v2(to, from, bytes, this.stream));
  }

  toHost(to: number, from: number, bytes: number): void {
    if (bytes > 0) this.check("cuMemcpyDtoH", this.driver.cuMemcpyDtoHAsync_v2(to, from, bytes, this.stream));
  }

  copy(to: number, from: number, bytes: number): void {
    if (bytes > 0) this.check("cuMemcpyDtoD", this.driver.cuMemcpyDtoDAsync_v2(to, from, bytes, this.stream));
  }

  fill(address: number, value: number, bytes: number): void {
    if (bytes > 0) this.check("cuMemsetD8", this.driver.cuMemsetD8Async(address, value, bytes, this.stream));
  }

  synchronize(): void {
    this.check("cuStreamSynchronize", this.driver.cuStreamSynchronize(this.stream));
  }

  /** Whether everything asked for is done. Throws CudaError where something failed. */
  idle(): boolean {
    const state = this.driver.cuStreamQuery(this.stream);
    if (state === notReady) return false;
    this.check("a kernel", state);
    return true;
  }

  /** dynamicShared: bytes that the function must be allowed to ask for. */
  function(name: string, dynamicShared: number): number {
    let found = this.functions.get(name) ?? 0;
    const out = new BigUint64Array(1);
    for (const module of found ? [] : this.modules) {
      if (this.driver.cuModuleGetFunction(out, module, name) !== 0) continue;
      found = Number(out[0]);
      break;
    }
    if (!found) throw new InternalError(`there is no kernel ${name}`);
    this.functions.set(name, found);
    if (dynamicShared > (this.dynamicShared.get(name) ?? 48 << 10)) {
      this.check(name, this.driver.cuFuncSetAttribute(found, 8, dynamicShared));
      this.dynamicShared.set(name, dynamicShared);
    }
    return found;
  }

  /** The driver's 128 bytes for the copy engine, which reads 256 bytes at a time into the L2. */
  tensorMap({ address, words, sizes, strides, box }: TensorMap): Uint8Array {
    const aligned = new Uint8Array(2 * tensorMapBytes);
    const map = aligned.subarray((64 - (this.addressOf(aligned) % 64)) % 64).subarray(0, tensorMapBytes);
    const [type, swizzle, promotion256] = words ? [4, 0, 3] : [1, 3, 3]; // uint64; uint16, 128 bytes
    const failed = this.driver.cuTensorMapEncodeTiled(
      map,
      ...[type, sizes.length, address, BigUint64Array.from(sizes, BigInt), BigUint64Array.from(strides, BigInt)],
      ...[Uint32Array.from(box), new Uint32Array(box.length).fill(1), 0, swizzle, promotion256, 0],
    );
    this.check("cuTensorMapEncodeTiled", failed);
    return map;
  }

  /** config, function and parameters as launcher.ts lays them out. */
  launch(config: number, func: number, parameters: number, name: string): void {
    const failed = this.driver.cuLaunchKernelEx(config, func, parameters, 0);
    if (failed) this.check(name, failed);
  }

  /** Records what `work` launches, and makes it one graph. */
  capture(work: () => void): number {
    const { driver, stream } = this;
    this.check("cuStreamBeginCapture", driver.cuStreamBeginCapture_v2(stream, 1));
    let failure: unknown;
    try {
      work();
    } catch (error) {
      failure = error;
    }
    const out = new BigUint64Array(1);
    const ended = driver.cuStreamEndCapture(stream, out);
    if (failure) throw failure;
    this.check("cuStreamEndCapture", ended);
    const graph = Number(out[0]);
    const exec = this.handle((o) => driver.cuGraphInstantiateWithFlags(o, graph, 0));
    this.check("cuGraphDestroy", driver.cuGraphDestroy(graph));
    return exec;
  }

  launchGraph(exec: number): void {
    const failed = this.driver.cuGraphLaunch(exec, this.stream);
    if (failed) this.check("cuGraphLaunch", failed);
  }

  destroyGraph(exec: number): void {
    this.check("cuGraphExecDestroy", this.driver.cuGraphExecDestroy(exec));
  }

  /** A point in the stream; elapsed() between two of them is in milliseconds. */
  event(): number {
    const event = this.handle((out) => this.driver.cuEventCreate(out, 0));
    this.check("cuEventRecord", this.driver.cuEventRecord(event, this.stream));
    return event;
  }

  /** Waits for it; it is given back. */
  waitEvent(event: number): void {
    this.check("cuEventSynchronize", this.driver.cuEventSynchronize(event));
    this.check("cuEventDestroy", this.driver.cuEventDestroy_v2(event));
  }

  /** Waits for both; they are given back. */
  elapsed(from: number, to: number): number {
    this.synchronize();
    const out = new Float32Array(1);
    this.check("cuEventElapsedTime", this.driver.cuEventElapsedTime(out, from, to));
    for (const event of [from, to]) this.check("cuEventDestroy", this.driver.cuEventDestroy_v2(event));
    return out[0];
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    // What has failed may never end, and waiting for it would keep its process.
    if (this.failed) return;
    for (const module of this.modules) this.driver.cuModuleUnload(module);
    this.driver.cuStreamDestroy_v2(this.stream);
    this.driver.cuDevicePrimaryCtxRelease_v2(this.device);
  }

  private check(what: string, code: number): void {
    if (code === 0) return;
    this.failed = true;
    throw new CudaError(`the GPU failed at ${what}: ${this.driver.text(code)}`, code);
  }

  private int(call: (out: Int32Array) => number): number {
    const out = new Int32Array(1);
    this.check("a question to the driver", call(out));
    return out[0];
  }

  private handle(call: (out: BigUint64Array) => number): number {
    const out = new BigUint64Array(1);
    this.check("a call of the driver", call(out));
    return Number(out[0]);
  }
}
