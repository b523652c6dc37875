// Owns: the numbers behind GET /metrics, in Prometheus' text format: vLLM's names, and TGI's as aliases of the same
// observations, so that either's dashboards work. What the engines count themselves is read when somebody asks. Every
// label has few values: a model's id, a route, a status, a reason; nothing that a caller can make up.
import type { FastifyReply, FastifyRequest } from "fastify";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { EngineStats, FinishReason, TierStats } from "../engine/types.js";
import type { Prepared } from "../session/session.js";
import { Account, type TokenListener } from "./account.js";
import type { ServedModel, ServedModels } from "./models.js";

const firstTokenBuckets = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const tokenBuckets = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
];
const requestBuckets = [
  0.001, 0.01, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
];
const lengthBuckets = [1, 2, 5]
  .flatMap((n) => [n, n * 10, n * 100, n * 1000, n * 10_000, n * 100_000])
  .sort((a, b) => a - b);
const choiceBuckets = [1, 2, 5, 10, 20, 50, 100];

/** How long a scrape waits for an engine that is in the middle of a step. */
const statsMs = 2000;

/** Routes that a model answers: their failures count as failed requests. */
const answering = new Set([
  ...["/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/generate", "/api/chat"],
  ...["/", "/generate", "/generate_stream", "/invocations", "/vertex"],
]);

export class Metrics {
  private readonly registry = new Registry();
  private readonly firstToken = this.histogram(
    "vllm:time_to_first_token_seconds",
    "From a request's arrival to its first token.",
    firstTokenBuckets,
  );
  private readonly nextToken = this.histogram(
    "vllm:inter_token_latency_seconds",
    "Between two tokens of a choice, as the server sends them.",
    tokenBuckets,
  );
  private readonly promptTokens = this.counter(
    "vllm:prompt_tokens_total",
    "Tokens of prompts that were begun, cached ones included.",
  );
  private readonly generationTokens = this.counter("vllm:generation_tokens_total", "Tokens that were generated.");
  private readonly success = this.counter(
    "vllm:request_success_total",
    "Choices that ended without an error, by reason.",
    ["finished_reason"],
  );
  private readonly tgiSuccess = this.counter(
    "tgi_request_success",
    "Requests (one a prompt) that ended without an error.",
  );
  private readonly tgiCount = this.counter(
    "tgi_request_count",
    "Requests (one a prompt) that a model was asked to answer.",
  );
  private readonly tgiFailure = new Counter({
    name: "tgi_request_failure",
    help: "Requests that failed, by what was at fault.",
    labelNames: ["err"],
    registers: [this.registry],
  });
  private readonly httpRequests = new Counter({
    name: "http_requests_total",
    help: "Answers to HTTP requests.",
    labelNames: ["method", "handler", "status"],
    registers: [this.registry],
  });
  private readonly httpSeconds = new Histogram({
    name: "http_request_duration_seconds",
    help: "From a request's arrival to the end of its answer.",
    labelNames: ["method", "handler"],
    buckets: requestBuckets,
    registers: [this.registry],
  });
  /** Observed once a request, when it has ended: under vLLM's name and TGI's. */
  private readonly perRequest: readonly {
    of: (account: Account) => number | undefined;
    histograms: Histogram<"model_name">[];
  }[];
  /** Set anew by each scrape. */
  private readonly scraped: readonly {
    metric: Gauge<"model_name"> | Counter<"model_name">;
    of: (stats: EngineStats) => number;
  }[];

  /** Likewise, by tier of pages below the device. */
  private readonly tiers = [
    {
      metric: this.counter("millrace_cache_tier_hits_total", "Pages that the device had not and the tier had.", [
        "tier",
      ]),
      of: ({ hits }: TierStats) => hits,
    },
    {
      metric: this.counter("millrace_cache_tier_misses_total", "Pages that the tier had not either.", ["tier"]),
      of: ({ misses }: TierStats) => misses,
    },
    {
      metric: this.gauge("millrace_cache_tier_pages", "Pages that the tier holds.", ["tier"]),
      of: ({ pages }: TierStats) => pages,
    },
    {
      metric: this.gauge("millrace_cache_tier_bytes", "Bytes that the tier holds.", ["tier"]),
      of: ({ bytes }: TierStats) => bytes,
    },
  ];

