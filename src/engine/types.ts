// Owns: what goes into the engine and what comes out, and nothing of how. session/, server/ and cli/ know only this file
// and client.ts. Everything here survives structured clone: it crosses a thread or a process.

export interface SamplingParams {
  /** 0: greedy. */
  readonly temperature: number;
  /** 0: no limit. */
  readonly topK: number;
  /** In (0, 1]; 1: off. */
  readonly topP: number;
  /** In [0, 1]; 0: off. Relative to the most likely token. */
  readonly minP: number;
  /** Multiplicative, > 0; 1: off. Counts prompt and output. */
  readonly repetitionPenalty: number;
  /** Subtractive, by count and by presence in the output; 0: off. */
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  /** 64 bits, as two halves of a bigint. */
  readonly seed: bigint;
  readonly logitBias: readonly (readonly [id: number, bias: number])[];
}

export interface GenerateRequest {
  /** Unique among live requests. With n > 1 each choice is an index of this request. */
  readonly id: string;
  /** What the timeline calls it; its id unless said. */
  readonly label?: string;
  readonly promptIds: Int32Array;
  /** How many choices, sharing the prompt's pages. Choice i draws with seed + i. */
  readonly n: number;
  readonly sampling: SamplingParams;
  /** At least 1 unless the request only scores its prompt, which takes 0. */
  readonly maxTokens: number;
  /** Stop ids cannot be drawn before this many tokens have been. */
  readonly minTokens: number;
  /** The model's end tokens and the caller's stop ids; a drawn one ends the choice (it is reported, with reason stop). */
  readonly stopIds: readonly number[];
  /** Report the drawn token's logprob and this many of the best; undefined: none. */
  readonly logprobs?: number;
  /** Report logprobs of the prompt's tokens likewise. Such a request does not use the prefix cache. */
  readonly promptLogprobs?: number;
  /** Lower runs first; 0 by default. */
  readonly priority: number;
  /** Whose it is: clients get service by weight (fairness.ts). All that name none are one. */
  readonly client?: string;
  /** Of its client, > 0; 1 unless said. */
  readonly weight?: number;
  /** Mixed into page names, so that caches of different salts never meet. */
  readonly cacheSalt?: string;
  /** LoRA adapter's name, loaded beforehand. */
  readonly adapter?: string;
  /** What the answer's tokens must spell. The answer can end only where it is complete (or by length). */
  readonly grammar?: TokenGrammar;
}

/** A grammar over a model's tokens, as text/grammar writes it. */
export interface TokenGrammar {
  /** xgrammar's EBNF. */
  readonly text: string;
  /** Control tokens that it names. */
  readonly controls: readonly number[];
  /** Those of them that may end a stretch of free text. */
  readonly triggers: readonly number[];
  /** Tokens that end the answer where it is complete; none: it ends by itself. */
  readonly ends: readonly number[];
  /** false: what must follow is drawn token by token all the same. */
  readonly jumps?: boolean;
  /** Holds rules of the caller's own, which may be wrong. */
  readonly foreign?: boolean;
}

export interface TokenLogprobs {
  readonly logprob: number;
  readonly rank: number;
  readonly top: readonly (readonly [id: number, logprob: number])[];
}

export type FinishReason = "stop" | "length" | "tool_calls" | "abort" | "error";

/** A failure, as it crosses threads and processes. */
export interface ErrorRecord {
  readonly message: string;
  readonly status: number;
  readonly code: string;
  /** Seconds after which another try can succeed. */
  readonly retryAfter?: number;
}

/** Every choice ends with exactly one finish event, whatever went wrong. */
export type TokenEvent =
  | {
      readonly type: "start";
      readonly cachedTokens: number;
      readonly promptLogprobs?: readonly (TokenLogprobs | null)[];
    }
  | { readonly type: "token"; readonly index: number; readonly id: number; readonly logprobs?: TokenLogprobs }
  | {
      readonly type: "finish";
      readonly index: number;
      readonly reason: FinishReason;
      /** The stop id that ended it. */
      readonly stopId?: number;
      readonly error?: ErrorRecord;
      readonly timings: Timings;
    };

/** Milliseconds; from the engine's own clock. */
export interface Timings {
  readonly queueMs: number;
  readonly promptMs: number;
  readonly generationMs: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  /** Guesses of what comes next that were checked, and of them those that were right. */
  readonly draftTokens: number;
  readonly acceptedTokens: number;
}

/** Pages below the device, by where they are: in this machine's memory, on its disk. */
export interface TierStats {
  /** Of the pages that the device did not have: those that were there, and those that were not. */
  readonly hits: number;
  readonly misses: number;
  /** Held now. */
  readonly pages: number;
  readonly bytes: number;
}

