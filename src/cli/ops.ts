// Owns: what `bench ops` measures: each kernel of the CPU device alone, as a plan of one op runs it, beside the machine's own
// limits measured in the same run.
import { type StorageType, storageTypes } from "../base/dtype.js";
import { type Batch, noBias, noUpdates } from "../device/batch.js";
import { CpuDevice } from "../device/cpu/device.js";
import { loadNative } from "../device/cpu/native.js";
import type { Device, Limits, Program } from "../device/device.js";
import type { TensorInfo } from "../formats/checkpoint.js";
import type { Roofs } from "../host/forecast.js";
import { physicalCores } from "../host/load.js";
import { randomTensor } from "../model/random.js";
import { PlanBuilder } from "../plan/build.js";
import { attention, cacheWrite, embed, gatedActivation, linear, rmsNorm } from "../plan/ops/index.js";
import type { Tensor } from "../plan/plan.js";
import { median } from "./measure.js";

export interface OpRow<Roof extends string = keyof Roofs> {
  readonly op: string;
  readonly what: string;
  readonly tokens: number;
  readonly ms: number;
  /** What bounds it: bytes of weights or of keys and values, or operations. */
  readonly bound: Roof;
  /** A second. */
  readonly rate: number;
  /** Of the roof that bounds it. */
  readonly share: number;
  /** What the maker's own library takes for the same, where it is on this machine. */
  readonly libraryMs?: number;
}

export interface OpOptions {
  readonly threads?: number;
  /** Of the matrices: [rows, cols]; by default larger than any cache in 4 bits. */
  readonly shape?: readonly [number, number];
  /** Of attention, in tokens. */
  readonly context?: number;
  readonly types?: readonly StorageType[];
  readonly repeats?: number;
}

export function measureRoofs(threads = physicalCores()): Roofs {
  const native = loadNative();
  return { readBytes: native.roofRead(threads), int8: native.roofInt8(threads), f32: native.roofF32(threads) };
}

/** A model of one op: tables for its inputs, random weights. */
export class OneOp {
  readonly builder: PlanBuilder;
  private readonly tensors = new Map<string, TensorInfo>();
  private readonly bytes = new Map<string, Uint8Array>();

  constructor(private readonly tokens: number) {
    this.builder = new PlanBuilder(tokens);
  }

  /** [tokens, width] of random values. */
  values(name: string, width: number): Tensor {
    const weight = this.weight(`${name}.table`, "F32", [this.tokens, width]);
    return this.builder.apply(embed, name, { ids: this.builder.input("tokenIds"), weight }, { scale: 1 });
  }

  /** as: has the bytes of that weight, of the same type and shape. */
  weight(name: string, type: StorageType, shape: readonly number[], as?: string): Tensor {
    const bytes = this.bytes.get(as ?? "") ?? randomTensor(type, shape, 1);
    this.bytes.set(name, bytes);
    this.tensors.set(name, { name, type, shape, bytes: bytes.length });
    return this.builder.weight(name, shape, [{ name, type, shape: [shape[0], shape[1] ?? 1] }]);
  }

  bytesOf(name: string): number {
    return this.tensors.get(name)!.bytes;
  }

  compile(device: Device, limits: Limits): Promise<Program> {
    const read = (name: string) => this.bytes.get(name)!;
    return device.compile(this.builder.finish(), { tensors: this.tensors, read, release: () => {} }, limits);
  }
}

export class Ops {
  private readonly device = new CpuDevice();
  private readonly threads: number;
  private readonly repeats: number;

  constructor(
    private readonly roofs: Roofs,
    private readonly options: OpOptions = {},
  ) {
    this.threads = options.threads ?? physicalCores();
    this.repeats = options.repeats ?? 5;
  }

  /** Products of every storage type with 1, 16 and 512 tokens; attention; what is done to each value by itself. */
  async *rows(): AsyncGenerator<OpRow> {
    for (const type of this.options.types ?? storageTypes) yield* this.products(type);
    yield* this.attentions();
    yield await this.tokenwise("rmsNorm", 2048, 2, (one) => {
      const inputs = { x: one.values("x", 2048), weight: one.weight("w", "F32", [2048]) };
      one.builder.apply(rmsNorm, "y", inputs, { eps: 1e-5, groups: 1 });
    });
    yield await this.tokenwise("gatedActivation", 8192, 3, (one) => {
      const inputs = { gate: one.values("gate", 8192), up: one.values("up", 8192) };
      one.builder.apply(gatedActivation, "y", inputs, { kind: "silu" });
    });
  }

