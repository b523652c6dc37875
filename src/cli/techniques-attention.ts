// Owns: the flash attention row of `bench techniques`: the CPU device's attention over pages beside attention that keeps
// every score, on the same queries, keys and values.

import { UserError } from "../base/errors.js";
import { CpuDevice } from "../device/cpu/device.js";
import { loadNative } from "../device/cpu/native.js";
import type { Limits, WeightSource } from "../device/device.js";
import { physicalCores } from "../host/load.js";
import { PlanBuilder } from "../plan/build.js";
import { attention, cacheWrite, embed } from "../plan/ops/index.js";
import { median } from "./measure.js";
import { step } from "./ops.js";
import type { TechniqueOptions, TechniqueRow } from "./techniques.js";

const heads = 8;
const kvHeads = 2;
const dim = 64;
const repeats = 3;

/** Throws UserError on a device without native kernels. */
export async function attentionRows(
  { threads = physicalCores() }: TechniqueOptions,
  contexts: readonly number[] = [512, 2048, 4096],
): Promise<TechniqueRow[]> {
  const rows: TechniqueRow[] = [];
  for (const n of contexts) {
    const tables = randomTables(n);
    const flash = await flashTime(n, tables, threads);
    const naive = naiveTime(n, tables, threads);
    const close = flash.last.every((value, i) => Math.abs(value - naive.last[i]) < 1e-3);
    if (!close) throw new UserError("the two ways of attention disagree: this build of the kernels is broken");
    const row = { technique: "flash attention", what: `ms for ${n} tokens, a layer of ${heads} heads`, unit: "ms" };
    rows.push({ ...row, variant: "with", value: flash.ms, bytes: flash.bytes });
    rows.push({ ...row, variant: "all scores kept", value: naive.ms, bytes: naive.bytes });
  }
  return rows;
}

type Tables = Readonly<Record<"q" | "k" | "v", Float32Array>>;

function randomTables(n: number): Tables {
  const table = (width: number) => Float32Array.from({ length: n * width }, () => 2 * Math.random() - 1);
  return { q: table(heads * dim), k: table(kvHeads * dim), v: table(kvHeads * dim) };
}

/** A plan of nothing but attention: queries, keys and values are looked up, token i's in row i. */
async function flashTime(n: number, tables: Tables, threads: number) {
  const b = new PlanBuilder(n);
  const ids = b.input("tokenIds");
  const look = (name: keyof Tables, width: number) => {
    const piece = { name, type: "F32", shape: [n, width] } as const;
    const weight = b.weight(`${name}.table`, [n, width], [piece]);
    return b.apply(embed, name, { ids, weight }, { scale: 1 });
  };
  const kv = { numKvHeads: kvHeads, headDim: dim, vHeadDim: dim };
  const q = look("q", heads * dim);
  const cache = b.cache("cache", { kind: "paged", ...kv });
  const k = look("k", kvHeads * dim);
  const v = look("v", kvHeads * dim);
  b.node(cacheWrite, "write", { k, v, cache }, kv);
  b.apply(attention, "y", { q, cache }, { ...kv, numHeads: heads, scale: dim ** -0.5, causal: true });
  const device = new CpuDevice();
  const limits: Limits = {
    maxTokens: n,
    maxRows: 1,
    maxSequences: 1,
    slots: 1,
    contextLength: n,
    memoryBytes: device.info.memoryBytes,
    kvDtype: "f32",
    threads,
    depth: 1,
    deterministic: false,
    adapterSlots: 0,
    maxPages: n / 16,
  };
  const program = await device.compile(b.finish(), weightsOf(tables), limits, { dump: true });
  const times: number[] = [];
  for (let i = 0; i < repeats; i++) {
    const start = performance.now();
    await program.run(step(n, 0)).result;
    times.push(performance.now() - start);
  }
  const { data } = await program.dump("y");
  // What flash attention keeps beside its operands: the running sums of a tile, in each thread's scratch.
  const bytes = threads * 64 * (dim + 2 * dim + 6) * 4;
  await program.close();
  return { ms: median(times), bytes, last: data.slice((n - 1) * heads * dim) as Float32Array };
}

function weightsOf(tables: Tables): WeightSource {
  const infos = Object.entries(tables).map(([name, { length, byteLength: bytes }]) => {
    const width = name === "q" ? heads * dim : kvHeads * dim;
    return [name, { name, type: "F32", shape: [length / width, width], bytes }] as const;
  });
  const read = (name: string) => new Uint8Array(tables[name as keyof Tables].buffer);
  return { tensors: new Map(infos), read, release: () => {} };
}

function naiveTime(n: number, { q, k, v }: Tables, threads: number) {
  const native = loadNative();
  const out = new Float32Array(q.length);
  const times: number[] = [];
  let bytes = 0;
  for (let i = 0; i < repeats; i++) {
    const start = performance.now();
    bytes = native.naiveAttention(q, k, v, out, n, heads, kvHeads, dim, threads);
    times.push(performance.now() - start);
  }
  return { ms: median(times), bytes, last: out.slice((n - 1) * heads * dim) };
}
