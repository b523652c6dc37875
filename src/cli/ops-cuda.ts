// Owns: what `bench ops --device cuda` measures: each kernel of the CUDA device alone, as GPU time of a graph of several nodes
// of one op, whose weights or pages together are more than the L2 holds, beside this GPU's limits and cuBLAS.
import { randomBytes } from "node:crypto";
import type { StorageType } from "../base/dtype.js";
import { type Batch, noBias } from "../device/batch.js";
import { openCublas } from "../device/cuda/cublas/native.js";
import { CudaDevice } from "../device/cuda/device.js";
import { Cuda } from "../device/cuda/native.js";
import type { CudaProgram } from "../device/cuda/program.js";
import { type CudaRoofs, cudaRoofs, timed } from "../device/cuda/roof.js";
import type { Limits } from "../device/device.js";
import { attention, cacheWrite, gatherRows, linear, logits, rmsNorm, sample } from "../plan/ops/index.js";
import { median } from "./measure.js";
import { greedy, OneOp, type OpRow, settings, step } from "./ops.js";

export type CudaRow = OpRow<keyof CudaRoofs>;

const usualTypes: readonly StorageType[] = ["BF16", "F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0"];
/** Bytes that a measurement reads, at least: many times the L2. */
const leastBytes = 600e6;
const mostCopies = 16;
const repeats = 9;
const pageTokens = 64;

export class CudaOps {
  readonly roofs: CudaRoofs;
  private readonly cuda: Cuda;
  private readonly device: CudaDevice;

  constructor(
    ordinal = 0,
    private readonly options: {
      readonly types?: readonly StorageType[];
      readonly shape?: readonly [number, number];
    } = {},
  ) {
    this.device = new CudaDevice(ordinal);
    this.cuda = new Cuda(ordinal);
    this.roofs = cudaRoofs(this.cuda);
  }

  /** Products of the usual types with 1 to 2048 tokens, attention, a norm, sampling. */
  async *rows(): AsyncGenerator<CudaRow> {
    for (const type of this.options.types ?? usualTypes) yield* this.products(type);
    yield* this.attentions(1, 32_768);
    yield* this.attentions(32, 1024);
    yield* this.prompts(4096);
    yield* this.norms();
    yield* this.samples();
  }

  async close(): Promise<void> {
    this.cuda.close();
    await this.device.close();
  }

  private async *products(type: StorageType): AsyncGenerator<CudaRow> {
    const [rows, cols] = this.options.shape ?? [14_336, 4096];
    const most = 2048;
    const one = new OneOp(most);
    const x = one.values("x", cols);
    const first = one.weight("w0", type, [rows, cols]);
    const bytes = one.bytesOf("w0");
    const copies = Math.min(mostCopies, Math.ceil(leastBytes / bytes));
    for (let i = 0; i < copies; i++) {
      const weight = i === 0 ? first : one.weight(`w${i}`, type, [rows, cols], "w0");
      one.builder.apply(linear, `y${i}`, { x, weight }, {});
    }
    const program = await this.compile(one, { maxTokens: most });
    for (const tokens of [1, 8, 32, 128, most]) {
      const times = await program.measure(
        prompt(tokens, false),
        (kernel) => kernel.startsWith("mr_linear_") && kernel !== "mr_linear_embed",
        repeats,
      );
      const libraryMs = type === "BF16" ? this.library(rows, tokens, cols, copies) : undefined;
      const work = { readBytes: bytes + 2 * tokens * (rows + cols), bf16: 2 * tokens * rows * cols };
      yield { ...this.row(`linear ${type}`, `${rows} × ${cols}`, tokens, median(times) / copies, work), libraryMs };
    }
    await program.close();
  }

