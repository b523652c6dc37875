// Owns: one generation as a library caller holds it: an async iterable of parts, or the whole at once. It starts when it is
// first read, and is read once.
import type { FinishReason, Timings } from "../engine/types.js";
import type { Delta, DeltaToken } from "./types.js";

/** What has come since the last part. */
export interface Part {
  /** Which of `n` choices this continues; 0 unless more were asked for. */
  readonly index: number;
  /** Whole characters only. Never a part of a stop string. May be "" where tokens have no text. */
  readonly text: string;
  readonly tokens: readonly DeltaToken[];
}

/** One finished choice. */
export interface Completion {
  readonly text: string;
  /** All tokens drawn, the one that ended it included. */
  readonly tokens: readonly DeltaToken[];
  /** stop: an end token or a stop string; length: maxTokens or the context; abort: it was aborted. */
  readonly finishReason: FinishReason;
  /** The stop string or token id that ended it. */
  readonly stop?: string | number;
  readonly timings: Timings;
}

/** A whole answer. */
export interface GenerationResult extends Completion {
  readonly promptTokens: number;
  /** Of the prompt's tokens, those whose keys and values were still in the cache. */
  readonly cachedTokens: number;
  /** All `n` of them; the fields above are the first's. */
  readonly choices: readonly Completion[];
}

/** An engine that failed in the middle of an answer. */
export class GenerationError extends Error {
  constructor(
    message: string,
    readonly code: string,
  ) {
    super(message);
    this.name = "GenerationError";
  }
}

interface Gathered {
  text: string;
  tokens: DeltaToken[];
  end?: Delta & { type: "finish" };
}

/**
 * ```ts
 * for await (const { text } of model.generate("Once upon a time")) process.stdout.write(text);
 * const text = await model.generate("Once upon a time").text();
 * const { tokens, finishReason } = await model.generate("Once upon a time").result();
 * ```
 */
export class Generation implements AsyncIterable<Part> {
  private readonly controller = new AbortController();
  private parts: AsyncGenerator<Part> | undefined;
  private iterated = false;
  private promptTokens = 0;
  private cachedTokens = 0;
  private readonly gathered = new Map<number, Gathered>([[0, { text: "", tokens: [] }]]);

  /** @param signal the caller's: when it aborts, reading throws its reason */
  constructor(
    private readonly start: (signal: AbortSignal) => AsyncIterable<Delta>,
    private readonly signal?: AbortSignal,
  ) {}

  /** Ends it quietly: the parts end, result() has finishReason "abort". */
  abort(): void {
    this.controller.abort();
  }

  [Symbol.asyncIterator](): AsyncIterator<Part> {
    if (this.iterated) throw new Error("This generation has been read already; call generate() or chat() again.");
    this.iterated = true;
    return (this.parts ??= this.run());
  }

  /** The first choice's text, once it is complete. */
  async text(): Promise<string> {
    return (await this.result()).text;
  }

  /** Everything, once it is complete. Reads what nobody has read yet. */
  async result(): Promise<GenerationResult> {
    this.iterated = true;
    this.parts ??= this.run();
    while (!(await this.parts.next()).done);
    const choices = [...this.gathered].sort(([a], [b]) => a - b).map(([, choice]) => completion(choice));
    return { ...choices[0], promptTokens: this.promptTokens, cachedTokens: this.cachedTokens, choices };
  }

  private async *run(): AsyncGenerator<Part> {
    this.signal?.throwIfAborted();
    const stop = this.signal ? AbortSignal.any([this.signal, this.controller.signal]) : this.controller.signal;
    for await (const delta of this.start(stop)) {
      if (delta.type === "start") {
        this.promptTokens = delta.promptIds.length;
        this.cachedTokens = delta.cachedTokens;
        continue;
      }
      const gathered = this.gathered.get(delta.index) ?? { text: "", tokens: [] };
      this.gathered.set(delta.index, gathered);
      gathered.tokens.push(...delta.tokens);
      if (delta.type === "content") {
        const { index, text, tokens } = delta;
        gathered.text += text;
        yield { index, text, tokens };
        continue;
      }
      if (delta.reason === "error") {
        throw new GenerationError(delta.error?.message ?? "the engine failed", delta.error?.code ?? "engine_error");
      }
      gathered.end = delta;
    }
    this.signal?.throwIfAborted();
  }
}

/** A caller that left the loop early has choices without an end: they were aborted. */
function completion({ text, tokens, end }: Gathered): Completion {
  const none = { queueMs: 0, promptMs: 0, generationMs: 0, promptTokens: 0, cachedTokens: 0 };
  return {
    text,
    tokens,
    finishReason: end?.reason ?? "abort",
    stop: end?.stop,
    timings: end?.timings ?? { ...none, generatedTokens: tokens.length },
  };
}
