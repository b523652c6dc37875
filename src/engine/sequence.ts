// Owns: one choice of one request, from arrival to finish: a single mutable record with no phases. What there is to do
// follows from two numbers, `computed` and `total`.
//
//   tokens    | prompt ................ | drawn and known ... | in flight |
//             0                         promptLength          length      total = length + inFlight
//   computed  positions whose keys and values a launched step writes; the gap to `wanted` is the work left
import type { Held } from "./holdings.js";
import { Hope } from "./hope.js";
import type { Drafter } from "./lookup.js";
import type { PageNames } from "./names.js";
import type { FinishReason, GenerateRequest, Timings, TokenConstraint, TokenLogprobs } from "./types.js";

/** What the choices of one request share. */
export interface RequestRecord {
  readonly request: GenerateRequest;
  readonly stopIds: ReadonlySet<number>;
  readonly choices: Sequence[];
  /** Adapter slot of the device, −1: none. */
  readonly adapter: number;
  /** By position; null until it is known, and for the first token always. Absent where nobody asked. */
  readonly promptLogprobs?: (TokenLogprobs | null)[];
  /** Prompt logprobs that have not come yet. */
  unscored: number;
  started: boolean;
  /** Choices without a finish event. */
  open: number;
}

export interface SequenceOptions {
  readonly record: RequestRecord;
  readonly index: number;
  readonly arrival: number;
  readonly now: number;
  readonly names: PageNames;
  readonly held: Held[];
  readonly constraint?: TokenConstraint;
}

export const noDrafts = new Int32Array(0);

export class Sequence {
  readonly record: RequestRecord;
  readonly index: number;
  /** Order of arrival over all sequences: the smaller, the older. */
  readonly arrival: number;
  readonly promptLength: number;
  readonly names: PageNames;
  readonly constraint: TokenConstraint | undefined;
  held: Held[];
  tokens: Int32Array;
  length: number;
  /** Rows launched whose token is not known yet. */
  inFlight = 0;
  computed = 0;
  /** Device slot, −1 while it waits. */
  slot = -1;
  /** The device has to be told the slot's parameters before the next step. */
  slotIsNew = false;
  /** Whole pages that have been named. */
  named = 0;
  /** Prompt positions scored or being scored; the first token has no score. */
  scored = 1;
  /** Waits until the first choice has computed the prompt, then shares its pages. */
  follows = false;
  /** Has been given the prompt's pages by another choice and has not run since. */
  sharesPrompt = false;
  /** Whether the tiers below the device have been asked for its prefix since it came, or came back, to wait. */
  sought = false;
  /** Waits for pages that come from there. */
  fetching = false;
  /** The step that last took tokens of it. */
  lastStep = 0;
  /** Its mask was not there when it could have drawn: it waits for it. */
  late = false;
  /** Guesses of what follows, for the next step to check: they stand at `length` and after, and are no tokens of it yet. */
  drafts: Int32Array = noDrafts;
  /** Of those who made them. */
  draftHope: Hope | undefined;
  /** Where guesses come from; made with the first. */
  drafter: Drafter | undefined;
  /** Of what the draft model guesses of it. */
  readonly modelHope = new Hope();
  /** Guesses of it that were checked, and of them those that were right. */
  guessed = 0;
  guessedRight = 0;
  /** Tokens that its client has been charged for, from the first on: what is computed again is not counted again. */
  charged = 0;
  finished: FinishReason | undefined;
  cachedTokens = 0;

  readonly arrivedAt: number;
  admittedAt: number | undefined;
  firstTokenAt: number | undefined;
  private lastTokenAt: number | undefined;

  constructor(options: SequenceOptions) {
    const { promptIds } = options.record.request;
    this.record = options.record;
    this.index = options.index;
    this.arrival = options.arrival;
    this.names = options.names;
    this.held = options.held;
    this.constraint = options.constraint;
    this.promptLength = promptIds.length;
    this.tokens = new Int32Array(promptIds.length + 16);
    this.tokens.set(promptIds);
    this.length = promptIds.length;
    this.arrivedAt = options.now;
  }

  get client(): string {
    return this.record.request.client ?? "";
  }

  get request(): GenerateRequest {
    return this.record.request;
  }

  /** Tokens that there are or will be once the steps in flight have ended. */
  get total(): number {
    return this.length + this.inFlight;
  }

  /** Tokens drawn or being drawn. */
  get drawn(): number {
    return this.total - this.promptLength;
  }

  /** Up to where it is to be computed now. */
  get wanted(): number {
    if (this.request.maxTokens === 0) return this.promptLength - 1;
    return this.drawn >= this.request.maxTokens ? this.computed : this.total;
  }

  /** One token brings the next. */
  get generating(): boolean {
    return this.computed === this.total - 1 && this.drawn > 0;
  }

  get running(): boolean {
    return this.slot >= 0;
  }

  append(token: number, now: number): void {
    if (this.length === this.tokens.length) {
      const larger = new Int32Array(this.tokens.length * 2);
      larger.set(this.tokens);
      this.tokens = larger;
    }
    this.tokens[this.length++] = token;
    this.firstTokenAt ??= now;
    this.lastTokenAt = now;
  }

  admitted(now: number): void {
    this.admittedAt ??= now;
  }

  timings(now: number): Timings {
    const admitted = this.admittedAt ?? now;
    const first = this.firstTokenAt ?? now;
    return {
      queueMs: admitted - this.arrivedAt,
      promptMs: Math.max(0, first - admitted),
      generationMs: (this.lastTokenAt ?? first) - first,
      promptTokens: this.promptLength,
      cachedTokens: this.cachedTokens,
      generatedTokens: this.length - this.promptLength,
      draftTokens: this.guessed,
      acceptedTokens: this.guessedRight,
    };
  }
}

/** Negative: a goes before b. Lower priority numbers first, then the older. */
export function before(a: Sequence, b: Sequence): number {
  return a.request.priority - b.request.priority || a.arrival - b.arrival;
}
