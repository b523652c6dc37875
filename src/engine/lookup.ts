// Owns: guessing what comes next from the text itself: where the last few tokens stood before, what followed them then is
// a draft of what follows now ("prompt lookup"). One a sequence; it learns how often it is right. The engine checks every
// guess by drawing at its position, so guesses change how fast an answer comes and never what it says.
// Source: Saxena, "Prompt Lookup Decoding", 2023; Yang et al., "Inference with Reference", 2023 (arXiv 2304.04487).

import { Hope } from "./hope.js";

/** Tokens that have to agree. */
const context = 3;
/** Earlier places that are compared, the latest first, and how far back. */
const mostPlaces = 32;
const farthest = 64;
/** Most guesses of one step. */
export const mostDrafts = 16;
/** Guesses what follows a text. */
export interface Drafter {
  /**
   * Guesses for what follows tokens[0, length), at most `most`; none where it has none or they would not pay.
   * worth: the probability from which on a guess pays for the time that checking it takes.
   */
  propose(tokens: Int32Array, length: number, most: number, worth: number): Int32Array;
  readonly hope: Hope;
}

export class PromptLookup implements Drafter {
  readonly hope = new Hope();
  /** Last end of each run of `context` tokens, by their hash; what stands there is compared. */
  private readonly ends = new Map<number, number>();
  /** For each end the one before it of the same hash; 0: none. */
  private earlier = new Int32Array(256);
  private seen = 0;

  propose(tokens: Int32Array, length: number, most: number, worth: number): Int32Array {
    const found = this.find(tokens, length);
    const count = Math.min(most, mostDrafts, this.paying(worth), length - found);
    if (found < 0 || count <= 0) {
      if (found >= 0) this.hope.recover();
      return none;
    }
    return tokens.slice(found, found + count);
  }

  /** How many guesses in a row are each likely enough. */
  private paying(worth: number): number {
    const { probability } = this.hope;
    if (probability >= 1 || worth <= 0) return mostDrafts;
    return Math.floor(Math.log(Math.min(1, worth)) / Math.log(probability));
  }

  /**
   * Where what followed the last tokens' earlier occurrence begins; −1: there was none. Of several the one before which the
   * texts agree longest: in code and records the last few tokens alone have stood in many places.
   */
  private find(tokens: Int32Array, length: number): number {
    if (length < context + 1) return -1;
    // The end of the text itself is entered after it has been looked for.
    for (let end = Math.max(context, this.seen + 1); end < length; end++) this.enter(hash(tokens, end), end);
    this.seen = length - 1;
    let [best, longest] = [-1, context - 1];
    let end = this.ends.get(hash(tokens, length)) ?? 0;
    for (let place = 0; end > 0 && place < mostPlaces; place++, end = this.earlier[end]) {
      let same = 0;
      while (same < farthest && same < end && tokens[end - 1 - same] === tokens[length - 1 - same]) same++;
      if (same > longest) [best, longest] = [end, same];
      if (same === farthest) break;
    }
    return best;
  }

  private enter(key: number, end: number): void {
    if (end >= this.earlier.length) {
      const larger = new Int32Array(2 * end);
      larger.set(this.earlier);
      this.earlier = larger;
    }
    this.earlier[end] = this.ends.get(key) ?? 0;
    this.ends.set(key, end);
  }
}

const none = new Int32Array(0);

/** Of the `context` tokens before `end`. */
function hash(tokens: Int32Array, end: number): number {
  let h = 0;
  for (let i = end - context; i < end; i++) h = Math.imul(h ^ tokens[i], 0x9e3779b1) + (h >>> 15);
  return h | 0;
}
