// Owns: how likely a guess of the next token is to be right, as far as those before it have shown.

/** How much one outcome counts; and how fast the hope comes back while nothing is tried. */
const rate = 0.15;
const recovery = 0.01;

export class Hope {
  /** That a guess is right, given that those before it in its row were. */
  probability = 0.7;

  /** So many guesses in a row were checked, and so many right before the first wrong one. */
  learn(guessed: number, right: number): void {
    for (let i = 0; i < Math.min(guessed, right + 1); i++)
      this.probability += rate * ((i < right ? 1 : 0) - this.probability);
  }

  /** Nothing was tried: the text may have changed since. */
  recover(): void {
    this.probability += recovery * (1 - this.probability);
  }

  /** Tokens that a step brings on average which checks so many guesses: those that are right and the one after them. */
  expected(guesses: number): number {
    const p = Math.min(this.probability, 1 - 1e-9);
    return (1 - p ** (guesses + 1)) / (1 - p);
  }
}
