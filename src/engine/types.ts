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
  /** Mixed into page names, so that caches of different salts never meet. */
  readonly cacheSalt?: string;
  /** LoRA adapter's name, loaded beforehand. */
  readonly adapter?: string;
}

export interface TokenLogprobs {
  readonly logprob: number;
  readonly rank: number;
  readonly top: readonly (readonly [id: number, logprob: number])[];
}

export type FinishReason = "stop" | "length" | "tool_calls" | "abort" | "error";

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
      readonly error?: { readonly message: string; readonly status: number; readonly code: string };
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
  readonly memory: { readonly weights: number; readonly workspace: number; readonly cache: number };
  /** Names that requests may give; absent: none. */
  readonly adapters?: readonly string[];
}

/** Restricts what a sequence may produce. Lives with the engine host; built by a grammar worker. */
export interface TokenConstraint {
  /** Writes the mask of the next token, one bit an id; false: not ready, the row sits this step out. */
  mask(out: Uint32Array): boolean;
  /** The token was drawn. */
  accept(id: number): void;
  /** Forgets the last n accepted tokens. */
  rollback(n: number): void;
  /** Ids that must follow, where only one continuation is possible. */
  jump(): readonly number[];
}
