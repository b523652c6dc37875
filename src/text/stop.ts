// Owns: stop strings in streamed text. Text is held back exactly as long as it may be the beginning of a stop string. The
// stop string that is complete first ends the text; of several that end at the same place, the longest. So the outcome
// does not depend on how the text was cut into pieces.
import { UserError } from "../base/errors.js";

export interface StopResult {
  /** What may be shown now. */
  readonly text: string;
  /** The stop string that ended the text; nothing may be pushed after it. */
  readonly stop?: string;
}

export class StopMatcher {
  private readonly stops: readonly string[];
  private held = "";
  private stopped = false;

  /** include: the stop string itself is part of the text. */
  constructor(
    stops: readonly string[],
    private readonly include = false,
  ) {
    if (stops.includes("")) throw new UserError("a stop string must not be empty", { param: "stop" });
    this.stops = [...new Set(stops)];
  }

  push(text: string): StopResult {
    if (this.stopped) return { text: "" };
    if (this.stops.length === 0) return { text };
    const buffer = this.held + text;
    const match = this.firstMatch(buffer);
    if (match !== undefined) {
      this.stopped = true;
      this.held = "";
      const end = match.start + match.stop.length;
      return { text: buffer.slice(0, this.include ? end : match.start), stop: match.stop };
    }
    const keep = this.possible(buffer);
    this.held = buffer.slice(buffer.length - keep);
    return { text: buffer.slice(0, buffer.length - keep) };
  }

  /** At the end of the text: what was held back and is no stop string after all. */
  flush(): string {
    const text = this.held;
    this.held = "";
    return text;
  }

  private firstMatch(buffer: string): { start: number; stop: string } | undefined {
    let best: { start: number; stop: string } | undefined;
    for (const stop of this.stops) {
      const start = buffer.indexOf(stop);
      if (start < 0) continue;
      const sooner = best === undefined ? 1 : best.start + best.stop.length - (start + stop.length);
      if (sooner > 0 || (sooner === 0 && best !== undefined && start < best.start)) best = { start, stop };
    }
    return best;
  }

  /** Length of the longest end of `buffer` with which a stop string begins. */
  private possible(buffer: string): number {
    let longest = 0;
    for (const stop of this.stops) {
      for (let length = Math.min(stop.length - 1, buffer.length); length > longest; length--) {
        if (buffer.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
