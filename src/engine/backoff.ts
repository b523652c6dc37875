// Owns: when an engine that died may be started again. One that had answered something is started by the next request; one
// that died, or could not be loaded, without an answer is given more time after each try, so that a host that cannot live
// is not loaded over and over.

const longestMs = 60_000;

export class Backoff {
  /** Hosts in a row that gave no answer. */
  private barren = 0;
  private notBefore = Number.NEGATIVE_INFINITY;

  /** now: milliseconds. */
  constructor(private readonly now: () => number) {}

  /** The host is gone, or never came up. */
  ended(answered: boolean): void {
    this.barren = answered ? 0 : this.barren + 1;
    // The first one may have been bad luck.
    const wait = this.barren < 2 ? 0 : Math.min(longestMs, 1000 * 2 ** (this.barren - 2));
    this.notBefore = this.now() + wait;
  }

  /** Milliseconds until another may be started. */
  get waitMs(): number {
    return Math.max(0, this.notBefore - this.now());
  }
}
