// Owns: the binding to the native library of kernels/cpu (its C ABI is api.h): finding the variant that this processor
// runs, loading it, and each function's type. The only file of this device that touches koffi.
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { UserError } from "../../base/errors.js";

/** A native program's address. */
export type Handle = unknown;

export interface Native {
  /** The library's path in the build folder, which names its sources by their hash. */
  readonly library: string;
  isa(): string;
  tokenGroup(): number;
  rowGroup(): number;
  supports(type: number, cols: number): boolean;
  /** exact: with bits that depend on the row alone. */
  act(type: number, exact: boolean): number;
  actBytes(kind: number, tokens: number, cols: number): number;
  packedBytes(type: number, rows: number, cols: number): number;
  /** Throws UserError with the native side's message. */
  create(description: Float64Array): Handle;
  destroy(program: Handle): void;
  pack(
    program: Handle,
    weight: number,
    source: Uint8Array,
    rowBytes: number,
    columnByte: number,
    row0: number,
    rowMap: Int32Array | null,
  ): void;
  unpackRow(program: Handle, weight: number, row: number, out: Float32Array): void;
  setVector(program: Handle, offset: number, values: Float32Array, count: number): void;
  getVector(program: Handle, offset: number, out: Float32Array, count: number): void;
  drop(program: Handle, weights: number, pages: number): void;
  setThreads(program: Handle, threads: number): void;
  run(
    program: Handle,
    counts: Int32Array,
    tokens: Int32Array,
    slots: Int32Array,
    tokenStart: Int32Array,
    kvStart: Int32Array,
    pageStart: Int32Array,
    pageFirst: Int32Array,
    pageIds: Int32Array,
    rows: Int32Array,
    targets: Int32Array,
    rowPositions: Int32Array,
    biasStart: Int32Array,
    biasIds: Int32Array,
    biasValues: Float32Array,
  ): number;
  sample(
    program: Handle,
    which: Int32Array,
    count: number,
    masks: Uint32Array | null,
    top: number,
    tokens: Int32Array,
    logprobs: Float32Array,
    ranks: Int32Array,
    topIds: Int32Array,
    topLogprobs: Float32Array,
  ): void;
  updateSlots(
    program: Handle,
    count: number,
    slots: Int32Array,
    floats: Float32Array,
    ints: Int32Array,
    promptStart: Int32Array,
    promptIds: Int32Array,
    outputStart: Int32Array,
    outputIds: Int32Array,
  ): void;
  /** a: [rank, aCols], b: [bRows, rank]. */
  setAdapter(
    program: Handle,
    adapter: number,
    site: number,
    rank: number,
    a: Float32Array,
    aCols: number,
    b: Float32Array,
    bRows: number,
    scale: number,
  ): void;
  dropAdapter(program: Handle, adapter: number): void;
  pageBytes(program: Handle, group: number): number;
  copyPages(program: Handle, group: number, from: Int32Array, to: Int32Array, count: number): void;
  readPages(program: Handle, group: number, ids: Int32Array, count: number, out: Uint8Array): void;
  writePages(program: Handle, group: number, ids: Int32Array, count: number, bytes: Uint8Array): void;
  readWorkspace(program: Handle, offset: number, out: Float32Array, count: number): void;
  /** Bytes a second; int8 and f32 operations a second. */
  roofRead(threads: number): number;
  roofInt8(threads: number): number;
  roofF32(threads: number): number;
  /** For comparison. q, out: [n, heads·dim], k, v: [n, kvHeads·dim]; returns bytes of scores. */
  naiveAttention(
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    out: Float32Array,
    n: number,
    heads: number,
    kvHeads: number,
    dim: number,
    threads: number,
  ): number;
  /** `values` values to blocks of another type, beside this thread; types are storageCode's. False: not all are finite. */
  quantize(
    from: number,
    source: Uint8Array,
    values: number,
    to: number,
    out: Uint8Array,
    threads: number,
  ): Promise<boolean>;
}

interface Manifest {
  readonly probe: string;
  readonly libraries: Readonly<Record<string, string>>;
}

/** Best first; bits are mr_probe's. */
const variants = [
  { isa: "amx", bit: 4 },
  { isa: "avx512vnni", bit: 2 },
  { isa: "avx2", bit: 1 },
  { isa: "neon-i8mm", bit: 32 },
  { isa: "neon-dotprod", bit: 16 },
  { isa: "neon", bit: 8 },
];
const machines = ["linux x64", "linux arm64", "darwin arm64"];

const buildDir = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..", "build", "native");

let loaded: Native | undefined;

