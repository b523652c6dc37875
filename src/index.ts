// Owns: the public API, the only file a library user imports: open() a model, then generate, chat, tokenize, close. The
// engine runs in a worker thread of this process; the text side (templates, tokens, stop strings) runs here.
import { UserError } from "./base/errors.js";
import type { KvDType } from "./device/device.js";
import type { ModelLimits } from "./engine/types.js";
import { openSession } from "./host/open.js";
import { workerCarrier } from "./host/worker.js";
import type { SamplingDefaults } from "./session/defaults.js";
import { Generation } from "./session/generation.js";
import { randomSeed, seedBits } from "./session/sampling.js";
import type { Session } from "./session/session.js";
import type { ChatJob, ChatMessage, OutputFormat, Thinking, Tool, ToolChoice } from "./session/types.js";
import { type PackageSettings, packageAdapters, settingsOf, withPackageMessages } from "./store/apply.js";
import { pagesFolder } from "./store/folder.js";
import { type Package, Store } from "./store/store.js";

export { FormatError, UserError } from "./base/errors.js";
export type { FinishReason, ModelLimits, Timings, TokenLogprobs } from "./engine/types.js";
export {
  type Completion,
  Generation,
  GenerationError,
  type GenerationResult,
  type Part,
} from "./session/generation.js";
export type {
  ChatMessage,
  DeltaToken,
  OutputFormat,
  TextPart,
  Thinking,
  Tool,
  ToolCall,
  ToolChoice,
} from "./session/types.js";

export interface OpenOptions {
  /** auto: native kernels where they are built, else the reference device (plain TypeScript, slow). Default auto. */
  readonly device?: "auto" | "cpu" | "reference";
  /** Compute threads; by default one a physical core. */
  readonly threads?: number;
  /** In tokens; by default the smaller of the model's own and what fits in memory. */
  readonly contextLength?: number;
  /** Number format of the key/value cache; by default f16. q8 (8 bits, a scale a head's row): half the memory, not on a GPU. */
  readonly kvDtype?: KvDType;
  /** The same request gives the same bits whatever runs beside it; of the CPUs only those with AMX need telling. */
  readonly deterministic?: boolean;
  /** Requests (choices) that run at once; more wait. Default 16. */
  readonly maxSequences?: number;
  /** false: no tokens are guessed from the text and checked several in a step; the answers are the same. Default true. */
  readonly lookup?: boolean;
  /** A smaller model with the same vocabulary that guesses: several guesses are checked in a step, the answers are the same. */
  readonly draft?: string;
  /** Keep what is computed of prompts in memory and on disk, and begin there when they come again, also in another process
   *  (docs/USAGE.md says who could read it). In bytes; 0: none; true, or what is not said: from what is free. Default false. */
  readonly pageCache?: boolean | { readonly memoryBytes?: number; readonly diskBytes?: number };
  /** LoRA adapters to load with the model, by the names that generations call them: GGUF files or PEFT folders. */
  readonly adapters?: Readonly<Record<string, string>>;
  /** Gives up opening. */
  readonly signal?: AbortSignal;
  /** Bytes of a download and of loading; total is undefined where it is not known. */
  readonly onProgress?: (phase: "download" | "load", done: number, total: number | undefined) => void;
}

export interface GenerateOptions {
  /** By default to the end of the context. Prompt and maxTokens together must fit in it. */
  readonly maxTokens?: number;
  /** 0: always the most likely token. Where sampling is not given: the model's own settings (`model.sampling`). */
  readonly temperature?: number;
  /** Draw from the k most likely; 0: no limit. */
  readonly topK?: number;
  /** Draw from the most likely that together have this probability, in (0, 1]. */
  readonly topP?: number;
  /** Leave out what is less likely than this times the most likely, in [0, 1]. */
  readonly minP?: number;
  /** Divides logits of tokens in prompt and answer; 1: off. */
  readonly repetitionPenalty?: number;
  /** Taken from logits of tokens in the answer, once for each time; 0: off. */
  readonly frequencyPenalty?: number;
  /** Taken from logits of tokens in the answer, once; 0: off. */
  readonly presencePenalty?: number;
  /** Added to logits, by token id. */
  readonly logitBias?: Readonly<Record<number, number>>;
  /** The same seed gives the same answer; by default a fresh one. Choice i of n draws with seed + i. */
  readonly seed?: number | bigint;
  /** The answer ends before any of these strings. */
  readonly stop?: string | readonly string[];
  /** The answer ends with any of these tokens. */
  readonly stopIds?: readonly number[];
  /** What ended the answer is part of its text. */
  readonly includeStop?: boolean;
  /** The answer cannot end by a token or a string before so many tokens. */
  readonly minTokens?: number;
  /** The model's own end tokens end nothing. */
  readonly ignoreEos?: boolean;
  /** Special tokens have no text. Default true. */
  readonly skipSpecialTokens?: boolean;
  /** How many answers; they share the prompt's work. */
  readonly n?: number;
  /** Each token comes with its log-probability and this many of the most likely ones'. */
  readonly logprobs?: number;
  /** What the answer's text must be: it can end only where it is (or by length). A JSON Schema, a pattern, a choice, a
   *  grammar. */
  readonly format?: OutputFormat;
  /** Lower runs first. */
  readonly priority?: number;
  /** Prompts of different salts share no cache. */
  readonly cacheSalt?: string;
  /** One of the model's adapters; by default its package's, or none. */
  readonly adapter?: string;
  /** Aborting ends the generation and makes reading it throw the signal's reason. */
  readonly signal?: AbortSignal;
}

