// Owns: how much work may wait for one model, and what a refused caller is told: 429 with a Retry-After that comes from
// measured durations. The engine decides what runs; this only counts.
import { UserError } from "../base/errors.js";

/** Weight of the newest duration in the moving average. */
const newest = 0.2;

export class QueueLimit {
  private open = 0;
  private meanSeconds: number | null = null;
  private readonly startTimes = new Set<{ at: number }>();

  /**
   * @param concurrent choices that the engine runs at once
   * @param maxWaiting choices that may wait beyond those
   * @param now milliseconds
   */
  constructor(
    readonly concurrent: number,
    readonly maxWaiting: number,
    private readonly now: () => number = () => performance.now(),
  ) {}

  get running(): number {
    return Math.min(this.open, this.concurrent);
  }

  get waiting(): number {
    return this.open - this.running;
  }

  /** The next request is refused. */
  get isFull(): boolean {
    return this.open >= this.concurrent + this.maxWaiting;
  }

  /** Takes places for a request of so many choices; the function it returns gives them back (once, however often called). */
  enter(choices: number): () => void {
    const capacity = this.concurrent + this.maxWaiting;
    if (choices > capacity) {
      throw new UserError(
        `The request asks for ${choices} choices (prompts × n), but this server takes at most ${capacity} at once ` +
          `(${this.concurrent} running and ${this.maxWaiting} waiting).`,
        { code: "too_many_choices", param: "n" },
      );
    }
    const excess = this.open + choices - capacity;
    if (excess > 0) {
      const retryAfter = this.secondsUntilFree(excess);
      throw new UserError(
        `The server is full: ${this.running} choices run and ${this.waiting} wait. Try again in ${retryAfter} s.`,
        { status: 429, code: "queue_full", retryAfter },
      );
    }
    this.open += choices;
    const started = { at: this.now() };
    this.startTimes.add(started);
    return () => {
      if (!this.startTimes.delete(started)) return;
      this.open -= choices;
      const seconds = (this.now() - started.at) / 1000;
      this.meanSeconds = this.meanSeconds === null ? seconds : this.meanSeconds + newest * (seconds - this.meanSeconds);
    };
  }

  /**
   * Whole seconds, 1…600. Open requests take turns: with a mean time D from entry to end (waiting included) and N open,
   * Little's law has N / D of them end a second. Before anything has ended, the oldest open one's age stands for D.
   */
  private secondsUntilFree(places: number): number {
    let oldest = 0;
    for (const { at } of this.startTimes) oldest = Math.max(oldest, (this.now() - at) / 1000);
    const mean = Math.max(this.meanSeconds ?? 0, this.meanSeconds === null ? oldest : 0);
    const seconds = Math.ceil((places * mean) / Math.max(1, this.open));
    return Math.min(600, Math.max(1, seconds));
  }
}