/** Why there is no CPU device here, or undefined where there is one. */
export function whyNoNative(): string | undefined {
  const machine = `${process.platform} ${process.arch}`;
  if (!machines.includes(machine)) return `the CPU kernels are for ${machines.join(", ")}, not ${machine}`;
  if (!existsSync(join(buildDir, "manifest.json")))
    return "the CPU kernels are not built: run node scripts/build-native.mjs (it needs a C++ compiler)";
  return undefined;
}

/** Throws UserError where the library is not there or this processor runs none of its variants. */
export function loadNative(): Native {
  if (loaded) return loaded;
  const reason = whyNoNative();
  if (reason) throw new UserError(`no cpu device: ${reason}`, { code: "device_unavailable" });
  const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
  const manifest = JSON.parse(readFileSync(join(buildDir, "manifest.json"), "utf8")) as Manifest;
  const can = koffi.load(join(buildDir, manifest.probe)).func("int mr_probe()")() as number;
  const variant = variants.find((v) => can & v.bit && manifest.libraries[v.isa]);
  if (!variant) {
    throw new UserError(
      `no cpu device: this processor runs none of the built variants (${Object.keys(manifest.libraries).join(", ")}): run node scripts/build-native.mjs`,
      { code: "device_unavailable" },
    );
  }
  loaded = bind(koffi, manifest.libraries[variant.isa]);
  return loaded;
}

function bind(koffi: typeof import("koffi"), library: string): Native {
  const lib = koffi.load(join(buildDir, library));
  const i32 = "const int32_t*";
  const f32 = "const float*";
  const func = (name: string, result: string, args: string[]) => lib.func(`mr_${name}`, result, args);
  const act = func("act", "int", ["int", "int"]);
  const create = func("create", "void*", ["const double*", "double", "void*", "int"]);
  const quantize = func("quantize", "int", ["int", "const uint8_t*", "double", "int", "uint8_t*", "int"]);
  const supports = func("supports", "int", ["int", "int"]);
  return {
    library,
    isa: func("isa", "str", []),
    tokenGroup: func("token_group", "int", []),
    rowGroup: func("row_group", "int", []),
    supports: (type, cols) => supports(type, cols) !== 0,
    act: (type, exact) => act(type, exact ? 1 : 0),
    actBytes: func("act_bytes", "double", ["int", "int", "int"]),
    packedBytes: func("packed_bytes", "double", ["int", "int", "int"]),
    create(description) {
      const message = Buffer.alloc(256);
      const program = create(description, description.length, message, message.length);
      if (program) return program;
      throw new UserError(`the cpu device cannot run this: ${message.toString("utf8").replace(/\0.*$/s, "")}`);
    },
    destroy: func("destroy", "void", ["void*"]),
    pack: func("pack", "void", ["void*", "int", "const uint8_t*", "double", "double", "int", i32]),
    unpackRow: func("unpack_row", "void", ["void*", "int", "int", "float*"]),
    setVector: func("set_vector", "void", ["void*", "double", f32, "double"]),
    getVector: func("get_vector", "void", ["void*", "double", "float*", "double"]),
    drop: func("drop", "void", ["void*", "int", "int"]),
    setThreads: func("set_threads", "void", ["void*", "int"]),
    run: func("run", "int", ["void*", i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, f32]),
    sample: func("sample", "void", [
      "void*",
      i32,
      "int",
      "const uint32_t*",
      "int",
      "int32_t*",
      "float*",
      "int32_t*",
      "int32_t*",
      "float*",
    ]),
    updateSlots: func("update_slots", "void", ["void*", "int", i32, f32, i32, i32, i32, i32, i32]),
    setAdapter: func("set_adapter", "void", ["void*", "int", "int", "int", f32, "int", f32, "int", "float"]),
    dropAdapter: func("drop_adapter", "void", ["void*", "int"]),
    pageBytes: func("page_bytes", "double", ["void*", "int"]),
    copyPages: func("copy_pages", "void", ["void*", "int", i32, i32, "int"]),
    readPages: func("read_pages", "void", ["void*", "int", i32, "int", "uint8_t*"]),
    writePages: func("write_pages", "void", ["void*", "int", i32, "int", "const uint8_t*"]),
    roofRead: func("roof_read", "double", ["int"]),
    roofInt8: func("roof_int8", "double", ["int"]),
    roofF32: func("roof_f32", "double", ["int"]),
    naiveAttention: func("naive_attention", "double", [f32, f32, f32, "float*", "int", "int", "int", "int", "int"]),
    quantize: (...args) =>
      new Promise((resolve, reject) => {
        quantize.async(...args, (error: unknown, code: number) => (error ? reject(error) : resolve(code === 0)));
      }),
    readWorkspace: func("read_workspace", "void", ["void*", "double", "float*", "double"]),
  };
}