export interface PromptOptions extends GenerateOptions {
  /** Spellings of special tokens in the prompt become those tokens; otherwise they stay text. Default false. */
  readonly parseSpecial?: boolean;
}

export interface ChatOptions extends GenerateOptions {
  /** Functions that the model may call: `toolCalls` of the result, whose arguments always fit their schema. */
  readonly tools?: readonly Tool[];
  /** auto (default): the model decides; required: at least one call; none; { name }: a call of this tool. */
  readonly toolChoice?: ToolChoice;
  /** More than one call an answer, where the model can. Default true. */
  readonly parallelToolCalls?: boolean;
  /** Reasoning before the answer, for models that can: on, off, or how much. By default as the model's template has it. */
  readonly think?: Thinking;
  /** Further variables of the model's chat template, such as enable_thinking. */
  readonly templateVariables?: Readonly<Record<string, unknown>>;
}

/**
 * Opens a model: a name in the catalogue ("smollm2"), a path to a .gguf file or a Hugging Face folder, or
 * hf:owner/repo[/file]. What is not here yet is fetched.
 *
 * ```ts
 * import { open } from "millrace";
 *
 * await using model = await open("smollm2");
 * for await (const { text } of model.chat([{ role: "user", content: "Why is the sky blue?" }])) {
 *   process.stdout.write(text);
 * }
 * ```
 *
 * Throws UserError where there is no such model or it cannot fit, FormatError where the file is not what it claims to be.
 */
export async function open(model: string, options: OpenOptions = {}): Promise<Model> {
  const { signal, onProgress } = options;
  const report = onProgress && {
    progress: (_file: string, done: number, total: number | undefined) => onProgress("download", done, total),
  };
  const { name, path, package: own } = await new Store().resolve(model, { signal, report });
  const settings = settingsOf(own?.parameters ?? {});
  const { device, kvDtype, deterministic, maxSequences, lookup, pageCache = false } = options;
  const draft =
    options.draft === undefined
      ? lookup === false
        ? undefined
        : own?.draft
      : (await new Store().resolve(options.draft, { signal, report })).path;
  const { threads = settings.threads, contextLength = settings.contextLength } = options;
  const adapters = Object.entries(options.adapters ?? {}).map(([name, path]) => ({ name, path }));
  const ofPackage = packageAdapters(own);
  const { session, engine, sampling } = await openSession({
    spec: {
      ...{ path, device, threads, contextLength, kvDtype, deterministic, maxSequences, lookup, draft },
      // A package may ask for more than its model can, as Ollama lets it.
      clampContext: options.contextLength === undefined,
      adapters: [...adapters, ...ofPackage],
      pageCache:
        pageCache === false ? undefined : { folder: pagesFolder(), name, ...(pageCache === true ? {} : pageCache) },
    },
    carrier: workerCarrier,
    template: own?.template,
    onProgress: onProgress && ((done, total) => onProgress("load", done, total)),
    signal,
  });
  const wanted = { ...sampling, ...settings.sampling };
  return new Model(name, session, wanted, () => engine.close(), {
    settings,
    package: own,
    adapter: ofPackage[0]?.name,
  });
}

/** A loaded model. Any number of generations may run side by side. */
export class Model {
  /** @internal open() makes them. */
  constructor(
    /** As it was asked for, or the file's name. */
    readonly name: string,
    private readonly session: Session,
    /** What is used where a generation does not say: its package's parameters, the model's generation_config, or millrace's own values. */
    readonly sampling: SamplingDefaults,
    private readonly shutDown: () => Promise<void>,
    private readonly own: { readonly settings: PackageSettings; readonly package?: Package; readonly adapter?: string },
  ) {}

  /** Context length, vocabulary, device and memory, in tokens and bytes. */
  get info(): ModelLimits {
    return this.session.limits;
  }

  /**
   * Continues a prompt: a text (the model's first token is put before it) or token ids (taken as they are).
   *
   * ```ts
   * const text = await model.generate("The capital of France is", { maxTokens: 8, temperature: 0 }).text();
   * for await (const { tokens } of model.generate([1, 2, 3], { logprobs: 5 })) console.log(tokens);
   * ```
   */
  generate(prompt: string | readonly number[] | Int32Array, options: PromptOptions = {}): Generation {
    const input = typeof prompt === "string" ? { prompt } : { promptIds: Int32Array.from(prompt) };
    return this.run({ ...input, parseSpecial: options.parseSpecial }, options);
  }

