// A scripted engine and a tokenizer whose ids 0–255 are bytes: what session and server tests run on where a real model
// would only be in the way.
import type {
  FinishReason,
  GenerateRequest,
  ModelLimits,
  Timings,
  TokenEvent,
  TokenLogprobs,
} from "../../src/engine/types.js";
import type { Generator, TextModel, TextStream } from "../../src/session/needs.js";
import type { ChatMessage } from "../../src/session/types.js";

export const bos = 256;
export const eos = 257;
/** Ids from 258 on: tokens of several letters, for text that crosses token borders. */
export const words = ["Hello", " wor", "ld", "ENDING", " the", "Us", "er:"];
export const vocabSize = 258 + words.length;

const encoder = new TextEncoder();

export function tokenBytes(id: number): Uint8Array {
  if (id < 256) return Uint8Array.of(id);
  if (id === bos) return encoder.encode("<s>");
  if (id === eos) return encoder.encode("</s>");
  return encoder.encode(words[id - 258]);
}

/** Ids of a text, whole words where the text has them. */
export function ids(text: string): number[] {
  const out: number[] = [];
  for (let i = 0; i < text.length; ) {
    const word = words.findIndex((w) => text.startsWith(w, i));
    if (word >= 0) {
      out.push(258 + word);
      i += words[word].length;
    } else {
      const character = String.fromCodePoint(text.codePointAt(i)!);
      out.push(...encoder.encode(character));
      i += character.length;
    }
  }
  return out;
}

class ByteStream implements TextStream {
  private readonly decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(private readonly skipSpecial: boolean) {}

  push(id: number): string {
    if ((id === bos || id === eos) && this.skipSpecial) return "";
    return this.decoder.decode(tokenBytes(id), { stream: true });
  }

  flush(): string {
    return this.decoder.decode();
  }
}

export const byteText: TextModel = {
  tokenizer: {
    endIds: [eos],
    encode: (text, options) => Int32Array.from([...(options.bos ? [bos] : []), ...encoder.encode(text)]),
    tokenBytes,
    control: (spelling) => ({ "<s>": bos, "</s>": eos })[spelling],
    detokenizer: ({ skipSpecial }) => new ByteStream(skipSpecial),
  },
  template: {
    source: "",
    encode: (messages: readonly ChatMessage[], { addGenerationPrompt }) => {
      const text = messages.map(({ role, content }) => `${role}: ${flat(content)}\n`).join("");
      return Int32Array.from([bos, ...encoder.encode(text + (addGenerationPrompt ? "assistant: " : ""))]);
    },
  },
};

function flat(content: ChatMessage["content"]): string {
  if (content === null) return "";
  return typeof content === "string" ? content : content.map((part) => part.text).join("");
}

export type Script = (request: GenerateRequest, index: number, position: number) => number;

/** Says "Hello world", then ends. */
export const helloWorld: Script = (_request, _index, position) => [...ids("Hello world"), eos][position] ?? eos;

/** Letters that depend on seed, choice and position only; never ends by itself. */
export const letters: Script = ({ sampling }, index, position) =>
  97 + Number((sampling.seed + BigInt(index) + BigInt(position) * 7n) % 26n);

interface Running {
  readonly request: GenerateRequest;
  readonly push: (event: TokenEvent) => void;
  readonly positions: number[];
  readonly open: Set<number>;
  started: boolean;
}

export class FakeEngine implements Generator {
  readonly limits: ModelLimits;
  /** Aborts asked for, as "whole" or a choice's index. */
  readonly aborts: (number | "whole")[] = [];
  /** Milliseconds a step. */
  pace = 0;
  /** While true no step runs. */
  paused = false;
  cachedTokens = 0;
  private readonly live = new Map<string, Running>();
  private timer: NodeJS.Timeout | undefined;

  constructor(
    public script: Script = helloWorld,
    limits: Partial<ModelLimits> = {},
  ) {
    this.limits = {
      contextLength: 256,
      trainedContextLength: 256,
      vocabSize,
      maxSequences: 4,
      device: "fake",
      memory: { weights: 0, workspace: 0, cache: 0 },
      ...limits,
    };
  }

  get running(): number {
    return this.live.size;
  }

  async *generate(request: GenerateRequest, signal?: AbortSignal): AsyncGenerator<TokenEvent> {
    const queue: TokenEvent[] = [];
    let wake = () => {};
    const push = (event: TokenEvent) => {
      queue.push(event);
      wake();
    };
    const open = new Set(Array.from({ length: request.n }, (_, index) => index));
    const running = { request, push, positions: new Array(request.n).fill(0), open, started: false };
    this.live.set(request.id, running);
    this.schedule();
    const abort = () => this.abort(request.id);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      for (let finished = 0; finished < request.n; ) {
        if (queue.length === 0) await new Promise<void>((resolve) => (wake = resolve));
        for (const event of queue.splice(0)) {
          if (event.type === "finish") finished += 1;
          yield event;
        }
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      if (open.size > 0) abort();
    }
  }

  abort(id: string, index?: number): void {
    this.aborts.push(index ?? "whole");
    const running = this.live.get(id);
    if (running === undefined) return;
    for (const one of index === undefined ? [...running.open] : [index]) this.finish(running, one, "abort");
  }

  /** As when the engine's process dies. */
  die(): void {
    for (const running of [...this.live.values()]) {
      for (const index of [...running.open]) {
        this.finish(running, index, "error", {
          message: "The engine's process ended.",
          status: 503,
          code: "engine_died",
        });
      }
    }
  }

  private schedule(): void {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      if (!this.paused) this.step();
      if (this.live.size > 0) this.schedule();
    }, this.pace);
  }

  private step(): void {
    for (const running of [...this.live.values()].slice(0, this.limits.maxSequences)) {
      const { request, push, positions } = running;
      if (!running.started) {
        running.started = true;
        const promptLogprobs =
          request.promptLogprobs === undefined
            ? undefined
            : Array.from(request.promptIds, (id, i) => (i === 0 ? null : scores(id, request.promptLogprobs!)));
        push({ type: "start", cachedTokens: this.cachedTokens, promptLogprobs });
      }
      for (const index of [...running.open]) {
        if (request.maxTokens === 0) {
          this.finish(running, index, "length");
          continue;
        }
        const id = this.script(request, index, positions[index]++);
        const logprobs = request.logprobs === undefined ? undefined : scores(id, request.logprobs);
        push({ type: "token", index, id, logprobs });
        if (request.stopIds.includes(id)) this.finish(running, index, "stop", undefined, id);
        else if (positions[index] >= request.maxTokens) this.finish(running, index, "length");
      }
    }
  }

  private finish(
    running: Running,
    index: number,
    reason: FinishReason,
    error?: { message: string; status: number; code: string },
    stopId?: number,
  ): void {
    if (!running.open.delete(index)) return;
    if (running.open.size === 0) this.live.delete(running.request.id);
    const { request, positions } = running;
    const timings: Timings = {
      queueMs: 0,
      promptMs: 1,
      generationMs: 1,
      promptTokens: request.promptIds.length,
      cachedTokens: this.cachedTokens,
      generatedTokens: positions[index],
      draftTokens: 8,
      acceptedTokens: 6,
    };
    running.push({ type: "finish", index, reason, stopId, error, timings });
  }
}

/** The token itself at −0.5, then its neighbours. */
function scores(id: number, top: number): TokenLogprobs {
  const best = Array.from({ length: top }, (_, i) => [(id + i) % vocabSize, -0.5 - i] as const);
  return { logprob: -0.5, rank: 0, top: best };
}
