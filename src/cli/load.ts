// Owns: load on an OpenAI-compatible server: when requests arrive, how long they are, what they share; and what came back,
// as the figures that vLLM's benchmark gives. Drives any server (ours, llama-server, vLLM); knows none.
import { UserError } from "../base/errors.js";

export const workloads = ["random", "chat", "prefix"] as const;

export interface LoadOptions {
  /** Of the server: "http://127.0.0.1:11434". */
  readonly url: string;
  readonly model: string;
  readonly apiKey?: string;
  readonly requests: number;
  /** Arrivals a second, on average; Infinity: all at once. */
  readonly rate: number;
  /** Shape of the gamma distribution of the gaps: 1 is a Poisson process, less is burstier. */
  readonly burstiness: number;
  /** Open requests at once, at most. */
  readonly concurrency: number;
  /**
   * random: every prompt `input` and answer `output` long. chat: lengths spread as in ShareGPT's conversations (log-normal,
   * with `input` and `output` as medians). prefix: as random, but a prompt's first three quarters are one of `prefixes`.
   */
  readonly workload: (typeof workloads)[number];
  /** Words, about a token each; the report has the server's own count. */
  readonly input: number;
  /** Tokens. */
  readonly output: number;
  readonly prefixes: number;
  readonly ignoreEos: boolean;
  readonly seed: number;
  /** Milliseconds that a request must keep to count as good. */
  readonly goodTtft: number;
  readonly goodTpot: number;
}

export interface Spread {
  readonly mean: number;
  readonly median: number;
  readonly p90: number;
  readonly p99: number;
}

/** Times in milliseconds. */
export interface LoadReport {
  readonly requests: number;
  readonly failed: number;
  /** The first failures' own words. */
  readonly errors: readonly string[];
  readonly seconds: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  readonly requestsPerSecond: number;
  readonly tokensPerSecond: number;
  /** Requests a second that kept both limits. */
  readonly goodput: number;
  readonly ttft: Spread | null;
  /** Without the first token. */
  readonly tpot: Spread | null;
  readonly itl: Spread | null;
  readonly e2e: Spread | null;
}

/** Every value behind the spreads, milliseconds. */
export interface LoadSamples {
  readonly ttft: readonly number[];
  readonly tpot: readonly number[];
  readonly itl: readonly number[];
  readonly e2e: readonly number[];
}

export interface LoadRun {
  readonly report: LoadReport;
  readonly samples: LoadSamples;
}

interface Served {
  readonly ttft: number;
  readonly e2e: number;
  readonly gaps: readonly number[];
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
}

export async function runLoad(options: LoadOptions): Promise<LoadRun> {
  const random = generator(options.seed);
  const shared = Array.from({ length: options.prefixes }, () => text(Math.floor(options.input * 0.75), random));
  const plans = Array.from({ length: options.requests }, () => plan(options, shared, random));
  const gaps = plans.map(() => (options.rate === Number.POSITIVE_INFINITY ? 0 : gap(options, random)));
  const served: Served[] = [];
  const errors: string[] = [];
  const slots = new Slots(options.concurrency);
  const from = performance.now();
  let due = from;
  const open: Promise<void>[] = [];
  for (const [i, one] of plans.entries()) {
    due += gaps[i] * 1000;
    const wait = due - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    await slots.take();
    open.push(
      ask(options, one)
        .then((result) => void served.push(result))
        .catch((error: Error) => void errors.push(error.message))
        .finally(() => slots.give()),
    );
  }
  await Promise.all(open);
  return report(options, served, errors, (performance.now() - from) / 1000);
}

interface Plan {
  readonly prompt: string;
  readonly maxTokens: number;
}

function plan({ workload, input, output }: LoadOptions, shared: readonly string[], random: () => number): Plan {
  if (workload === "prefix") {
    const prefix = shared[Math.floor(random() * shared.length)];
    return { prompt: `${prefix} ${text(Math.ceil(input * 0.25), random)}`, maxTokens: output };
  }
  if (workload === "random") return { prompt: text(input, random), maxTokens: output };
  // Spreads of ShareGPT's prompts and answers around their medians.
  const length = (median: number, sigma: number) =>
    Math.round(Math.min(median * 8, Math.max(4, median * Math.exp(sigma * normal(random)))));
  return { prompt: text(length(input, 1.1), random), maxTokens: length(output, 0.8) };
}