  constructor(private readonly models: ServedModels) {
    const seconds = (of: (account: Account) => number | undefined, help: string, ...names: string[]) =>
      this.request(of, help, requestBuckets, names);
    const lengths = (of: (account: Account) => number | undefined, help: string, ...names: string[]) =>
      this.request(of, help, lengthBuckets, names);
    this.perRequest = [
      seconds(
        (a) => a.elapsedMs / 1000,
        "From a request's arrival to the end of its answer.",
        "vllm:e2e_request_latency_seconds",
        "tgi_request_duration",
      ),
      seconds(
        (a) => a.queueMs / 1000,
        "Waiting in the engine's queue.",
        "vllm:request_queue_time_seconds",
        "tgi_request_queue_duration",
      ),
      seconds(
        (a) => (a.promptMs + a.generationMs) / 1000,
        "Running in the engine.",
        "vllm:request_inference_time_seconds",
        "tgi_request_inference_duration",
      ),
      seconds((a) => a.promptMs / 1000, "Computing the prompt.", "vllm:request_prefill_time_seconds"),
      seconds((a) => a.generationMs / 1000, "Generating.", "vllm:request_decode_time_seconds"),
      seconds(
        meanTokenSeconds,
        "Generating, by token.",
        "vllm:request_time_per_output_token_seconds",
        "tgi_request_mean_time_per_token_duration",
      ),
      lengths((a) => a.promptTokens, "Tokens of the prompt.", "vllm:request_prompt_tokens", "tgi_request_input_length"),
      lengths(
        (a) => a.generatedTokens,
        "Tokens of the answer.",
        "vllm:request_generation_tokens",
        "tgi_request_generated_tokens",
      ),
      lengths(
        (a) => a.request.maxTokens,
        "The most that might be generated.",
        "vllm:request_params_max_tokens",
        "vllm:request_max_num_generation_tokens",
        "tgi_request_max_new_tokens",
      ),
      lengths(
        (a) => a.cachedTokens,
        "Tokens of the prompt that were in the prefix cache.",
        "tgi_request_skipped_tokens",
      ),
      this.request((a) => a.request.n, "Choices asked for.", choiceBuckets, ["vllm:request_params_n"]),
    ];
    const gauge = (of: (stats: EngineStats) => number, help: string, ...names: string[]) =>
      names.map((name) => ({ of, metric: this.gauge(name, help) }));
    const count = (of: (stats: EngineStats) => number, help: string, name: string) => ({
      of,
      metric: this.counter(name, help),
    });
    this.scraped = [
      ...gauge(
        ({ running }) => running,
        "Choices that the engine is computing.",
        "vllm:num_requests_running",
        "tgi_batch_current_size",
      ),
      ...gauge(
        ({ waiting }) => waiting,
        "Choices that wait in the engine.",
        "vllm:num_requests_waiting",
        "tgi_queue_size",
      ),
      ...gauge(
        cacheUsage,
        "Share of the key-value cache's pages in use, 0 to 1.",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
      ),
      ...gauge(
        ({ pages: [first] }) => first?.total ?? 0,
        "Pages of the key-value cache (of its first group).",
        "millrace_cache_pages",
      ),
      count(
        ({ prefixQueries }) => prefixQueries,
        "Prompt tokens looked up in the prefix cache.",
        "vllm:prefix_cache_queries_total",
      ),
      count(({ prefixHits }) => prefixHits, "Prompt tokens found in the prefix cache.", "vllm:prefix_cache_hits_total"),
      count(
        ({ preemptions }) => preemptions,
        "Times that a sequence gave its pages back to another.",
        "vllm:num_preemptions_total",
      ),
      count(
        ({ draftTokens }) => draftTokens,
        "Guesses of what comes next that were checked.",
        "vllm:spec_decode_num_draft_tokens_total",
      ),
      count(
        ({ acceptedTokens }) => acceptedTokens,
        "Guesses that were right.",
        "vllm:spec_decode_num_accepted_tokens_total",
      ),
      count(
        ({ tiers }) => tiers?.skipped ?? 0,
        "Pages in a tier below the device that were computed, because that was expected to be quicker.",
        "millrace_cache_skipped_pages_total",
      ),
      count(
        ({ tiers }) => tiers?.damaged ?? 0,
        "Files of kept pages that were damaged, and were removed.",
        "millrace_cache_damaged_files_total",
      ),
      count(({ steps }) => steps, "Steps of the engine.", "tgi_batch_inference_count"),
    ];
  }

