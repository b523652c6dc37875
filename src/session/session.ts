// Owns: the way from a ChatJob to Deltas for one loaded model: template → token ids → GenerateRequest → TokenEvents →
// detokenizer → stop strings. What index.ts, cli/ and server/ share. Refuses what cannot be answered before the engine
// hears of it, with a UserError. Holds no state between requests.
import { UserError } from "../base/errors.js";
import { noTimings } from "../engine/client.js";
import type { FinishReason, GenerateRequest, ModelLimits, TokenEvent } from "../engine/types.js";
import { StopMatcher } from "../text/stop.js";
import { type AnswerPlan, type AnswerVariables, answerPlan, answerVariables } from "./answer.js";
import { ChoiceText } from "./choice.js";
import type { Generator, TextModel } from "./needs.js";
import { RoutedText } from "./routed.js";
import { AnswerRouter, type RouterOptions } from "./router.js";
import { describeTools } from "./tools.js";
import type { ChatJob, ChatMessage, Delta } from "./types.js";

/** A job that can run. */
export interface Prepared {
  readonly job: ChatJob;
  /** How the answer is taken apart; absent: it is all text. */
  readonly router?: RouterOptions;
  readonly request: GenerateRequest;
}

/** Characters: few texts have longer tokens on average. */
const commonTokenLength = 16;
const mostStops = 64;
const longestStop = 1024;
/** Of a prompt, to see how it opens the answer. */
const tailTokens = 24;
const useIds = "Use completions with a prompt of token ids.";

export class Session {
  private longest = 0;

  constructor(
    readonly engine: Generator,
    readonly text: TextModel | undefined,
    /** What ends an answer where there is no tokenizer to say. */
    private readonly endIds: readonly number[] = [],
    /** Of jobs that name none. */
    private readonly adapter?: string,
  ) {}

  /** The same model; jobs that name no adapter have this one. */
  withAdapter(name: string): Session {
    return new Session(this.engine, this.text, this.endIds, name);
  }

  /** The same model under another chat template, in Go's language. Throws UserError for one that cannot be read. */
  withTemplate(source: string): Session {
    const { withTemplate } = this.needText("template", useIds);
    try {
      const text = withTemplate?.({ kind: "go", text: source }) ?? this.text;
      return new Session(this.engine, text, this.endIds, this.adapter);
    } catch (error) {
      throw new UserError(`The template cannot be used: ${(error as Error).message}`, { param: "template" });
    }
  }

  get limits(): ModelLimits {
    return this.engine.limits;
  }

  run(job: ChatJob, signal?: AbortSignal): AsyncGenerator<Delta> {
    return this.deltas(this.prepare(job), signal);
  }

  /** Throws UserError where the job cannot be done. Nothing has begun when it returns. */
  prepare(job: ChatJob): Prepared {
    this.refuseFarTooLong(job);
    const { promptIds, plan } = this.prompt(job);
    const { vocabSize } = this.limits;
    checkIds("prompt", promptIds, vocabSize);
    checkIds(
      "logit_bias",
      job.sampling.logitBias.map(([id]) => id),
      vocabSize,
    );
    checkIds("stop_token_ids", job.stopIds, vocabSize);
    const adapter = job.adapter ?? this.adapter;
    this.checkAdapter(adapter);
    checkStops(job.stop);
    if (job.stop.length > 0) this.needText("stop", "Stop strings need one; give stop_token_ids.");
    const maxTokens = this.maxTokens(job, promptIds.length);
    if (job.minTokens > maxTokens) {
      throw new UserError(`min_tokens (${job.minTokens}) is more than the most that may be generated (${maxTokens}).`, {
        param: "min_tokens",
      });
    }
    const endIds = job.ignoreEos ? [] : (this.text?.tokenizer.endIds ?? this.endIds);
    return {
      job,
      router: plan.router,
      request: {
        id: crypto.randomUUID(),
        promptIds,
        n: job.n,
        sampling: job.sampling,
        maxTokens,
        minTokens: job.minTokens,
        stopIds: [...new Set([...endIds, ...job.stopIds])],
        logprobs: job.logprobs,
        promptLogprobs: job.promptLogprobs,
        priority: job.priority,
        cacheSalt: job.cacheSalt,
        adapter,
        grammar: plan.grammar,
      },
    };
  }