  /** cuBLAS with as many matrices in turn: milliseconds of one. */
  private library(rows: number, tokens: number, cols: number, copies: number): number | undefined {
    const { cuda } = this;
    const cublas = openCublas(cuda.stream);
    if (!cublas) return undefined;
    const size = 2 * rows * cols;
    const [w, x, y] = [size * copies, 2 * tokens * cols, 2 * tokens * rows].map((bytes) => cuda.alloc(bytes));
    // Random values: what multiplies zeros draws less power and runs at a higher clock.
    const noise = randomBytes(1 << 20).map((byte, i) => (i % 2 === 0 ? byte : 0x3c + (byte & 0x83)));
    for (const [to, bytes] of [
      [w, size * copies],
      [x, 2 * tokens * cols],
    ]) {
      for (let at = 0; at < bytes; at += noise.length)
        cuda.toDevice(to + at, cuda.addressOf(noise), Math.min(noise.length, bytes - at));
    }
    const all = () => {
      for (let i = 0; i < copies; i++) cublas.multiply(w + i * size, x, y, rows, tokens, cols);
    };
    all();
    const graph = cuda.capture(all);
    const ms = median(timed(cuda, () => cuda.launchGraph(graph), repeats)) / copies;
    cuda.destroyGraph(graph);
    for (const address of [w, x, y]) cuda.free(address);
    cublas.close();
    return ms;
  }

  /** One token each of some sequences after a context, as an 8B model's heads. */
  private async *attentions(sequences: number, context: number): AsyncGenerator<CudaRow> {
    const each = context * heads.numKvHeads * 2 * heads.headDim * 2 * sequences;
    const copies = Math.min(mostCopies, Math.ceil(leastBytes / each));
    const program = await this.attention(copies, sequences, context, 64);
    const ms = median(await program.measure(decode(sequences, context), isAttention, repeats)) / copies;
    const flops = 4 * sequences * context * heads.numHeads * heads.headDim;
    const what = `${sequences} × after ${context - 1}, ${heads.numHeads} heads, ${heads.numKvHeads} of keys and values`;
    yield this.row("attention", what, sequences, ms, { readBytes: each, bf16: flops });
    await program.close();
  }

  private async *prompts(context: number): AsyncGenerator<CudaRow> {
    const program = await this.attention(1, 1, context, context);
    const ms = median(await program.measure(prompt(context), isAttention, repeats));
    const { numHeads, numKvHeads, headDim } = heads;
    const work = {
      readBytes: 4 * context * (numHeads + numKvHeads) * headDim,
      bf16: 2 * context * context * numHeads * headDim,
    };
    yield this.row("attention", `a prompt, ${numHeads} heads of ${headDim}`, context, ms, work);
    await program.close();
  }

  private attention(copies: number, sequences: number, context: number, maxTokens: number): Promise<CudaProgram> {
    const { numHeads, ...kv } = heads;
    const one = new OneOp(maxTokens);
    const q = one.values("q", numHeads * kv.headDim);
    const [k, v] = ["k", "v"].map((name) => one.values(name, kv.numKvHeads * kv.headDim));
    for (let i = 0; i < copies; i++) {
      const cache = one.builder.cache(`cache${i}`, { kind: "paged", ...kv });
      one.builder.node(cacheWrite, `write${i}`, { k, v, cache }, kv);
      one.builder.apply(attention, `y${i}`, { q, cache }, { ...heads, scale: kv.headDim ** -0.5, causal: true });
    }
    return this.compile(one, { maxTokens, sequences, contextLength: context });
  }

  private async *norms(): AsyncGenerator<CudaRow> {
    const [tokens, width] = [2048, 4096];
    const one = new OneOp(tokens);
    const inputs = { x: one.values("x", width), weight: one.weight("w", "F32", [width]) };
    one.builder.apply(rmsNorm, "y", inputs, { eps: 1e-5, groups: 1 });
    const program = await this.compile(one, { maxTokens: tokens });
    for (const n of [1, tokens]) {
      const ms = median(await program.measure(prompt(n, false), (kernel) => kernel === "mr_norm", repeats));
      yield this.row("rmsNorm", `${width} values`, n, ms, { readBytes: n * width * 6, bf16: 4 * n * width });
    }
    await program.close();
  }