  /** A job that begins; its deltas are to be added to the account, and its end told to closed(). */
  opened(model: ServedModel, { request }: Prepared, arrivedAt: number): Account {
    const label = { model_name: model.id };
    const listener: TokenListener = {
      first: (seconds) => this.firstToken.observe(label, seconds),
      next: (seconds) => this.nextToken.observe(label, seconds),
      tokens: (count) => this.generationTokens.inc(label, count),
    };
    this.tgiCount.inc(label);
    this.promptTokens.inc(label, request.promptIds.length);
    return new Account(model.id, request, arrivedAt, listener);
  }

  closed(account: Account): void {
    const label = { model_name: account.model };
    for (const { of, histograms } of this.perRequest) {
      const value = of(account);
      if (value !== undefined) for (const histogram of histograms) histogram.observe(label, value);
    }
    const reasons: readonly FinishReason[] = account.finished.length === 0 ? ["abort"] : account.finished;
    for (const reason of reasons) if (reason !== "error") this.success.inc({ ...label, finished_reason: reason });
    if (reasons.includes("error")) this.tgiFailure.inc({ err: "generation" });
    else this.tgiSuccess.inc(label);
  }

  /** An answer has ended, whatever it was. */
  answered(request: FastifyRequest, reply: FastifyReply): void {
    const handler = request.routeOptions.url ?? "none";
    const { statusCode } = reply.raw;
    this.httpRequests.inc({ method: request.method, handler, status: `${Math.floor(statusCode / 100)}xx` });
    this.httpSeconds.observe({ method: request.method, handler }, reply.elapsedTime / 1000);
    if (request.method !== "POST" || !answering.has(handler) || statusCode < 400 || statusCode === 500) return;
    this.tgiFailure.inc({ err: statusCode === 429 || statusCode === 503 ? "overloaded" : "validation" });
  }

  async render(): Promise<{ contentType: string; text: string }> {
    const read = await Promise.all(
      this.models.loaded.map(async ({ served }) => ({ id: served.id, stats: await statsOf(served) })),
    );
    for (const { metric, of } of this.scraped) {
      metric.reset();
      for (const { id, stats } of read) if (stats !== undefined) metric.inc({ model_name: id }, of(stats));
    }
    for (const { metric, of } of this.tiers) {
      metric.reset();
      for (const { id, stats } of read) {
        for (const tier of stats?.tiers ? (["memory", "disk"] as const) : []) {
          metric.inc({ model_name: id, tier }, of(stats!.tiers![tier]));
        }
      }
    }
    return { contentType: this.registry.contentType, text: await this.registry.metrics() };
  }

  private request(of: (account: Account) => number | undefined, help: string, buckets: number[], names: string[]) {
    return { of, histograms: names.map((name) => this.histogram(name, help, buckets)) };
  }

  private histogram(name: string, help: string, buckets: number[]): Histogram<"model_name"> {
    return new Histogram({ name, help, buckets, labelNames: ["model_name"], registers: [this.registry] });
  }

  private counter<L extends string = never>(name: string, help: string, labels: L[] = []): Counter<"model_name" | L> {
    return new Counter({ name, help, labelNames: ["model_name", ...labels], registers: [this.registry] });
  }

  private gauge<L extends string = never>(name: string, help: string, labels: L[] = []): Gauge<"model_name" | L> {
    return new Gauge({ name, help, labelNames: ["model_name", ...labels], registers: [this.registry] });
  }
}

function meanTokenSeconds({ generatedTokens, generationMs, request }: Account): number | undefined {
  const each = generatedTokens / request.n - 1;
  return each > 0 ? generationMs / each / 1000 : undefined;
}

/** Of the fullest group. */
function cacheUsage({ pages }: EngineStats): number {
  return Math.max(0, ...pages.map(({ used, total }) => (total === 0 ? 0 : used / total)));
}

/** undefined: the engine does not count, is dead, or does not answer in time. */
async function statsOf({ session: { engine } }: ServedModel): Promise<EngineStats | undefined> {
  return engine.alive === false ? undefined : inTime(engine.stats?.());
}

/** What an engine answers; undefined: it does not, or not in time. */
export async function inTime<T>(asked: Promise<T> | undefined): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), statsMs);
  });
  try {
    return await Promise.race([asked, late]);
  } catch {
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}