async function ask(options: LoadOptions, { prompt, maxTokens }: Plan): Promise<Served> {
  const { url, model, apiKey, ignoreEos } = options;
  const from = performance.now();
  const answer = await fetch(`${url.replace(/\/+$/, "").replace(/\/v1$/, "")}/v1/completions`, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }),
    },
    body: JSON.stringify({
      ...{ model, prompt, max_tokens: maxTokens, stream: true, stream_options: { include_usage: true } },
      ...(ignoreEos ? { ignore_eos: true } : {}),
    }),
  });
  if (!answer.ok || answer.body === null) throw new Error(`${answer.status}: ${(await answer.text()).slice(0, 300)}`);
  const times: number[] = [];
  let usage: Usage | undefined;
  for await (const chunk of events(answer.body)) {
    if (chunk.error !== undefined) throw new Error(chunk.error.message ?? "failed in mid-stream");
    if (chunk.usage) usage = chunk.usage;
    if (chunk.choices?.[0]?.text) times.push(performance.now());
  }
  if (times.length === 0) throw new Error("no text came");
  return {
    ttft: times[0] - from,
    e2e: times[times.length - 1] - from,
    gaps: times.slice(1).map((time, i) => time - times[i]),
    promptTokens: usage?.prompt_tokens ?? 0,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    generatedTokens: usage?.completion_tokens ?? times.length,
  };
}

interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null;
}

interface Chunk {
  readonly choices?: readonly { readonly text?: string }[];
  readonly usage?: Usage | null;
  readonly error?: { readonly message?: string };
}

async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<Chunk> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of body as unknown as AsyncIterable<Uint8Array>) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      const data = /^data: ?(.*?)\r?$/.exec(line)?.[1];
      if (data !== undefined && data !== "[DONE]") yield JSON.parse(data) as Chunk;
    }
  }
}

function report(options: LoadOptions, served: readonly Served[], errors: readonly string[], seconds: number): LoadRun {
  const sum = (of: (one: Served) => number) => served.reduce((total, one) => total + of(one), 0);
  const tpot = (one: Served) => (one.e2e - one.ttft) / Math.max(1, one.generatedTokens - 1);
  const good = served.filter((one) => one.ttft <= options.goodTtft && tpot(one) <= options.goodTpot).length;
  const generatedTokens = sum((one) => one.generatedTokens);
  const samples: LoadSamples = {
    ttft: served.map(({ ttft }) => ttft),
    tpot: served.filter(({ generatedTokens }) => generatedTokens > 1).map(tpot),
    itl: served.flatMap(({ gaps }) => gaps),
    e2e: served.map(({ e2e }) => e2e),
  };
  const spreads = {
    ttft: spread(samples.ttft),
    tpot: spread(samples.tpot),
    itl: spread(samples.itl),
    e2e: spread(samples.e2e),
  };
  return {
    report: {
      requests: served.length,
      failed: errors.length,
      errors: [...new Set(errors)].slice(0, 5),
      seconds,
      promptTokens: sum((one) => one.promptTokens),
      cachedTokens: sum((one) => one.cachedTokens),
      generatedTokens,
      requestsPerSecond: served.length / seconds,
      tokensPerSecond: generatedTokens / seconds,
      goodput: good / seconds,
      ...spreads,
    },
    samples,
  };
}

/** null where there is nothing to spread. */
export function spread(values: readonly number[]): Spread | null {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
  return { mean: sorted.reduce((a, b) => a + b, 0) / sorted.length, median: at(0.5), p90: at(0.9), p99: at(0.99) };
}

/** Lets so many at a time through. */
class Slots {
  private readonly waiting: (() => void)[] = [];

  constructor(private free: number) {
    if (!(free >= 1)) throw new UserError("At least one request must be allowed at once.");
  }

  async take(): Promise<void> {
    if (this.free > 0) this.free -= 1;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
  }

  give(): void {
    const next = this.waiting.shift();
    if (next === undefined) this.free += 1;
    else next();
  }
}

/** Mulberry32: the same load for the same seed. */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Seconds between two arrivals: gamma distributed (Marsaglia and Tsang), with the mean that the rate says. */
export function gap({ rate, burstiness }: Pick<LoadOptions, "rate" | "burstiness">, random: () => number): number {
  return gamma(burstiness, random) / (burstiness * rate);
}

function gamma(shape: number, random: () => number): number {
  if (shape < 1) return gamma(shape + 1, random) * (1 - random()) ** (1 / shape);
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = normal(random);
    const v = (1 + c * x) ** 3;
    if (v > 0 && Math.log(1 - random()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
  }
}

const words =
  "the of and to in is was for on that with as by at from it an be this are or his which not have had were".split(" ");

const text = (length: number, random: () => number): string =>
  Array.from({ length: Math.max(1, length) }, () => words[Math.floor(random() * words.length)]).join(" ");
