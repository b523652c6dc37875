// Owns: what a GPU can at best, to measure kernels against: how fast it reads its memory (measured), and its tensor cores' bf16
// operations a second (the highest clock × what the architecture does a clock).
import { Sequence } from "./launcher.js";
import type { Cuda } from "./native.js";

export interface CudaRoofs {
  /** Bytes a second. */
  readonly readBytes: number;
  /** Operations a second; dense, sums in f32. */
  readonly bf16: number;
}

/** Operations a clock and multiprocessor, by compute capability. */
const tensorOps: readonly (readonly [capability: number, ops: number])[] = [
  [100, 8192],
  [90, 4096],
  [89, 1024],
  [86, 1024],
  [80, 2048],
];

const mostRead = 8 * 2 ** 30;

export function cudaRoofs(cuda: Cuda): CudaRoofs {
  const { multiprocessors, capability, clock } = cuda.properties;
  const [, ops] = tensorOps.find(([least]) => capability >= least)!;
  const bytes = 2 ** Math.floor(Math.log2(Math.min(mostRead, cuda.memory().free / 2)));
  const from = cuda.alloc(bytes);
  const out = cuda.alloc(4);
  cuda.fill(from, 1, bytes);
  const args = [{ ptr: BigInt(from) }, { i64: BigInt(bytes / 64) }, { ptr: BigInt(out) }];
  const grid = [8 * multiprocessors, 1, 1] as const;
  const read = new Sequence(cuda, [{ kernel: "mr_roof_read", grid, block: 512, sharedBytes: 0, args }], false);
  const ms = Math.min(...timed(cuda, () => read.play(), 7));
  cuda.free(from);
  cuda.free(out);
  return { readBytes: (1000 * bytes) / ms, bf16: multiprocessors * clock * ops };
}

/** GPU milliseconds of what `work` launches, each time, after once that does not count. */
export function timed(cuda: Cuda, work: () => void, repeats: number): number[] {
  const times: number[] = [];
  for (let i = 0; i <= repeats; i++) {
    const from = cuda.event();
    work();
    const ms = cuda.elapsed(from, cuda.event());
    if (i > 0) times.push(ms);
  }
  return times;
}
