// Owns: what `bench ops` measures: each kernel of the CPU device alone, as a plan of one op runs it, beside the machine's own
// limits. These are measured again beside each kind of kernel and the best counts: others may have been at work.
import { type StorageType, storageTypes } from "../base/dtype.js";
import { type Batch, noBias, noUpdates, SlotInt, slotFloats, slotInts } from "../device/batch.js";
import { CpuDevice } from "../device/cpu/device.js";
import { loadNative } from "../device/cpu/native.js";
import {
  type AdapterSource,
  type Device,
  type KvDType,
  kvRowBytes,
  type Limits,
  type Program,
} from "../device/device.js";
import type { TensorInfo } from "../formats/checkpoint.js";
import type { Roofs } from "../host/forecast.js";
import { physicalCores } from "../host/load.js";
import { randomTensor } from "../model/random.js";
import { PlanBuilder } from "../plan/build.js";
import * as ops from "../plan/ops/index.js";
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

type Measured = Omit<OpRow, "share">;

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

const best = (a: Roofs, b: Roofs): Roofs => ({
  readBytes: Math.max(a.readBytes, b.readBytes),
  int8: Math.max(a.int8, b.int8),
  f32: Math.max(a.f32, b.f32),
});

/** A model of one op: tables for its inputs, random weights. */
export class OneOp {
  readonly builder: PlanBuilder;
  private readonly tensors = new Map<string, TensorInfo>();
  private readonly bytes = new Map<string, Uint8Array>();

  constructor(
    private readonly tokens: number,
    vocabSize = tokens,
  ) {
    this.builder = new PlanBuilder(vocabSize);
  }