  /**
   * Answers a conversation, rendered by the model's chat template. A string is one message of the user.
   *
   * ```ts
   * const messages: ChatMessage[] = [{ role: "user", content: "Hello" }];
   * const answer = model.chat(messages, { signal: AbortSignal.timeout(10_000) });
   * messages.push({ role: "assistant", content: await answer.text() });
   * ```
   */
  chat(messages: string | readonly ChatMessage[], options: ChatOptions = {}): Generation {
    const conversation: readonly ChatMessage[] =
      typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
    const { tools, toolChoice, parallelToolCalls, think, templateVariables } = options;
    const asked = { tools, toolChoice, parallelToolCalls, think, templateVariables };
    return this.run({ messages: withPackageMessages(this.own.package, conversation), ...asked }, options);
  }

  /** Text to token ids. bos: begin with the model's first token; special: spelled-out special tokens become those. */
  tokenize(text: string, options: { bos?: boolean; special?: boolean } = {}): Int32Array {
    return this.session.tokenize(text, options);
  }

  /** Token ids to text. special: show special tokens. */
  detokenize(ids: Iterable<number>, options: { special?: boolean } = {}): string {
    return this.session.detokenize(ids, options);
  }

  /** Ends what runs (with finish reason abort) and gives back all memory. */
  async close(): Promise<void> {
    await this.shutDown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private run(input: Partial<ChatJob>, options: GenerateOptions): Generation {
    const job: ChatJob = {
      ...input,
      n: options.n ?? 1,
      sampling: {
        ...this.sampling,
        ...definedOf(options, ["temperature", "topK", "topP", "minP"]),
        ...definedOf(options, ["repetitionPenalty", "frequencyPenalty", "presencePenalty"]),
        seed: seedOf(options.seed ?? this.own.settings.seed),
        logitBias: Object.entries(options.logitBias ?? {}).map(([id, bias]) => [Number(id), bias] as const),
      },
      maxTokens: options.maxTokens ?? this.own.settings.maxTokens,
      minTokens: options.minTokens ?? 0,
      stop: [options.stop ?? this.own.settings.stop].flat(),
      stopIds: options.stopIds ?? [],
      includeStop: options.includeStop ?? false,
      ignoreEos: options.ignoreEos ?? false,
      skipSpecialTokens: options.skipSpecialTokens,
      logprobs: options.logprobs,
      format: options.format,
      priority: options.priority ?? 0,
      cacheSalt: options.cacheSalt,
      adapter: options.adapter ?? this.own.adapter,
    };
    checkOptions(job);
    const prepared = this.session.prepare(job);
    return new Generation((signal) => this.session.deltas(prepared, signal), options.signal);
  }
}

const seedOf = (seed: number | bigint | undefined) => (seed === undefined ? randomSeed() : seedBits(seed));

function definedOf<T, K extends keyof T>(options: T, names: readonly K[]): Partial<Pick<T, K>> {
  const defined: Partial<Pick<T, K>> = {};
  for (const name of names) if (options[name] !== undefined) defined[name] = options[name];
  return defined;
}

/** Ranges that JSON schemas check for the server. */
function checkOptions({ n, sampling, maxTokens, minTokens, logprobs }: ChatJob): void {
  const whole = Number.isInteger;
  const ranges: [name: string, valid: boolean, wanted: string][] = [
    ["n", whole(n) && n >= 1, "a whole number of at least 1"],
    ["temperature", sampling.temperature >= 0 && Number.isFinite(sampling.temperature), "a number of at least 0"],
    ["topK", whole(sampling.topK) && sampling.topK >= 0 && sampling.topK < 2 ** 31, "a whole number from 0 to 2³¹ − 1"],
    ["topP", sampling.topP > 0 && sampling.topP <= 1, "above 0 and at most 1"],
    ["minP", sampling.minP >= 0 && sampling.minP <= 1, "from 0 to 1"],
    ["repetitionPenalty", sampling.repetitionPenalty >= 0.01 && sampling.repetitionPenalty <= 100, "from 0.01 to 100"],
    ["frequencyPenalty", Number.isFinite(sampling.frequencyPenalty), "a number"],
    ["presencePenalty", Number.isFinite(sampling.presencePenalty), "a number"],
    ["logitBias", sampling.logitBias.every(([, bias]) => Number.isFinite(bias)), "made of finite numbers"],
    ["maxTokens", maxTokens === undefined || (whole(maxTokens) && maxTokens >= 1), "a whole number of at least 1"],
    ["minTokens", whole(minTokens) && minTokens >= 0, "a whole number of at least 0"],
    ["logprobs", logprobs === undefined || (whole(logprobs) && logprobs >= 0), "a whole number of at least 0"],
  ];
  for (const [name, valid, wanted] of ranges) {
    if (!valid) throw new UserError(`${name} must be ${wanted}.`, { param: name });
  }
}
