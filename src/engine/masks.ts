// Owns: the masks of a step's constrained rows, from its launch to its draw: they are awaited while the forward runs, and
// not for long; a row whose mask is late draws for nothing and is computed again.
import type { Step } from "../device/batch.js";
import type { EngineOptions } from "./loop.js";
import type { Entry } from "./scheduler.js";
import type { Sequence } from "./sequence.js";

/** Milliseconds after a launch for which masks are awaited: most are there when the forward ends. */
const patience = 2;

/** A row whose draw counts for nothing. late: its mask was not there. failed: it never will be. ended: nothing could follow.
 *  Else what must follow takes the place of the draw. */
export type Void = "late" | "failed" | "ended" | readonly number[];

export interface MaskedStep {
  readonly entries: readonly Entry[];
  /** Filled here. */
  readonly voids: Map<Sequence, Void>;
  readonly step: Step;
  readonly launchedAt: number;
}

/** Gives the step its masks as soon as they are all there, or patience ends. */
export async function bringMasks(
  { entries, voids, step, launchedAt }: MaskedStep,
  vocabSize: number,
  { now, pause }: Pick<EngineOptions, "now" | "pause">,
): Promise<void> {
  const masked = entries.filter(({ sequence, draws }) => draws && sequence.constraint);
  if (masked.length === 0) return;
  const words = Math.ceil(vocabSize / 32);
  const bits = new Uint32Array(masked.length * words);
  let waiting = masked.map(({ sequence }, row) => ({
    sequence,
    mask: bits.subarray(row * words, (row + 1) * words),
  }));
  for (;;) {
    waiting = waiting.filter(({ sequence, mask }) => !isThere(sequence, mask, voids));
    if (waiting.length === 0 || now() - launchedAt >= patience) break;
    await pause();
  }
  for (const { sequence, mask } of waiting) {
    voids.set(sequence, "late");
    mask.fill(0xffffffff);
  }
  step.setMasks(bits);
}

function isThere(sequence: Sequence, mask: Uint32Array, voids: Map<Sequence, Void>): boolean {
  const constraint = sequence.constraint!;
  if (!sequence.finished) {
    if (!constraint.ready()) return false;
    if (!constraint.failure) {
      const jump = constraint.jump();
      if (jump.length > 0) voids.set(sequence, jump);
      else if (constraint.mask(mask)) return true;
      else voids.set(sequence, "ended");
    } else voids.set(sequence, "failed");
  }
  mask.fill(0xffffffff);
  return true;
}
