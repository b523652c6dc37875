// Owns: what `bench` measures, on anything that generates: single requests as llama-bench does its pp and tg tests, and
// many at once as llama-batched-bench does: all prompts, then all answers. Prompts are random ids, all different; end
// tokens are not heeded, so every request makes as many tokens as were asked for.
import { UserError } from "../base/errors.js";
import type { GenerateRequest } from "../engine/types.js";
import type { Generator } from "../session/needs.js";
import { plainSampling } from "../session/sampling.js";

export interface Timed {
  /** performance.now() */
  readonly start: number;
  readonly first: number;
  readonly last: number;
  readonly tokens: readonly number[];
}

let requests = 0;

/** Random ids. */
export function randomIds(generator: Generator, count: number): Int32Array {
  const { vocabSize } = generator.limits;
  return Int32Array.from({ length: count }, () => Math.floor(Math.random() * vocabSize));
}

export function randomRequest(generator: Generator, promptTokens: number, generate: number): GenerateRequest {
  const promptIds = randomIds(generator, promptTokens);
  return {
    id: `bench-${process.pid}-${++requests}`,
    promptIds,
    n: 1,
    sampling: { ...plainSampling, temperature: 0, seed: 0n },
    maxTokens: generate,
    minTokens: generate,
    stopIds: [],
    priority: 0,
    cacheSalt: `bench-${requests}`,
  };
}

/** A request from submission to its last token. tokens: when each came. */
export async function timeRequest(generator: Generator, request: GenerateRequest): Promise<Timed> {
  const tokens: number[] = [];
  const start = performance.now();
  for await (const event of generator.generate(request)) {
    if (event.type === "token") tokens.push(performance.now());
    if (event.type === "finish" && event.reason === "error") {
      throw new UserError(event.error?.message ?? "the request failed", event.error);
    }
  }
  if (tokens.length !== request.maxTokens) {
    throw new UserError(`${tokens.length} tokens came where ${request.maxTokens} were asked for`);
  }
  return { start, first: tokens[0], last: tokens[tokens.length - 1], tokens };
}

export interface LatencyRun {
  readonly promptTokensPerSecond: number;
  readonly generationTokensPerSecond: number;
  readonly ttftMs: number;
}

/**
 * The prompt's speed and time to first token from a request of `prompt` tokens; the generation's from `generate` tokens
 * after a prompt of one, which is the work of llama-bench's tests pp and tg.
 */
export async function latencyRun(generator: Generator, prompt: number, generate: number): Promise<LatencyRun> {
  const reading = await timeRequest(generator, randomRequest(generator, prompt, 1));
  const ttftMs = reading.first - reading.start;
  const writing = await timeRequest(generator, randomRequest(generator, 1, generate));
  return {
    promptTokensPerSecond: (1000 * prompt) / ttftMs,
    generationTokensPerSecond: (1000 * generate) / (writing.last - writing.start),
    ttftMs,
  };
}

export interface ThroughputRun {
  /** Of all requests together while all of them generate: what llama-batched-bench calls S_TG. */
  readonly totalGenerationTokensPerSecond: number;
  /** Generated tokens over the whole time, prompts included. */
  readonly overallGenerationTokensPerSecond: number;
  /** Of all prompts together: S_PP. */
  readonly promptTokensPerSecond: number;
  readonly seconds: number;
}

/** First all prompts, a token each, then all answers: the second time the prompts' pages are found, but for the last. */
export async function throughputRun(
  generator: Generator,
  o: { requests: number; prompt: number; generate: number },
): Promise<ThroughputRun> {
  const requests = Array.from({ length: o.requests }, () => randomRequest(generator, o.prompt, o.generate));
  const all = (list: readonly GenerateRequest[]) => Promise.all(list.map((one) => timeRequest(generator, one)));
  const start = performance.now();
  await all(requests.map((one) => ({ ...one, id: `${one.id}-prompt`, maxTokens: 1, minTokens: 1 })));
  const read = performance.now();
  const answers = await all(requests);
  const end = performance.now();
  // From here on all generate, until the first is done.
  const from = Math.max(...answers.map((one) => one.first));
  const to = Math.min(...answers.map((one) => one.last));
  const within = answers.flatMap((one) => one.tokens).filter((at) => at > from && at <= to).length;
  const generated = o.requests * o.generate;
  return {
    // Where they never all generate at once (very short answers) only the whole of the answers can be told.
    totalGenerationTokensPerSecond: to > from ? (1000 * within) / (to - from) : (1000 * generated) / (end - read),
    overallGenerationTokensPerSecond: (1000 * generated) / (end - start),
    promptTokensPerSecond: (1000 * o.requests * o.prompt) / (read - start),
    seconds: (end - start) / 1000,
  };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The median of each number of the runs. */
export function medians<K extends string>(runs: readonly Readonly<Record<K, number>>[]): Record<K, number> {
  const keys = Object.keys(runs[0]) as K[];
  return Object.fromEntries(keys.map((key) => [key, median(runs.map((run) => run[key]))])) as Record<K, number>;
}
