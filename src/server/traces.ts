// Owns: OpenTelemetry traces: a span a request with gen_ai's attributes, under the caller's own trace where it sends a
// traceparent, and within it the time in the queue, for the prompt and for the answer. OpenTelemetry's own exporter sends
// them (OTLP over HTTP); it is loaded only where somebody wants them. Prompts and answers are never in them.
// Source: OpenTelemetry's semantic conventions for generative AI; gen_ai.latency.* are vLLM's.
import type { Attributes, Context } from "@opentelemetry/api";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type Account, accountsOf } from "./account.js";

/** What answers models: other routes have no spans. */
const operations: Readonly<Record<string, string>> = {
  "/v1/chat/completions": "chat",
  "/v1/completions": "text_completion",
  "/v1/responses": "chat",
  "/v1/messages": "chat",
  "/v1/embeddings": "embeddings",
  "/api/chat": "chat",
  "/api/generate": "text_completion",
  "/api/embed": "embeddings",
  "/api/embeddings": "embeddings",
  "/generate": "text_completion",
  "/generate_stream": "text_completion",
  "/": "text_completion",
  "/invocations": "text_completion",
};

/** url: a collector's address, to which /v1/traces belongs; undefined: as OTEL_EXPORTER_OTLP_* say, else this machine's. */
export async function traceTo(app: FastifyInstance, url: string | undefined, version: string): Promise<void> {
  const [{ SpanKind, SpanStatusCode, ROOT_CONTEXT, trace }, sdk, { OTLPTraceExporter }, resources, core] =
    await Promise.all([
      import("@opentelemetry/api"),
      import("@opentelemetry/sdk-trace-base"),
      import("@opentelemetry/exporter-trace-otlp-http"),
      import("@opentelemetry/resources"),
      import("@opentelemetry/core"),
    ]);
  const endpoint =
    url === undefined ? {} : { url: `${url.replace(/\/+$/, "").replace(/\/v1\/traces$/, "")}/v1/traces` };
  const provider = new sdk.BasicTracerProvider({
    resource: resources
      .defaultResource()
      .merge(resources.resourceFromAttributes({ "service.name": "millrace", "service.version": version })),
    spanProcessors: [new sdk.BatchSpanProcessor(new OTLPTraceExporter(endpoint), { scheduledDelayMillis: 1000 })],
  });
  const tracer = provider.getTracer("millrace", version);
  const propagator = new core.W3CTraceContextPropagator();
  const getter = {
    get: (carrier: FastifyRequest["headers"], key: string) => carrier[key],
    keys: (carrier: FastifyRequest["headers"]) => Object.keys(carrier),
  };

  const told = (request: FastifyRequest, reply: FastifyReply, operation: string): void => {
    const end = Date.now();
    const start = end - reply.elapsedTime;
    const parent = propagator.extract(ROOT_CONTEXT, request.headers, getter);
    const accounts = accountsOf(request);
    const [first] = accounts;
    const span = tracer.startSpan(
      first === undefined ? operation : `${operation} ${first.model}`,
      { kind: SpanKind.SERVER, startTime: start, attributes: attributesOf(request, reply, operation, accounts) },
      parent,
    );
    if (first !== undefined) phases(first, start, trace.setSpan(parent, span));
    if (reply.raw.statusCode >= 400 || accounts.some(({ finished }) => finished.includes("error"))) {
      span.setStatus({ code: SpanStatusCode.ERROR });
    }
    span.end(end);
  };

  /** One after the other from the request's arrival. */
  const phases = ({ queueMs, promptMs, generationMs }: Account, start: number, within: Context): void => {
    let at = start;
    for (const [name, ms] of Object.entries({ queue: queueMs, prefill: promptMs, decode: generationMs })) {
      const span = tracer.startSpan(name, { startTime: at }, within);
      at += ms;
      span.end(at);
    }
  };

  app.addHook("onResponse", async (request, reply) => {
    const operation = request.method === "POST" ? operations[request.routeOptions.url ?? ""] : undefined;
    if (operation !== undefined) told(request, reply, operation);
  });
  app.addHook("onClose", () => provider.shutdown().catch(() => {}));
}

function attributesOf(
  request: FastifyRequest,
  reply: FastifyReply,
  operation: string,
  accounts: readonly Account[],
): Attributes {
  const sum = (of: (account: Account) => number) => accounts.reduce((total, account) => total + of(account), 0);
  const common = {
    "gen_ai.operation.name": operation,
    "gen_ai.provider.name": "millrace",
    "gen_ai.request.id": request.id,
    "http.request.method": request.method,
    "http.route": request.routeOptions.url,
    "http.response.status_code": reply.raw.statusCode,
  };
  const [first] = accounts;
  if (first === undefined) return common;
  const { n, maxTokens, sampling } = first.request;
  const { firstTokenMs } = first;
  return {
    ...common,
    "gen_ai.request.model": first.model,
    "gen_ai.response.model": first.model,
    "gen_ai.request.max_tokens": maxTokens,
    "gen_ai.request.choice.count": n,
    "gen_ai.request.temperature": sampling.temperature,
    "gen_ai.request.top_p": sampling.topP,
    "gen_ai.request.top_k": sampling.topK,
    "gen_ai.usage.input_tokens": sum(({ promptTokens }) => promptTokens),
    "gen_ai.usage.cache_read.input_tokens": sum(({ cachedTokens }) => cachedTokens),
    "gen_ai.usage.output_tokens": sum(({ generatedTokens }) => generatedTokens),
    "gen_ai.response.finish_reasons": accounts.flatMap(({ finished }) => finished),
    // Seconds.
    "gen_ai.latency.e2e": reply.elapsedTime / 1000,
    "gen_ai.latency.time_in_queue": first.queueMs / 1000,
    "gen_ai.latency.time_in_model_prefill": first.promptMs / 1000,
    "gen_ai.latency.time_in_model_decode": first.generationMs / 1000,
    ...(firstTokenMs === undefined ? {} : { "gen_ai.latency.time_to_first_token": firstTokenMs / 1000 }),
  };
}