  /** Ends every choice with one finish delta. An early return of the caller aborts the request. */
  async *deltas({ job, router, request }: Prepared, signal?: AbortSignal): AsyncGenerator<Delta> {
    if (signal?.aborted) {
      yield* aborted(request);
      return;
    }
    const choices = Array.from({ length: request.n }, (_, index) => this.choiceText(job, index, router));
    const stopIds = new Set(request.stopIds);
    const shownStopIds = new Set(job.includeStop ? job.stopIds : []);
    for await (const event of this.engine.generate(request, signal)) {
      if (event.type === "start") {
        const { cachedTokens, promptLogprobs } = event;
        yield { type: "start", promptIds: request.promptIds, cachedTokens, promptLogprobs };
        continue;
      }
      const { index } = event;
      const choice = choices[index];
      if (event.type === "token") {
        // Tokens that were on their way when a stop string was found.
        if (choice.stop !== undefined) continue;
        if (stopIds.has(event.id) && !shownStopIds.has(event.id)) {
          choice.pushSilent(event.id, event.logprobs);
          continue;
        }
        // Not yield*: that asks a list for a promise of each.
        for (const delta of choice.push(event.id, event.logprobs)) yield delta;
        if (choice.stop !== undefined) this.engine.abort(request.id, index);
        continue;
      }
      for (const delta of choice.flush()) yield delta;
      yield finish(event, choice);
    }
  }

  /** Text to ids: no BOS and special tokens as plain text unless asked for. */
  tokenize(text: string, options: { bos?: boolean; special?: boolean } = {}): Int32Array {
    return this.needText("prompt", "Give token ids.").tokenizer.encode(text, options);
  }

  /** Ids to text; special tokens give none unless asked for. */
  detokenize(ids: Iterable<number>, options: { special?: boolean } = {}): string {
    const { tokenizer } = this.needText("ids", "There is no text for its ids.");
    const detokenizer = tokenizer.detokenizer({ skipSpecial: !(options.special ?? false), whole: true });
    let text = "";
    for (const id of ids) text += detokenizer.push(id);
    return text + detokenizer.flush();
  }

  /** A prompt's text and where in it (UTF-16 units) each token's begins; special tokens give none. */
  decodePrompt(ids: Int32Array): { text: string; offsets: number[] } {
    const detokenizer = this.text?.tokenizer.detokenizer({ skipSpecial: true, whole: true });
    const offsets: number[] = [];
    let text = "";
    for (const id of ids) {
      offsets.push(text.length);
      text += detokenizer?.push(id) ?? "";
    }
    return { text: text + (detokenizer?.flush() ?? ""), offsets };
  }

  /** A token alone; empty without a tokenizer. */
  tokenBytes(id: number): Uint8Array {
    return this.text?.tokenizer.tokenBytes(id) ?? new Uint8Array(0);
  }

  /** The prompt as the model gets it, however long it is. */
  promptIds(job: ChatJob): Int32Array {
    return this.prompt(job).promptIds;
  }

  private prompt(job: ChatJob): { promptIds: Int32Array; plan: AnswerPlan } {
    const given = [job.messages, job.prompt, job.promptIds].filter((input) => input !== undefined).length;
    if (given !== 1) throw new UserError("Give exactly one of messages, a prompt and a prompt's token ids.");
    const text = job.messages || job.format ? this.needText(job.messages ? "messages" : "format", useIds) : this.text;
    const answer = text && answerVariables(job, text);
    const ids =
      job.promptIds ??
      (job.messages
        ? this.renderChat(job, job.messages, text!, answer!)
        : job.suffix
          ? this.encodeInfill(job.prompt!, job.suffix)
          : this.encodePrompt(job.prompt!, job.parseSpecial));
    if (ids.length === 0) {
      throw new UserError("The prompt is empty, and this model has no token to begin from; give at least one token.", {
        code: "empty_prompt",
        param: promptParam(job),
      });
    }
    const tail = () => this.detokenize(ids.subarray(Math.max(0, ids.length - tailTokens)), { special: true });
    return { promptIds: ids, plan: answer ? answerPlan(job, answer.dialect, text, job.messages ? tail() : "") : {} };
  }

