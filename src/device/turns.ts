// Owns: the order in which a program's calls take effect, where a step may wait for its masks: what is called after it waits
// behind it.
import { check } from "../base/errors.js";

export class Turns<Step> {
  private holding: Step | undefined;
  private readonly queue: (() => void)[] = [];
  private closed = false;

  /** At once where nothing waits, else after it. */
  take(work: () => void): void {
    if (this.holding === undefined) work();
    else this.queue.push(work);
  }

  /** As take, with what comes of it; rejects once the program is closed. */
  reach<T>(work: () => T | Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.take(() => {
        try {
          check(!this.closed, "the program is closed");
          resolve(work());
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  /** Within its turn: what comes later waits until it is resumed. */
  hold(step: Step): void {
    this.holding = step;
  }

  /** Does what the step waited with, then what waits behind it, up to a step that waits itself. Nothing unless it is held. */
  resume(step: Step, work: () => void): void {
    if (this.holding !== step) return;
    this.holding = undefined;
    work();
    while (this.queue.length > 0 && this.holding === undefined) this.queue.shift()!();
  }

  /** abandon: for the step that waits. Those behind it find the program closed, and say so to their callers. */
  close(abandon: (step: Step) => void): void {
    this.closed = true;
    if (this.holding !== undefined) abandon(this.holding);
    this.holding = undefined;
    for (const work of this.queue.splice(0)) work();
  }
}