export interface EngineStats {
  readonly running: number;
  readonly waiting: number;
  readonly pages: readonly {
    readonly total: number;
    readonly free: number;
    readonly cached: number;
    readonly used: number;
  }[];
  readonly steps: number;
  readonly preemptions: number;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly prefixQueries: number;
  readonly prefixHits: number;
  /** Absent where pages that the device gives up are gone. */
  readonly tiers?: {
    readonly memory: TierStats;
    readonly disk: TierStats;
    /** Pages that were there, but were expected to be computed sooner than fetched. */
    readonly skipped: number;
    /** Files that were not what they should have been, and were removed. */
    readonly damaged: number;
  };
  /** Guessed tokens that were checked, and those that were right. */
  readonly draftTokens: number;
  readonly acceptedTokens: number;
}

/** One choice of a request, as the timeline shows it. Times are milliseconds of the engine's clock. */
export interface TimelineChoice {
  /** Counts the engine's choices. */
  readonly choice: number;
  readonly request: string;
  readonly index: number;
  readonly client?: string;
  readonly priority: number;
  readonly promptTokens: number;
  readonly maxTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  readonly arrived: number;
  readonly admitted?: number;
  readonly firstToken?: number;
  readonly finished?: number;
  readonly reason?: FinishReason;
}

/**
 * What the scheduler did with a choice. admit: it runs from now on, `tokens` of it found in the cache. fetch: it waits for
 * pages of it that left the device. preempt: it gave its pages back, `tokens` are to be computed again. follow: `tokens`
 * of its answer were known without being drawn. compute: `tokens` from position `from` on were in the step.
 */
export interface TimelineAction {
  readonly action: "admit" | "fetch" | "preempt" | "follow" | "compute";
  readonly choice: number;
  readonly tokens: number;
  readonly from?: number;
  /** Its last token brings the next. */
  readonly draws?: boolean;
  /** Of its tokens, guesses; and of these, once it is known, right ones. */
  readonly guesses?: number;
  readonly right?: number;
  /** Its mask was late: what it drew did not count. */
  readonly late?: boolean;
}

/** What the scheduler has lately done. Times are milliseconds of the engine's clock. */
export interface Timeline {
  readonly now: number;
  /** Those that have not ended, and those that ended since the first of the steps. */
  readonly choices: readonly TimelineChoice[];
  /** Oldest first. */
  readonly steps: readonly {
    readonly step: number;
    readonly launched: number;
    /** Absent while it is in flight. */
    readonly ended?: number;
    readonly failed?: boolean;
    readonly tokens: number;
    /** Choices, at its launch. */
    readonly running: number;
    readonly waiting: number;
    /** Pages of the scarcest group that nobody holds, cached ones among them. */
    readonly freePages: number;
    /** Since the step before was launched, in order. */
    readonly actions: readonly TimelineAction[];
  }[];
}

/** What the model can do, known once it is loaded. */
export interface ModelLimits {
  readonly contextLength: number;
  /** What the checkpoint says it was made for. */
  readonly trainedContextLength: number;
  readonly vocabSize: number;
  readonly maxSequences: number;
  readonly device: string;
  /** It gives embeddings of this width, and no text. */
  readonly embeddingSize?: number;
  /** It takes the device's own memory, not the machine's. */
  readonly ownMemory?: boolean;
  readonly memory: {
    readonly weights: number;
    readonly workspace: number;
    readonly cache: number;
    /** The most that pages which have left the device take of the machine's memory. */
    readonly tier?: number;
  };
  /** Names that requests may give; absent: none. */
  readonly adapters?: readonly string[];
}

/** Restricts what a sequence may produce. Lives with the engine host; its answers come from a grammar worker, in their own
 *  time, and depend on the tokens alone. */
export interface TokenConstraint {
  /** What may follow the tokens so far is known, or that it never will be. */
  ready(): boolean;
  /** Why it never will be. */
  readonly failure?: ErrorRecord;
  /** Once ready: ids that must follow, where only one continuation is possible. They count as accepted from then on; a
   *  second call gives none. */
  jump(): readonly number[];
  /** Once ready, after jump(): writes the mask of the next token, one bit an id; false: nothing can follow. */
  mask(out: Uint32Array): boolean;
  /** The token was drawn. */
  accept(id: number): void;
  /** Forgets the last n tokens, jumps among them. */
  rollback(n: number): void;
  /** The sequence has ended. */
  close(): void;
}