  private encodePrompt(prompt: string, special = false): Int32Array {
    const { tokenizer } = this.needText("prompt", "Give the prompt as token ids (prompt: [1, 2, 3]).");
    return tokenizer.encode(prompt, { bos: true, special });
  }

  private encodeInfill(prompt: string, suffix: string): Int32Array {
    const ids = this.needText("suffix", useIds).template?.encodeInfill?.(prompt, suffix);
    if (ids !== undefined) return ids;
    throw new UserError("This model does not support insert: its template has no place for a suffix.", {
      code: "unsupported_field",
      param: "suffix",
    });
  }

  private renderChat(
    job: ChatJob,
    messages: readonly ChatMessage[],
    { template }: TextModel,
    { dialect, tools, variables }: AnswerVariables,
  ): Int32Array {
    if (this.limits.embeddingSize !== undefined) {
      throw new UserError("This model gives embeddings and no text.", { code: "no_generation" });
    }
    if (template === undefined) {
      throw new UserError("This model has no chat template; use completions with a prompt.", {
        code: "no_chat_template",
        param: "messages",
      });
    }
    const untold = dialect.describesTools || dialect.systemTools ? (tools ?? []) : [];
    const written = untold.length > 0 || (dialect.writesCalls && messages.some(speaksOfTools));
    return template.encode(written ? describeTools(messages, untold, dialect) : messages, {
      tools: untold.length > 0 ? undefined : tools,
      variables,
      addGenerationPrompt: job.addGenerationPrompt ?? true,
    });
  }

  private maxTokens(job: ChatJob, promptTokens: number): number {
    const { contextLength } = this.limits;
    const room = contextLength - promptTokens;
    const wanted = job.maxTokens ?? Math.max(room, 1);
    if (wanted <= room) return wanted;
    const asks =
      job.maxTokens === undefined
        ? `the prompt has ${promptTokens} tokens, which leaves no room for an answer`
        : `${promptTokens + wanted} tokens were asked for: ${promptTokens} of the prompt and ${wanted} to generate`;
    const param = promptTokens < contextLength ? "max_tokens" : promptParam(job);
    throw contextExceeded(contextLength, asks, param);
  }

  /** Megabytes of text are refused before they are tokenized, which would keep everybody waiting for seconds. */
  private refuseFarTooLong(job: ChatJob): void {
    const { contextLength } = this.limits;
    const count = job.messages?.length ?? 0;
    if (count > contextLength) throw contextExceeded(contextLength, `there are ${count} messages`, "messages");
    const length = job.messages
      ? job.messages.reduce((sum, { content }) => sum + textLength(content), 0)
      : (job.prompt?.length ?? 0) + (job.suffix?.length ?? 0);
    if (length <= contextLength * commonTokenLength) return;
    const atLeast = Math.ceil(length / this.longestToken());
    if (atLeast > contextLength)
      throw contextExceeded(contextLength, `the prompt has at least ${atLeast} tokens`, promptParam(job));
  }

  /** In bytes, of which a UTF-16 unit takes at least one. */
  private longestToken(): number {
    if (this.longest === 0) {
      for (let id = 0; id < this.limits.vocabSize; id++) {
        this.longest = Math.max(this.longest, this.tokenBytes(id).length);
      }
    }
    return Math.max(1, this.longest);
  }

