// Products on Hopper without a GPU: what linear.ts launches for the matrices of common models hands linear_few.cu,
// linear_packed.cu and linear_gemm.cu what they declare, fits a multiprocessor, and reaches every row of W and every token.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import type { StorageType } from "../../src/base/dtype.js";
import type { Arg, Launch, LowerContext, Matrix, TensorMap } from "../../src/device/cuda/launch.js";
import { linearKernels } from "../../src/device/cuda/linear.js";

const source = (name: string) =>
  readFileSync(fileURLToPath(new URL(`../../kernels/cuda/${name}`, import.meta.url)), "utf8");
const names = (list: string) =>
  list
    .replaceAll("\\", " ")
    .split(",")
    .map((one) => one.trim());

const product = names(/#define MR_PRODUCT_PARAMETERS([^#]*)\n#define/.exec(source("linear_wgmma.cuh"))![1]);
const kernels = { few: "linear_few.cu", gemm: "linear_gemm.cu" };
const own = (file: string) => names(/\(MR_PRODUCT_PARAMETERS,([^)]*)\)/.exec(source(file))![1]);

/** Of a block: what the driver lets a kernel have, less what these keep for themselves. */
const mostShared = 232448 - 2 * 24 * 8;

const area = { address: 4096n };
const limits = { maxTokens: 8192, maxRows: 64, maxSequences: 64, contextLength: 8192 };
const context = {
  properties: {
    name: "none",
    multiprocessors: 132,
    clock: 2e9,
    sharedBytes: 232448,
    l2Bytes: 50 << 20,
    capability: 90,
  },
  ...{ limits, deterministic: false, step: { info: 4096n } },
  shared: () => area,
  scratch: () => area,
  once() {},
} as unknown as LowerContext;

/** Rows of the segments, columns, gated. */
type Shape = readonly [rows: readonly number[], cols: number, gated: boolean];
const shapes: readonly Shape[] = [
  [[4096, 1024, 1024], 4096, false], // Llama 3.1 8B
  [[4096], 4096, false],
  [[14336, 14336], 4096, true],
  [[4096], 14336, false],
  [[128256], 4096, false],
  [[2048, 512, 512], 2048, false], // Llama 3.2 1B
  [[8192, 8192], 2048, true],
  [[576, 192, 192], 576, false], // SmolLM2 135M
  [[1536, 1536], 576, true],
  [[100, 37], 96, false], // of no model
];

function launches(type: StorageType, [rows, cols, gated]: Shape, tokens: number): readonly Launch[] {
  const segments = rows.map((n): Matrix => ({ type, rows: n, cols, address: 8192n }));
  const width = gated ? rows[0] : rows.reduce((a, b) => a + b);
  const task = {
    x: { address: 4096n, dtype: "bf16", width: cols, rows: false },
    y: { address: 4096n, dtype: "bf16", width, rows: false },
    ...{ segments, bias: () => 0n, epilogue: gated ? ({ gated: "silu" } as const) : ("store" as const) },
  } as const;
  return linearKernels.linear(task, context)({ tokens, rows: tokens, sequences: 1, decode: false });
}

const number = (args: readonly Arg[], at: number) => (args[at] as { i32: number }).i32;

