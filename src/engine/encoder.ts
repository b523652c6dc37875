// Owns: the engine of a model that gives embeddings: texts in, one vector each out. As many texts as fit go through a step
// together; each is read whole, from its first token, and nothing is remembered between steps. Requests take turns, a step
// each, so that one of many texts holds nobody up.
import { InternalError, UserError } from "../base/errors.js";
import { type Batch, noBias, SlotFloat, SlotInt, slotFloats, slotInts } from "../device/batch.js";
import type { Limits, Program } from "../device/device.js";

/** How a text's vector follows from its tokens' states: their mean, the first's, or the last's. */
export type Pooling = "mean" | "cls" | "last";

export class Encoder {
  /** The latest step. */
  private tail: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly program: Program,
    private readonly limits: Limits,
    private readonly pooling: Pooling,
    /** Lets messages in between two steps. */
    private readonly pause: () => Promise<void>,
  ) {}

  /** Vectors are not normalised. Throws UserError for a text that is empty or longer than the context, and the signal's
   *  reason before the step after it aborted. */
  async embed(texts: readonly Int32Array[], signal?: AbortSignal): Promise<Float32Array[]> {
    for (const { length } of texts) {
      if (length > 0 && length <= this.limits.contextLength) continue;
      throw new UserError(
        `A text of ${length} tokens cannot be embedded; the model takes from 1 to ${this.limits.contextLength}.`,
        { code: "context_length_exceeded", param: "input" },
      );
    }
    const vectors: Float32Array[] = [];
    while (vectors.length < texts.length) {
      const step = this.tail.then(async () => {
        signal?.throwIfAborted();
        const some = this.nextBatch(texts, vectors.length);
        vectors.push(...this.pooled(some, await this.states(some)));
        await this.pause();
      });
      this.tail = step.catch(() => {});
      await step;
    }
    return vectors;
  }

  private nextBatch(texts: readonly Int32Array[], from: number): readonly Int32Array[] {
    let tokens = 0;
    let to = from;
    while (to < texts.length && to - from < this.limits.maxSequences) {
      tokens += texts[to].length;
      if (tokens > this.limits.maxTokens) break;
      to += 1;
    }
    return texts.slice(from, to);
  }

  private states(texts: readonly Int32Array[]): Promise<Float32Array> {
    const { program } = this;
    if (program.encode === undefined) {
      throw new InternalError("the device has no encode(), and was given an encoder");
    }
    return program.encode(batchOf(texts, program.caches[0].pageTokens));
  }

  private pooled(texts: readonly Int32Array[], states: Float32Array): Float32Array[] {
    const tokens = texts.reduce((sum, { length }) => sum + length, 0);
    const width = states.length / tokens;
    let start = 0;
    return texts.map(({ length }) => {
      const own = states.subarray(start * width, (start + length) * width);
      start += length;
      if (this.pooling === "cls") return own.slice(0, width);
      if (this.pooling === "last") return own.slice((length - 1) * width);
      const mean = new Float64Array(width);
      for (let at = 0; at < own.length; at++) mean[at % width] += own[at];
      return Float32Array.from(mean, (value) => value / length);
    });
  }
}

/** Each text in a slot and pages of its own. */
function batchOf(texts: readonly Int32Array[], pageTokens: number): Batch {
  const n = texts.length;
  const slots = Int32Array.from({ length: n }, (_, s) => s);
  const starts = (lengths: readonly number[]) => {
    const out = new Int32Array(n + 1);
    for (const [s, length] of lengths.entries()) out[s + 1] = out[s] + length;
    return out;
  };
  const tokenStart = starts(texts.map(({ length }) => length));
  const pageStart = starts(texts.map(({ length }) => Math.ceil(length / pageTokens)));
  const tokens = new Int32Array(tokenStart[n]);
  for (const [s, text] of texts.entries()) tokens.set(text, tokenStart[s]);
  const floats = new Float32Array(n * slotFloats);
  const ints = new Int32Array(n * slotInts);
  for (let s = 0; s < n; s++) {
    floats[s * slotFloats + SlotFloat.topP] = 1;
    floats[s * slotFloats + SlotFloat.repetition] = 1;
    ints[s * slotInts + SlotInt.adapter] = -1;
  }
  const none = new Int32Array(0);
  return {
    slots,
    tokens,
    tokenStart,
    kvStart: new Int32Array(n),
    pages: [
      { start: pageStart, first: new Int32Array(n), ids: Int32Array.from({ length: pageStart[n] }, (_, page) => page) },
    ],
    rows: none,
    targets: none,
    rowPositions: none,
    bias: noBias(0),
    maskedRows: none,
    topLogprobs: 0,
    updates: {
      slots,
      floats,
      ints,
      promptStart: new Int32Array(n + 1),
      promptIds: none,
      outputStart: new Int32Array(n + 1),
      outputIds: none,
    },
  };
}