  private choiceText(job: ChatJob, index: number, router: RouterOptions | undefined): ChoiceText | RoutedText {
    const tokenizer = this.text?.tokenizer;
    if (router !== undefined) {
      return new RoutedText(
        index,
        tokenizer!.detokenizer({ skipSpecial: job.skipSpecialTokens ?? true }),
        new AnswerRouter(router),
        job.stop.length === 0 ? undefined : new StopMatcher(job.stop, job.includeStop),
        new Set(router.controls.values()),
        (id) => this.tokenBytes(id),
      );
    }
    return new ChoiceText(
      index,
      tokenizer?.detokenizer({ skipSpecial: job.skipSpecialTokens ?? true }),
      job.stop.length === 0 ? undefined : new StopMatcher(job.stop, job.includeStop),
      (id) => this.tokenBytes(id),
      job.minTokens,
    );
  }

  private checkAdapter(name: string | undefined): void {
    const { adapters = [] } = this.limits;
    if (name === undefined || adapters.includes(name)) return;
    const known = adapters.length > 0 ? `it has ${adapters.join(", ")}` : "it was loaded with none";
    throw new UserError(`This model has no adapter ${JSON.stringify(name)}: ${known}.`, {
      status: 404,
      code: "adapter_not_found",
      param: "adapter",
    });
  }

  private needText(param: string, instead: string): TextModel {
    if (this.text !== undefined) return this.text;
    throw new UserError(`This model has no tokenizer: it takes and gives token ids only. ${instead}`, {
      code: "no_tokenizer",
      param,
    });
  }
}

/** Before anything began. */
function* aborted({ n, promptIds }: GenerateRequest): Iterable<Delta> {
  const timings = { ...noTimings, promptTokens: promptIds.length };
  for (let index = 0; index < n; index++) yield { type: "finish", index, reason: "abort", tokens: [], timings };
}

function finish(event: TokenEvent & { type: "finish" }, choice: ChoiceText | RoutedText): Delta {
  const { index, timings, error } = event;
  const tokens = choice.rest();
  // A found stop string is the reason, whatever the engine was told in order to end the choice.
  return choice.stop === undefined
    ? { type: "finish", index, reason: reasonOf(event, choice), stop: event.stopId, tokens, error, timings }
    : {
        type: "finish",
        index,
        reason: "stop",
        stop: choice.stop,
        tokens,
        timings: { ...timings, generatedTokens: choice.count },
      };
}

function reasonOf({ reason }: TokenEvent & { type: "finish" }, { calls }: ChoiceText | RoutedText): FinishReason {
  return reason === "stop" && calls > 0 ? "tool_calls" : reason;
}

function checkIds(param: string, ids: Iterable<number>, vocabSize: number): void {
  for (const id of ids) {
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) continue;
    throw new UserError(`Token id ${id} is not in the vocabulary: ids go from 0 to ${vocabSize - 1}.`, {
      code: "unknown_token_id",
      param,
    });
  }
}

/** Every token is compared with all of them. */
function checkStops(stops: readonly string[]): void {
  const length = stops.reduce((most, stop) => Math.max(most, stop.length), 0);
  if (stops.length <= mostStops && length <= longestStop) return;
  throw new UserError(
    `At most ${mostStops} stop strings of ${longestStop} characters can be given, not ${stops.length} of up to ${length}.`,
    { code: "too_many_stops", param: "stop" },
  );
}

/** The field that the prompt came in. */
function promptParam(job: ChatJob): string {
  return job.messages === undefined ? "prompt" : "messages";
}

function contextExceeded(contextLength: number, asks: string, param: string): UserError {
  return new UserError(
    `The context is ${contextLength} tokens long, but ${asks}. Shorten the prompt or ask for fewer tokens.`,
    { code: "context_length_exceeded", param },
  );
}

function speaksOfTools({ role, toolCalls }: ChatMessage): boolean {
  return role === "tool" || toolCalls !== undefined;
}

function textLength(content: ChatMessage["content"]): number {
  if (content === null) return 0;
  return typeof content === "string" ? content.length : content.reduce((sum, { text }) => sum + text.length, 0);
}