test.each(["Q4_0", "Q8_0", "Q6_K"] as const)("products of 9 to 64 tokens with %s as it lies", (type) => {
  const declared = names(/MR_PACKED\(N\)[^(]*\(320[^(]*\(\s*\\?([^)]*)\)/.exec(source("linear_packed.cu"))![1]);
  for (const shape of shapes) {
    const [rows, cols, gated] = shape;
    for (const tokens of [8, 9, 16, 17, 32, 33, 64, 65]) {
      const made = launches(type, shape, tokens);
      const launch = made.at(-1)!;
      const what = `${launch.kernel}: ${tokens} tokens, ${rows} × ${cols}`;
      const most = /^mr_linear_packed_(\d+)$/.exec(launch.kernel)?.[1];
      expect(most !== undefined, what).toBe(tokens > 8 && tokens <= 64 && cols % 256 === 0);
      if (!most) continue;
      expect(launch.args.length, what).toBe(declared.length);
      for (const [i, arg] of launch.args.entries()) {
        const wanted = declared[i].includes("TensorMap") ? "map" : declared[i].includes("*") ? "ptr" : "i32";
        expect(wanted in arg, `${what}: ${declared[i]}`).toBe(true);
      }
      const [pass, splits, slot, wStages, xStages] = [-5, -4, -3, -2, -1].map((i) =>
        number(launch.args, launch.args.length + i),
      );
      expect(pass >= tokens && pass <= Number(most) && pass % 8 === 0, what).toBe(true);
      expect(wStages >= 2 && wStages <= 8 && xStages >= 2 && xStages <= 16, what).toBe(true);
      expect(1024 + xStages * pass * 128 + wStages * 8 * slot + 8 * 16 * 72, what).toBeLessThanOrEqual(
        launch.sharedBytes,
      );
      // What wgmma reads beyond the tokens lies there, and the sums.
      expect(Math.max(Number(most) - pass, 0) * 128, what).toBeLessThanOrEqual(wStages * 8 * slot);
      expect(pass * (128 + 8) * 4 + 1024, what).toBeLessThanOrEqual(launch.sharedBytes);
      const blocks = tokens <= 32 ? 2 : 1;
      expect(blocks * (launch.sharedBytes + 1024 + 384), what).toBeLessThanOrEqual(233472);
      expect(splits === launch.cluster && splits <= Math.min(8, cols / 256), what).toBe(true);
      const groups = gated ? Math.ceil(rows[0] / 64) : rows.reduce((sum, n) => sum + Math.ceil(n / 128), 0);
      expect(launch.grid[0], what).toBe(groups * splits);
      const boxes = launch.args.slice(0, 2).map((arg) => (arg as { map: TensorMap }).map.box);
      expect(boxes, what).toEqual(Array(2).fill([64, pass]));
    }
  }
});

test.each(["BF16", "Q4_0"] as const)("products of many tokens with %s on wgmma", (type) => {
  for (const shape of shapes) {
    const [rows, cols, gated] = shape;
    for (const tokens of [9, 16, 17, 24, 32, 64, 65, 100, 128, 129, 512, 513, 8192]) {
      const made = launches(type, shape, tokens);
      const launch = made.at(-1)!;
      const [, kind, ...sizes] = /^mr_linear_(few|gemm)_(?:(\d+)_)?(\d+)$/.exec(launch.kernel) ?? [];
      if (launch.kernel.startsWith("mr_linear_packed_")) continue;
      if (!kind) {
        // Few tokens of packed weights stream, and what would take too much room when widened.
        const streams = type !== "BF16" && (tokens <= 16 || rows[0] * cols > 2 ** 28);
        expect(streams && launch.kernel.startsWith("mr_linear_"), `${launch.kernel} for ${tokens} tokens`).toBe(true);
        continue;
      }
      const what = `${launch.kernel}: ${tokens} tokens, ${rows} × ${cols}`;
      const [most, block] = [Number(sizes[0] ?? 128), Number(sizes[1])];
      const parameters = [...product, ...own(kernels[kind as "few" | "gemm"])];
      expect(launch.args.length, what).toBe(parameters.length);
      for (const [i, arg] of launch.args.entries()) {
        const wanted = parameters[i].includes("TensorMap") ? "map" : parameters[i].includes("*") ? "ptr" : "i32";
        expect(wanted in arg, `${what}: ${parameters[i]}`).toBe(true);
      }
      expect(launch.sharedBytes, what).toBeLessThanOrEqual(mostShared);
      expect(launch.grid[0] % launch.cluster!, what).toBe(0);
      expect(launch.cluster, what).toBeLessThanOrEqual(8);
      // Every row: blocks end with segments; gated ones have rows of both halves.
      const blocks = gated
        ? Math.ceil(rows[0] / (block / 2))
        : rows.reduce((sum, n) => sum + Math.ceil((16 * Math.ceil(n / 16)) / block), 0);
      const boxes = launch.args.slice(0, 5).map((arg) => (arg as { map: TensorMap }).map.box);
      expect(boxes.slice(1), what).toEqual(Array(4).fill([256, block / 32]));
      if (kind === "few") {
        const [pass, splits, stages, late] = [0, 1, 2, 3].map((i) => number(launch.args, product.length + i));
        expect(launch.grid[0], what).toBe(blocks * splits);
        expect(pass >= tokens && pass <= most && pass % 8 === 0, what).toBe(true);
        expect(stages >= 2 && stages <= 24, what).toBe(true);
        expect(Math.max(stages * (pass + block) * 128, pass * (block + 8) * 4) + 1024, what).toBeLessThanOrEqual(
          launch.sharedBytes,
        );
        expect([splits, late, boxes[0]], what).toEqual([launch.cluster, made.length > 1 ? 1 : 0, [64, pass]]);
        expect(splits <= Math.ceil(cols / 64), what).toBe(true);
      } else {
        expect(launch.grid[0] <= 132 && number(launch.args, product.length) * 256 >= tokens, what).toBe(true);
        expect(boxes[0], what).toEqual([64, 128]);
      }
    }
  }
});
