// Owns: merging the symbols of one word, best pair first, leftmost of equals first: what byte-pair encoding (a pair's rank
// is its line in the merges) and SentencePiece's (a pair's rank is its piece's score) have in common. Short words are
// merged by looking for the best pair again each time; long ones with a heap, in O(n log n).
import { type PairPieces, tableSize, type Vocabulary } from "./vocabulary.js";

const shortWord = 24;
const noRank = 0x7fffffff;
/** A heap key is rank × 2³¹ + position: exact in a double for ranks below 2²². */
const positions = 2 ** 31;
const maxRank = 2 ** 22;

export abstract class Merger {
  /** Of symbol i: its id (-1: not in the vocabulary), its first byte, its neighbours (-1: none). */
  protected ids = new Int32Array(64);
  protected starts = new Int32Array(65);
  private ends = new Int32Array(64);
  private next = new Int32Array(64);
  private previous = new Int32Array(64);
  /** Of the pair (i, next): its rank and what it becomes. */
  private ranks = new Int32Array(64);
  private merged = new Int32Array(64);
  private heap = new Float64Array(64);
  private heapLength = 0;
  /** Set by rankOf beside the rank that it returns. */
  protected mergedId = -1;
  count = 0;

  /** The rank of the pair of symbols whose bytes are [start, middle) and [middle, end), or noRank. */
  protected abstract rankOf(left: number, right: number, start: number, end: number): number;

  clear(): void {
    this.count = 0;
  }

  add(id: number, start: number): void {
    if (this.count === this.ids.length) this.grow();
    this.ids[this.count] = id;
    this.starts[this.count++] = start;
  }

  private grow(): void {
    const size = this.ids.length * 2;
    const copy = (old: Int32Array, length: number) => {
      const grown = new Int32Array(length);
      grown.set(old);
      return grown;
    };
    this.ids = copy(this.ids, size);
    this.starts = copy(this.starts, size + 1);
    this.ends = new Int32Array(size);
    this.next = new Int32Array(size);
    this.previous = new Int32Array(size);
    this.ranks = new Int32Array(size);
    this.merged = new Int32Array(size);
  }

  /** Merges what was added; `end` is the byte after the last symbol. Afterwards symbols 0 … count-1 are the result. */
  merge(end: number): void {
    this.starts[this.count] = end;
    if (this.count < 2) return;
    if (this.count <= shortWord) this.mergeShort();
    else this.mergeLong();
  }

  id(symbol: number): number {
    return this.ids[symbol];
  }

  start(symbol: number): number {
    return this.starts[symbol];
  }

  end(symbol: number): number {
    return this.starts[symbol + 1];
  }

  private mergeShort(): void {
    const { ids, starts, ranks, merged } = this;
    let count = this.count;
    for (let i = 0; i + 1 < count; i++) {
      ranks[i] = this.rankOf(ids[i], ids[i + 1], starts[i], starts[i + 2]);
      merged[i] = this.mergedId;
    }
    for (;;) {
      let best = noRank;
      let at = -1;
      for (let i = 0; i + 1 < count; i++) {
        if (ranks[i] < best) {
          best = ranks[i];
          at = i;
        }
      }
      if (at < 0) break;
      ids[at] = merged[at];
      count--;
      for (let i = at + 1; i < count; i++) {
        ids[i] = ids[i + 1];
        starts[i] = starts[i + 1];
        ranks[i] = ranks[i + 1];
        merged[i] = merged[i + 1];
      }
      starts[count] = starts[count + 1];
      if (at > 0) {
        ranks[at - 1] = this.rankOf(ids[at - 1], ids[at], starts[at - 1], starts[at + 1]);
        merged[at - 1] = this.mergedId;
      }
      if (at + 1 < count) {
        ranks[at] = this.rankOf(ids[at], ids[at + 1], starts[at], starts[at + 2]);
        merged[at] = this.mergedId;
      }
    }
    this.count = count;
  }

  private mergeLong(): void {
    const { ids, starts, ends, next, previous, ranks, merged } = this;
    const count = this.count;
    this.heapLength = 0;
    for (let i = 0; i < count; i++) {
      next[i] = i + 1 < count ? i + 1 : -1;
      previous[i] = i - 1;
      ends[i] = starts[i + 1];
    }
    for (let i = 0; i + 1 < count; i++) this.offer(i);
    while (this.heapLength > 0) {
      const key = this.pop();
      const rank = Math.floor(key / positions);
      const left = key - rank * positions;
      const right = next[left];
      if (right < 0 || ranks[left] !== rank) continue;
      ids[left] = merged[left];
      ends[left] = ends[right];
      ranks[right] = noRank;
      next[left] = next[right];
      if (next[left] >= 0) previous[next[left]] = left;
      this.offer(left);
      if (previous[left] >= 0) this.offer(previous[left]);
    }
    let kept = 0;
    const end = starts[count];
    for (let i = 0; i >= 0; i = next[i]) {
      ids[kept] = ids[i];
      starts[kept++] = starts[i];
    }
    starts[kept] = end;
    this.count = kept;
  }