  /** [tokens, width] of random values. */
  values(name: string, width: number): Tensor {
    const weight = this.weight(`${name}.table`, "F32", [this.tokens, width]);
    return this.builder.apply(ops.embed, name, { ids: this.builder.input("tokenIds"), weight }, { scale: 1 });
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
  private readonly shape: readonly [number, number];

  constructor(private readonly options: OpOptions = {}) {
    this.threads = options.threads ?? physicalCores();
    this.repeats = options.repeats ?? 5;
    this.shape = options.shape ?? [24_576, 4096];
  }

  async measure(): Promise<{ readonly roofs: Roofs; readonly rows: readonly OpRow[] }> {
    const rows: Measured[] = [];
    let roofs = measureRoofs(this.threads);
    for await (const row of this.rows()) {
      if (row.op !== rows.at(-1)?.op) roofs = best(roofs, measureRoofs(this.threads));
      rows.push(row);
    }
    return { roofs, rows: rows.map((row) => ({ ...row, share: row.rate / roofs[row.bound] })) };
  }

  /** Products of every storage type with 1, 16 and 512 tokens; experts; logits and draws; attention; what is done to each
   *  token by itself. */
  private async *rows(): AsyncGenerator<Measured> {
    for (const type of this.options.types ?? storageTypes) yield* this.products(type);
    yield* this.experts();
    yield* this.draws();
    for (const kvDtype of ["f16", "q8"] as const) yield* this.attentions(kvDtype);
    yield* this.eachTokens();
    yield await this.adapter();
  }

  private async *products(type: StorageType): AsyncGenerator<Measured> {
    const [rows, cols] = this.shape;
    const most = 512;
    const one = new OneOp(most);
    const x = one.values("x", cols);
    one.builder.apply(ops.linear, "y", { x, weight: one.weight("w", type, [rows, cols]) }, {});
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

  /** 8 of 32, in Q4_0; the shape of Qwen3's. */
  private async *experts(): AsyncGenerator<Measured> {
    const [count, used] = [32, 8];
    const [width, cols] = [Math.min(768, this.shape[0]), Math.min(2048, this.shape[1])];
    const most = 512;
    const one = new OneOp(most);
    const how = { topK: used, score: "softmax", normalize: true, scale: 1 } as const;
    const routed = one.builder.node(ops.route, "route", { logits: one.values("scores", count) }, how);
    const weights = {
      gate: one.weight("gate", "Q4_0", [count * width, cols]),
      up: one.weight("up", "Q4_0", [count * width, cols]),
      down: one.weight("down", "Q4_0", [count * cols, width]),
    };
    const inputs = { x: one.values("x", cols), ...routed, ...weights };
    one.builder.apply(ops.moe, "y", inputs, { numExperts: count, kind: "silu" });
    const program = await one.compile(this.device, this.limits(most));
    for (const tokens of [1, most]) {
      const ms = await this.time(program, () => step(tokens, 0, false));
      const read = (used / count) * ["gate", "up", "down"].reduce((sum, name) => sum + one.bytesOf(name), 0);
      const work = tokens === 1 ? read : 2 * tokens * used * 3 * width * cols;
      const what = `${used} of ${count} of ${width} × ${cols} in Q4_0, with choosing them`;
      yield this.row("route, moe", what, tokens, ms, tokens === 1 ? "readBytes" : "int8", work);
    }
    await program.close();
  }

  private async *draws(): AsyncGenerator<Measured> {
    const [vocab, width] = this.shape;
    const one = new OneOp(1, vocab);
    const rows = one.builder.input("sampleRows");
    const x = one.builder.apply(ops.gatherRows, "x", { x: one.values("all", width), rows }, {});
    const scores = one.builder.apply(
      ops.logits,
      "logits",
      { x, weight: one.weight("w", "Q8_0", [vocab, width]) },
      { scale: 1 },
    );
    one.builder.node(ops.sample, "sample", { logits: scores }, {});
    const program = await one.compile(this.device, this.limits(1));
    for (const [how, floats] of [
      ["the likeliest", greedy],
      ["temperature 1, top-p 0.9", [1, 0.9, 0, 1, 0, 0]],
    ] as const) {
      const drawn = {
        rows: Int32Array.of(0),
        targets: Int32Array.of(-1),
        rowPositions: Int32Array.of(1),
        bias: noBias(1),
      };
      const batch = { ...step(1, 0, false), ...drawn, updates: settings(1, floats) };
      const ms = await this.time(program, () => batch);
      yield this.row("logits, sample", `${vocab} × ${width} in Q8_0, ${how}`, 1, ms, "readBytes", one.bytesOf("w"));
    }
    await program.close();
  }

  private async *attentions(kvDtype: KvDType): AsyncGenerator<Measured> {
    const [heads, kvHeads, dim] = [32, 8, 64];
    const context = this.options.context ?? 4096;
    const one = new OneOp(context);
    const kv = { numKvHeads: kvHeads, headDim: dim, vHeadDim: dim };
    const q = one.values("q", heads * dim);
    const cache = one.builder.cache("cache", { kind: "paged", ...kv });
    const [k, v] = [one.values("k", kvHeads * dim), one.values("v", kvHeads * dim)];
    one.builder.node(ops.cacheWrite, "write", { k, v, cache }, kv);
    one.builder.apply(ops.attention, "y", { q, cache }, { ...kv, numHeads: heads, scale: dim ** -0.5, causal: true });
    const program = await one.compile(this.device, { ...this.limits(context), kvDtype });
    const what = `${heads} heads, ${kvHeads} of keys and values, of ${dim}, in ${kvDtype}`;
    const whole = await this.time(program, () => step(context, 0));
    yield this.row("attention", what, context, whole, "f32", 2 * context * context * heads * dim);
    const last = await this.time(program, () => step(1, context - 1));
    const bytes = context * kvHeads * 2 * kvRowBytes(kvDtype, dim);
    yield this.row("attention", `${what}, after ${context - 1}`, 1, last, "readBytes", bytes);
    await program.close();
  }

  /** Each token by itself. The last number: f32 values that a token reads and writes, its inputs (looked up in the same
   *  step: read and written once more) included. */
  private async *eachTokens(): AsyncGenerator<Measured> {
    const [heads, headDim] = [32, 64];
    const width = heads * headDim;
    const kv = { numKvHeads: heads, headDim, vHeadDim: headDim };
    const invFreq = Array.from({ length: headDim / 2 }, (_, i) => 10_000 ** ((-2 * i) / headDim));
    const turn = { headDim, rotaryDim: headDim, invFreq, magnitude: 1, interleaved: false };
    yield await this.tokenwise("embed", width, 2, (one) => one.values("x", width));
    yield await this.tokenwise("rmsNorm", width, 4, (one) => {
      const inputs = { x: one.values("x", width), weight: one.weight("w", "F32", [width]) };
      one.builder.apply(ops.rmsNorm, "y", inputs, { eps: 1e-5, groups: 1 });
    });
    yield await this.tokenwise("layerNorm", width, 4, (one) => {
      const inputs = { x: one.values("x", width), weight: one.weight("w", "F32", [width]) };
      one.builder.apply(ops.layerNorm, "y", inputs, { eps: 1e-5 });
    });
    yield await this.tokenwise("add", width, 7, (one) => {
      one.builder.apply(ops.add, "y", { a: one.values("a", width), b: one.values("b", width) }, { alpha: 1, beta: 1 });
    });
    yield await this.tokenwise("rope", width, 4, (one) => {
      const inputs = { x: one.values("x", width), positions: one.builder.input("positions") };
      one.builder.apply(ops.rope, "y", inputs, { ...turn, numHeads: heads });
    });
    yield await this.tokenwise(
      "cacheWrite",
      width,
      7,
      (one) => {
        const cache = one.builder.cache("cache", { kind: "paged", ...kv });
        one.builder.node(ops.cacheWrite, "write", { k: one.values("k", width), v: one.values("v", width), cache }, kv);
      },
      true,
    );
    yield await this.tokenwise("activation", 4 * width, 4, (one) => {
      one.builder.apply(ops.activation, "y", { x: one.values("x", 4 * width) }, { kind: "geluTanh" });
    });
    yield await this.tokenwise("gatedActivation", 4 * width, 7, (one) => {
      const inputs = { gate: one.values("gate", 4 * width), up: one.values("up", 4 * width) };
      one.builder.apply(ops.gatedActivation, "y", inputs, { kind: "silu" });
    });
  }

  /** floats: so many times the width. */
  private async tokenwise(
    op: string,
    width: number,
    floats: number,
    build: (one: OneOp) => void,
    cached = false,
  ): Promise<Measured> {
    const tokens = 512;
    const one = new OneOp(tokens);
    build(one);
    const program = await one.compile(this.device, this.limits(tokens));
    const ms = await this.time(program, () => step(tokens, 0, cached));
    await program.close();
    const what = `${width} values${op === "embed" ? "" : ", with looking them up"}`;
    return this.row(op, what, tokens, ms, "readBytes", 4 * tokens * width * floats);
  }

  private async adapter(): Promise<Measured> {
    const [tokens, width, rank] = [512, 2048, 16];
    const one = new OneOp(tokens);
    const inputs = { x: one.values("x", width), y: one.values("base", width) };
    one.builder.apply(ops.lora, "y", inputs, { site: "site", rowStart: 0, colStart: 0 });
    const program = await one.compile(this.device, { ...this.limits(tokens), adapterSlots: 1 });
    const factor = (shape: number[]) => ({ shape, data: new Float32Array(rank * width).fill(0.01) });
    const sites: AdapterSource["sites"] = new Map([["site", { a: factor([rank, width]), b: factor([width, rank]) }]]);
    await program.loadAdapter(0, { sites, scale: 1 });
    const ms = await this.time(program, () => ({ ...step(tokens, 0, false), updates: settings(1, greedy, 0) }));
    await program.close();
    const what = `rank ${rank}, ${width} × ${width}, with looking its inputs up`;
    return this.row("lora", what, tokens, ms, "f32", 2 * tokens * rank * 2 * width);
  }

  private row(op: string, what: string, tokens: number, ms: number, bound: keyof Roofs, work: number): Measured {
    const rate = (1000 * work) / ms;
    return { op, what, tokens, ms, bound, rate };
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

/** In the order of SlotFloat. */
export const greedy = [0, 1, 0, 1, 0, 0];

/** Slots' parameters for the first time. */
export function settings(n: number, floats: readonly number[], adapter = -1): Batch["updates"] {
  return {
    ...noUpdates,
    slots: Int32Array.from({ length: n }, (_, s) => s),
    floats: Float32Array.from({ length: n * slotFloats }, (_, i) => floats[i % slotFloats]),
    ints: Int32Array.from({ length: n * slotInts }, (_, i) => (i % slotInts === SlotInt.adapter ? adapter : 0)),
    ...{ promptStart: new Int32Array(n + 1), outputStart: new Int32Array(n + 1) },
  };
}
