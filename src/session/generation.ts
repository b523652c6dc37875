// Owns: one generation as a library caller holds it: an async iterable of parts, or the whole at once. It starts when it is
// first read, and is read once.
import { noTimings } from "../engine/client.js";
import type { FinishReason, Timings } from "../engine/types.js";
import { type Gathered, gather } from "./collect.js";
import type { Delta, DeltaToken, ToolCall } from "./types.js";

/** What has come since the last part. */
export interface Part {
  /** Which of `n` choices this continues; 0 unless more were asked for. */
  readonly index: number;
  /** Of the answer. Whole characters only. Never a part of a stop string. "" where tokens have no text, or are others'. */
  readonly text: string;
  /** Of the reasoning before the answer. */
  readonly reasoning?: string;
  /** A piece of a tool's call: its name with the first, then the arguments' JSON text. */
  readonly toolCall?: {
    readonly call: number;
    readonly id: string;
    readonly name?: string;
    readonly arguments: string;
  };
  readonly tokens: readonly DeltaToken[];
}

/** One finished choice. */
export interface Completion {
  readonly text: string;
  /** "" where the model does not reason, or its reasoning is part of the text. */
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCall[];
  /** All tokens drawn, the one that ended it included. */
  readonly tokens: readonly DeltaToken[];
  /** stop: an end token or a stop string; tool_calls: calls; length: maxTokens or the context; abort: it was aborted. */
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

interface Gathering extends Gathered {
  end?: Delta & { type: "finish" };
}

const nothing = (): Gathering => ({ text: "", reasoning: "", reasoningTokens: 0, toolCalls: [], tokens: [] });

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
  private readonly gathered = new Map<number, Gathering>([[0, nothing()]]);

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
      const gathered = this.gathered.get(delta.index) ?? nothing();
      this.gathered.set(delta.index, gathered);
      if (delta.type !== "finish") {
        gather(gathered, delta);
        yield part(delta);
        continue;
      }
      gathered.tokens.push(...delta.tokens);
      if (delta.reason === "error") {
        throw new GenerationError(delta.error?.message ?? "the engine failed", delta.error?.code ?? "engine_error");
      }
      gathered.end = delta;
    }
    this.signal?.throwIfAborted();
  }
}

function part(delta: Exclude<Delta, { type: "start" | "finish" }>): Part {
  const { index, tokens } = delta;
  if (delta.type === "content") return { index, text: delta.text, tokens };
  if (delta.type === "reasoning") return { index, text: "", reasoning: delta.text, tokens };
  const { call, id, name } = delta;
  return { index, text: "", toolCall: { call, id, name, arguments: delta.arguments }, tokens };
}

/** A caller that left the loop early has choices without an end: they were aborted. */
function completion({ text, reasoning, toolCalls, tokens, end }: Gathering): Completion {
  return {
    text,
    reasoning,
    toolCalls,
    tokens,
    finishReason: end?.reason ?? "abort",
    stop: end?.stop,
    timings: end?.timings ?? { ...noTimings, generatedTokens: tokens.length },
  };
}
