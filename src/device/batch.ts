// Owns: what one step takes and gives: flat typed arrays, nothing else. The engine writes a Batch, a Program reads it.
//
//   sequences  0          1     2            n of them; each owns a device slot
//   tokens     [a b c d] [e]   [f g h]       packed; tokenStart = [0 4 5 8]; a sequence may bring one token or many
//   rows              ^   ^                  indices into tokens whose next token is wanted: [3, 4] (sequence 2 is
//                                            in the middle of its prompt and samples nothing)

export interface Batch {
  /** [tokens] ids. −1 − slot means "the last token sampled in that slot", also by a step that is still in flight. */
  readonly tokens: Int32Array;
  /** [sequences] device slot of each, distinct. */
  readonly slots: Int32Array;
  /** [sequences + 1] */
  readonly tokenStart: Int32Array;
  /** [sequences] position of its first token here: how many of its tokens are in the cache before this step. */
  readonly kvStart: Int32Array;
  /** One a page group. */
  readonly pages: readonly PageTable[];
  /** [rows] indices into tokens, ascending. A sequence that draws does so at its last token, or at several last ones: those
   *  behind the first are guesses, and each row is right where the guesses before it are what was drawn. */
  readonly rows: Int32Array;
  /** [rows] −1: draw by the slot's parameters. An id: draw nothing, report that token's logprob and rank (the slot's last
   *  token stays). */
  readonly targets: Int32Array;
  /** [rows] the token's position that is being drawn: keys the random numbers with the slot's seed. */
  readonly rowPositions: Int32Array;
  /** Added to the row's logits before anything else: logit_bias, and −Infinity for ids that may not come. */
  readonly bias: RaggedBias;
  /** [masked] indices into rows, ascending, whose sampling waits for Step.setMasks. */
  readonly maskedRows: Int32Array;
  /** Most top logprobs that any row wants (0: none). */
  readonly topLogprobs: number;
  /** Applied before the step, in order. */
  readonly updates: SlotUpdates;
}

/** Pages of sequence s: ids[start[s] … start[s+1]); the first of them holds positions from first[s] × pageTokens on
 *  (pages behind a window have been given back). State groups: one page a sequence. */
export interface PageTable {
  readonly start: Int32Array;
  readonly first: Int32Array;
  readonly ids: Int32Array;
}

/** Entries of row r: [start[r], start[r+1]). */
export interface RaggedBias {
  readonly start: Int32Array;
  readonly ids: Int32Array;
  readonly values: Float32Array;
}

/**
 * A slot's new owner, or new parameters of its owner. Token counts of a slot are reset by an update to the two ragged
 * lists (penalties need them; both are empty where no penalty is set) and then follow every draw.
 */
export interface SlotUpdates {
  readonly slots: Int32Array;
  /** [updates × slotFloats] in the order of SlotFloat. */
  readonly floats: Float32Array;
  /** [updates × slotInts] in the order of SlotInt. */
  readonly ints: Int32Array;
  /** Prompt tokens (repetition penalty counts them) and generated tokens (all three penalties do). */
  readonly promptStart: Int32Array;
  readonly promptIds: Int32Array;
  readonly outputStart: Int32Array;
  readonly outputIds: Int32Array;
}

export const SlotFloat = { temperature: 0, topP: 1, minP: 2, repetition: 3, frequency: 4, presence: 5 } as const;
export const slotFloats = 6;
/** topK 0: no limit. adapter −1: none. counts 1: keep token counts. */
export const SlotInt = { topK: 0, seedLow: 1, seedHigh: 2, adapter: 3, counts: 4 } as const;
export const slotInts = 5;

/** Arrays are [rows] unless said. logprobs are natural, of the model's own distribution: before bias, mask,
 *  penalties and temperature. */
export interface StepResult {
  readonly tokens: Int32Array;
  readonly logprobs: Float32Array;
  /** 0: the most likely. */
  readonly ranks: Int32Array;
  /** [rows × topLogprobs], best first. */
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
}

export interface Step {
  readonly result: Promise<StepResult>;
  /** One bit an id, [maskedRows × ceil(vocab / 32)] words: 1 allows. Called once where the batch has masked rows; the
   *  forward runs without waiting for it. */
  setMasks(bits: Uint32Array): void;
}

export const noBias = (rows: number): RaggedBias => ({
  start: new Int32Array(rows + 1),
  ids: new Int32Array(0),
  values: new Float32Array(0),
});

export const noUpdates: SlotUpdates = {
  slots: new Int32Array(0),
  floats: new Float32Array(0),
  ints: new Int32Array(0),
  promptStart: new Int32Array(1),
  promptIds: new Int32Array(0),
  outputStart: new Int32Array(1),
  outputIds: new Int32Array(0),
};