  private async *products(type: StorageType): AsyncGenerator<OpRow> {
    const [rows, cols] = this.options.shape ?? [24_576, 4096];
    const most = 512;
    const one = new OneOp(most);
    const x = one.values("x", cols);
    one.builder.apply(linear, "y", { x, weight: one.weight("w", type, [rows, cols]) }, {});
    const program = await one.compile(this.device, this.limits(most));
    const whole = ["F32", "F16", "BF16"].includes(type);
    for (const tokens of [1, 16, most]) {
      const ms = await this.time(program, () => step(tokens, 0, false));
      const bound = tokens === 1 ? "readBytes" : whole ? "f32" : "int8";
      const work = tokens === 1 ? program.memory.weights - 4 * most * cols : 2 * tokens * rows * cols;
      yield this.row(`linear ${type}`, `${rows} × ${cols}`, tokens, ms, bound, work);
    }
    await program.close();
  }

  private async *attentions(): AsyncGenerator<OpRow> {
    const [heads, kvHeads, dim] = [32, 8, 64];
    const context = this.options.context ?? 4096;
    const one = new OneOp(context);
    const kv = { numKvHeads: kvHeads, headDim: dim, vHeadDim: dim };
    const q = one.values("q", heads * dim);
    const cache = one.builder.cache("cache", { kind: "paged", ...kv });
    const [k, v] = [one.values("k", kvHeads * dim), one.values("v", kvHeads * dim)];
    one.builder.node(cacheWrite, "write", { k, v, cache }, kv);
    one.builder.apply(attention, "y", { q, cache }, { ...kv, numHeads: heads, scale: dim ** -0.5, causal: true });
    const program = await one.compile(this.device, this.limits(context));
    const what = `${heads} heads, ${kvHeads} of keys and values, of ${dim}`;
    const whole = await this.time(program, () => step(context, 0));
    yield this.row("attention", what, context, whole, "f32", 2 * context * context * heads * dim);
    const last = await this.time(program, () => step(1, context - 1));
    const bytes = context * kvHeads * 2 * dim * 2;
    yield this.row("attention", `${what}, after ${context - 1}`, 1, last, "readBytes", bytes);
    await program.close();
  }

  /** arrays: how many of [tokens, width] are read and written. */
  private async tokenwise(op: string, width: number, arrays: number, build: (one: OneOp) => void): Promise<OpRow> {
    const tokens = 512;
    const one = new OneOp(tokens);
    build(one);
    const program = await one.compile(this.device, this.limits(tokens));
    const ms = await this.time(program, () => step(tokens, 0, false));
    await program.close();
    // Its inputs are looked up in the same step: read and written once more.
    const bytes = 4 * tokens * width * (arrays + 2 * (arrays - 1));
    return this.row(op, `${width} values, with looking them up`, tokens, ms, "readBytes", bytes);
  }

  private row(op: string, what: string, tokens: number, ms: number, bound: keyof Roofs, work: number): OpRow {
    const rate = (1000 * work) / ms;
    return { op, what, tokens, ms, bound, rate, share: rate / this.roofs[bound] };
  }

  private async time(program: Program, batch: (i: number) => Batch): Promise<number> {
    const times: number[] = [];
    for (let i = 0; i <= this.repeats; i++) {
      const own = batch(i);
      const start = performance.now();
      await program.run(own).result;
      if (i > 0) times.push(performance.now() - start);
    }
    return median(times);
  }

  private limits(tokens: number): Limits {
    return {
      maxTokens: tokens,
      maxRows: 1,
      maxSequences: 1,
      slots: 1,
      contextLength: tokens,
      memoryBytes: this.device.info.memoryBytes,
      kvDtype: "f16",
      threads: this.threads,
      depth: 1,
      deterministic: false,
      adapterSlots: 0,
      maxPages: Math.ceil(tokens / 16),
    };
  }
}

/** One sequence, `tokens` of it from a position on; nothing is sampled. cached: the plan has a cache. */
export function step(tokens: number, position: number, cached = true, pageTokens = 16): Batch {
  const pages = Int32Array.from({ length: Math.ceil((position + tokens) / pageTokens) }, (_, i) => i);
  return {
    tokens: Int32Array.from({ length: tokens }, (_, i) => i),
    slots: Int32Array.of(0),
    tokenStart: Int32Array.of(0, tokens),
    kvStart: Int32Array.of(position),
    pages: cached ? [{ start: Int32Array.of(0, pages.length), first: Int32Array.of(0), ids: pages }] : [],
    rows: new Int32Array(0),
    targets: new Int32Array(0),
    rowPositions: new Int32Array(0),
    bias: noBias(0),
    maskedRows: new Int32Array(0),
    topLogprobs: 0,
    updates: noUpdates,
  };
}