  /** Ranks the pair (left, next) anew and puts it on the heap where it can merge. */
  private offer(left: number): void {
    const right = this.next[left];
    this.ranks[left] = noRank;
    if (right < 0) return;
    const rank = this.rankOf(this.ids[left], this.ids[right], this.starts[left], this.ends[right]);
    if (rank === noRank) return;
    this.ranks[left] = rank;
    this.merged[left] = this.mergedId;
    this.push(rank * positions + left);
  }

  private push(key: number): void {
    if (this.heapLength === this.heap.length) {
      const grown = new Float64Array(this.heap.length * 2);
      grown.set(this.heap);
      this.heap = grown;
    }
    const heap = this.heap;
    let at = this.heapLength++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent] <= key) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = key;
  }

  private pop(): number {
    const heap = this.heap;
    const top = heap[0];
    const length = --this.heapLength;
    const key = heap[length];
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= length) break;
      if (child + 1 < length && heap[child + 1] < heap[child]) child++;
      if (heap[child] >= key) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = key;
    return top;
  }
}

/** Merges by a table of pairs: slots of (left, right, rank, merged), empty where merged is -1. */
export class PairMerger extends Merger {
  private readonly slots: Int32Array;
  private readonly mask: number;

  constructor(pairs: number) {
    super();
    const size = tableSize(pairs);
    this.mask = size - 1;
    this.slots = new Int32Array(size * 4).fill(-1);
  }

  /** The first of equal pairs keeps its rank. */
  addPair({ left, right, joined }: PairPieces, rank: number): void {
    const slots = this.slots;
    for (let slot = hashPair(left, right) & this.mask; ; slot = (slot + 1) & this.mask) {
      const at = slot * 4;
      if (slots[at + 3] >= 0) {
        if (slots[at] === left && slots[at + 1] === right) return;
        continue;
      }
      slots[at] = left;
      slots[at + 1] = right;
      slots[at + 2] = rank;
      slots[at + 3] = joined;
      return;
    }
  }

  protected rankOf(left: number, right: number): number {
    const slots = this.slots;
    for (let slot = hashPair(left, right) & this.mask; ; slot = (slot + 1) & this.mask) {
      const at = slot * 4;
      const merged = slots[at + 3];
      if (merged < 0) return noRank;
      if (slots[at] === left && slots[at + 1] === right) {
        this.mergedId = merged;
        return slots[at + 2];
      }
    }
  }
}

/** Merges two symbols where their bytes together are a piece, the piece with the highest score first. */
export class ScoreMerger extends Merger {
  private readonly rank: Int32Array;
  bytes: Uint8Array = new Uint8Array(0);

  constructor(
    private readonly vocabulary: Vocabulary,
    scores: ArrayLike<number>,
  ) {
    super();
    this.rank = ranksOf(scores, vocabulary.size);
  }

  protected rankOf(_left: number, _right: number, start: number, end: number): number {
    const id = this.vocabulary.find(this.bytes, start, end);
    if (id < 0) return noRank;
    this.mergedId = id;
    return this.rank[id];
  }
}

/** Lower for higher scores, equal for equal ones. */
function ranksOf(scores: ArrayLike<number>, size: number): Int32Array {
  const ranks = new Int32Array(size);
  let id = 0;
  // Most files score by place: 0, -1, -2… need no sorting.
  for (; id < size; id++) {
    const score = scores[id];
    if (!(score <= 0 && score > -maxRank && Number.isInteger(score))) break;
    ranks[id] = -score;
  }
  if (id === size) return ranks;
  const sorted = Float64Array.from({ length: size }, (_, id) => scores[id]).sort();
  for (id = 0; id < size; id++) {
    let low = 0;
    let high = size;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= scores[id]) low = middle + 1;
      else high = middle;
    }
    ranks[id] = size - low;
  }
  return ranks;
}

function hashPair(left: number, right: number): number {
  const hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca77);
  return hash ^ (hash >>> 15);
}
