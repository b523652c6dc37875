// Owns: the end of a step, from logits to results in host memory: the memory of slots, counts and masks, and the launches of
// kernels/cuda/sample.cu.
import type { Batch, StepResult } from "../batch.js";
import type { Limits } from "../device.js";
import type { Launch } from "./launch.js";
import type { LogitsPlace } from "./lower.js";
import type { PlannedArea, Workspace } from "./memory.js";
import type { HostMemory } from "./native.js";
import { mostTop, type StepMemory } from "./step.js";

/** Ids of a block of mr_logits. */
const stretch = 4096;
/** Bytes of struct Shared in sample.cu, rounded up. */
const sampleShared = 34 << 10;
/** Bytes of struct Spread there. */
const spreadBytes = 3072;

export class Tail {
  /** [slots, vocab] */
  readonly counts: PlannedArea;
  readonly masks: PlannedArea;
  /** 32-bit words of one step's results. */
  readonly resultWords: number;
  private readonly adjusted: PlannedArea;
  private readonly partials: PlannedArea;
  private readonly spreads: PlannedArea;
  private readonly maxTop: number;
  private readonly stretches: number;

  constructor(
    workspace: Workspace,
    private readonly limits: Limits,
    private readonly vocab: number,
    private readonly logits: LogitsPlace | undefined,
  ) {
    const { slots, maxRows } = limits;
    const rows = logits ? maxRows : 0;
    this.stretches = Math.ceil(vocab / stretch);
    this.maxTop = Math.min(vocab, mostTop);
    this.resultWords = 3 * maxRows + 2 * maxRows * this.maxTop;
    this.counts = workspace.add(logits ? 4 * slots * vocab : 0);
    this.masks = workspace.add(4 * rows * Math.ceil(vocab / 32));
    this.adjusted = workspace.add(4 * rows * vocab);
    this.partials = workspace.add(32 * rows * this.stretches);
    this.spreads = workspace.add(spreadBytes * rows);
  }

  /** wave −1: all rows. draws: not all of them take the best token. */
  launches(
    step: StepMemory,
    results: HostMemory,
    flags: HostMemory,
    { rows, wave, draws }: { rows: number; wave: number; draws: boolean },
  ): Launch[] {
    const { logits } = this;
    const end: Launch = {
      kernel: "mr_end",
      grid: [1, 1, 1],
      block: 1,
      sharedBytes: 0,
      args: [{ ptr: step.info.address }, { ptr: BigInt(flags.address) }],
      dependent: true,
    };
    if (!logits || rows === 0) return [end];
    const bytes = this.parameters(step, results, logits);
    const args = [{ bytes }, { i32: wave }];
    const stretches = { grid: [this.stretches, rows, 1], block: 256, sharedBytes: 0, args, dependent: true } as const;
    return [
      { kernel: "mr_logits", ...stretches },
      ...(draws ? [{ kernel: "mr_spread", ...stretches }] : []),
      { kernel: "mr_sample", grid: [rows, 1, 1], block: 1024, sharedBytes: sampleShared, args, dependent: true },
      end,
    ];
  }

  /** What mr_sample left in the ring's entry. */
  read(batch: Batch, results: HostMemory, ring: number): StepResult {
    const rows = batch.rows.length;
    const top = batch.topLogprobs;
    const { buffer, byteOffset } = results.bytes;
    const from = byteOffset + 4 * ring * this.resultWords;
    const { maxRows } = this.limits;
    const ints = new Int32Array(buffer, from, this.resultWords);
    const floats = new Float32Array(buffer, from, this.resultWords);
    const topIds = new Int32Array(rows * top);
    const topLogprobs = new Float32Array(rows * top);
    for (let r = 0; r < rows; r++) {
      const at = 3 * maxRows + 2 * r * top;
      topIds.set(ints.subarray(at, at + top), r * top);
      topLogprobs.set(floats.subarray(at + top, at + 2 * top), r * top);
    }
    return {
      tokens: ints.slice(0, rows),
      logprobs: floats.slice(maxRows, maxRows + rows),
      ranks: ints.slice(2 * maxRows, 2 * maxRows + rows),
      topIds,
      topLogprobs,
    };
  }

  get mostTop(): number {
    return this.maxTop;
  }

  /** struct Tail of sample.cu. */
  private parameters(step: StepMemory, results: HostMemory, logits: LogitsPlace): Uint8Array {
    const { arrays } = step;
    const pointers = [
      ...[step.info, logits.area, this.adjusted].map(({ address }) => address),
      logits.bias(),
      ...[this.partials, step.slotFloats, step.slotInts, step.lastToken, this.counts].map(({ address }) => address),
      ...[arrays.rowSlot, arrays.targets, arrays.rowPositions, arrays.waves].map(({ address }) => address),
      ...[arrays.rowMask, arrays.biasStart, arrays.biasIds, arrays.biasValues].map(({ address }) => address),
      ...[this.masks.address, BigInt(results.address), this.spreads.address],
    ];
    const numbers = [this.resultWords, this.vocab, this.stretches, this.limits.maxRows, this.maxTop];
    const bytes = new Uint8Array(8 * pointers.length + 4 * numbers.length + 12);
    const view = new DataView(bytes.buffer);
    for (const [i, pointer] of pointers.entries()) view.setBigUint64(8 * i, pointer, true);
    const at = 8 * pointers.length;
    for (const [i, number] of numbers.entries()) view.setInt32(at + 4 * i, number, true);
    view.setFloat32(at + 20, logits.scale, true);
    view.setFloat32(at + 24, logits.softcap, true);
    return bytes;
  }
}