  /** From logits to tokens. */
  private async *samples(): AsyncGenerator<CudaRow> {
    const [vocab, width, rows] = [128_256, 64, 64];
    const one = new OneOp(vocab);
    const x = one.builder.apply(
      gatherRows,
      "x",
      { x: one.values("all", width), rows: one.builder.input("sampleRows") },
      {},
    );
    const weight = one.weight("w", "F32", [vocab, width], "all.table");
    const scores = one.builder.apply(logits, "logits", { x, weight }, { scale: 1000 });
    one.builder.node(sample, "sample", { logits: scores }, {});
    const program = await this.compile(one, { maxTokens: rows, rows, sequences: rows, contextLength: 64 });
    for (const [what, floats] of [
      ["greedy", greedy],
      ["temperature 1, top-p 0.9", [1, 0.9, 0, 1, 0, 0]],
    ] as const) {
      for (const n of [1, rows]) {
        const batch = { ...decode(n, 1, false), updates: settings(n, floats) };
        const drawn = (kernel: string) => ["mr_logits", "mr_spread", "mr_sample"].includes(kernel);
        const ms = median(await program.measure(batch, drawn, repeats));
        yield this.row("sample", `${what}, ${vocab} ids`, n, ms, { readBytes: 4 * n * vocab, bf16: 0 });
      }
    }
    await program.close();
  }

  private row(
    op: string,
    what: string,
    tokens: number,
    ms: number,
    work: Readonly<Record<keyof CudaRoofs, number>>,
  ): CudaRow {
    const { roofs } = this;
    const bound = work.bf16 / roofs.bf16 > work.readBytes / roofs.readBytes ? "bf16" : "readBytes";
    const rate = (1000 * work[bound]) / ms;
    return { op, what, tokens, ms, bound, rate, share: rate / roofs[bound] };
  }

  private compile(
    one: OneOp,
    {
      maxTokens,
      sequences = 1,
      rows = 1,
      contextLength = maxTokens,
    }: { maxTokens: number; sequences?: number; rows?: number; contextLength?: number },
  ): Promise<CudaProgram> {
    const limits: Limits = {
      ...{ maxTokens, maxRows: rows, maxSequences: sequences, slots: sequences, contextLength },
      ...{
        memoryBytes: this.device.info.memoryBytes,
        kvDtype: "bf16",
        threads: 1,
        depth: 1,
        deterministic: false,
        adapterSlots: 0,
      },
      maxPages: sequences * Math.ceil(contextLength / pageTokens),
    };
    return one.compile(this.device, limits) as Promise<CudaProgram>;
  }
}

const heads = { numHeads: 32, numKvHeads: 8, headDim: 128, vHeadDim: 128 };
const isAttention = (kernel: string) => kernel.startsWith("mr_attention");

/** Tokens of one sequence, from its start. */
function prompt(tokens: number, cached = true): Batch {
  return { ...step(tokens, 0, cached, pageTokens), updates: settings(1, greedy) };
}

/** A token each of n sequences, whose pages follow each other; a row each where nothing is cached. */
function decode(n: number, context: number, cached = true): Batch {
  const pages = Math.ceil(context / pageTokens);
  const each = (value: (s: number) => number, length = n) => Int32Array.from({ length }, (_, s) => value(s));
  const rows = cached ? new Int32Array(0) : each((s) => s);
  return {
    ...step(n, 0, false),
    slots: each((s) => s),
    tokenStart: each((s) => s, n + 1),
    kvStart: each(() => context - 1),
    pages: cached
      ? [{ start: each((s) => s * pages, n + 1), first: each(() => 0), ids: each((i) => i, n * pages) }]
      : [],
    rows,
    targets: rows.map(() => -1),
    rowPositions: rows.map(() => 1),
    bias: noBias(rows.length),
    updates: settings(n, greedy),
  };
}
