// Traces, as a collector receives them: OTLP over HTTP in JSON, from OpenTelemetry's own exporter.
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, it } from "vitest";
import { rig, until } from "./support.js";

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly status: { readonly code?: number };
  readonly attributes: readonly { readonly key: string; readonly value: Readonly<Record<string, unknown>> }[];
}

/** What a collector's receiver does with a request. */
const received: { headers: IncomingHttpHeaders; spans: Span[]; service: unknown }[] = [];
const collector = createServer((request, response) => {
  let text = "";
  request.setEncoding("utf8").on("data", (part: string) => (text += part));
  request.on("end", () => {
    const { resourceSpans } = JSON.parse(text) as {
      resourceSpans: { resource: { attributes: Span["attributes"] }; scopeSpans: { spans: Span[] }[] }[];
    };
    for (const { resource, scopeSpans } of resourceSpans) {
      const service = resource.attributes.find(({ key }) => key === "service.name")?.value.stringValue;
      received.push({ headers: request.headers, spans: scopeSpans.flatMap(({ spans }) => spans), service });
    }
    response.writeHead(200, { "content-type": "application/json" }).end("{}");
  });
});
beforeAll(() => new Promise<void>((ready) => collector.listen(0, "127.0.0.1", ready)));
afterAll(() => new Promise((done) => collector.close(done)));

const spans = () => received.flatMap((one) => one.spans);
const valuesOf = ({ attributes }: Span) =>
  Object.fromEntries(
    attributes.map(({ key, value }) => [
      key,
      "arrayValue" in value
        ? (value.arrayValue as { values: { stringValue: string }[] }).values.map(({ stringValue }) => stringValue)
        : Object.values(value)[0],
    ]),
  );

it("a request is a span under the caller's trace, with what it used, and its phases", async () => {
  const { server, engine, post } = await rig({
    traces: `http://127.0.0.1:${(collector.address() as AddressInfo).port}`,
  });
  engine.cachedTokens = 5;
  const traceId = "0af7651916cd43dd8448eb211c80319c";
  const body = { model: "tiny", messages: [{ role: "user", content: "a secret" }], temperature: 0.5, max_tokens: 9 };
  const answer = await post("/v1/chat/completions", body, { traceparent: `00-${traceId}-b7ad6b7169203331-01` });
  const { usage } = (await answer.json()) as { usage: { prompt_tokens: number; completion_tokens: number } };
  await (await post("/v1/chat/completions", { ...body, model: "none" })).text();
  await fetch(`${server.url}/health`);
  await server.close(); // sends what has not been sent
  await until(() => spans().length >= 5);
  const span = spans().find(({ name }) => name === "chat tiny")!;
  expect(span).toMatchObject({ traceId, parentSpanId: "b7ad6b7169203331", kind: 2 });
  expect(valuesOf(span)).toMatchObject({
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "tiny",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.request.max_tokens": 9,
    "gen_ai.usage.input_tokens": usage.prompt_tokens,
    "gen_ai.usage.cache_read.input_tokens": 5,
    "gen_ai.usage.output_tokens": usage.completion_tokens,
    "gen_ai.response.finish_reasons": ["stop"],
    "http.response.status_code": 200,
  });
  const within = spans().filter(({ parentSpanId }) => parentSpanId === span.spanId);
  expect(within.map(({ name }) => name)).toEqual(["queue", "prefill", "decode"]);
  for (const one of within) {
    expect(BigInt(one.startTimeUnixNano)).toBeGreaterThanOrEqual(BigInt(span.startTimeUnixNano));
    expect(BigInt(one.endTimeUnixNano)).toBeGreaterThanOrEqual(BigInt(one.startTimeUnixNano));
  }
  const refused = spans().find(({ name }) => name === "chat")!;
  expect(refused.status.code).toBe(2);
  expect(valuesOf(refused)).toMatchObject({ "http.response.status_code": 404 });
  expect(refused.traceId).not.toBe(traceId);
  expect(spans()).toHaveLength(5);
  expect(received.every(({ service }) => service === "millrace")).toBe(true);
  expect(JSON.stringify(received)).not.toContain("secret");
});
