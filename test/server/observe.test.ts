// What a server tells of itself: metrics under vLLM's and TGI's names, health that knows dead engines, a log line a request.
import { readFileSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import { setLog } from "../../src/base/log.js";
import type { EngineStats } from "../../src/engine/types.js";
import { letters } from "../session/fakes.js";
import { type Rig, type RigOptions, rig, until } from "./support.js";

const open: Rig[] = [];
const start = async (options?: RigOptions) => {
  const one = await rig(options);
  open.push(one);
  return one;
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

const chat = { model: "tiny", messages: [{ role: "user", content: "Hi" }] };

/** "name{labels}" → value */
async function scrape({ server }: Rig, headers: Record<string, string> = {}): Promise<Map<string, number>> {
  const text = await (await fetch(`${server.url}/metrics`, { headers })).text();
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ")))]),
  );
}

const stats: EngineStats = {
  running: 3,
  waiting: 2,
  pages: [{ total: 100, free: 50, cached: 25, used: 25 }],
  steps: 7,
  preemptions: 1,
  promptTokens: 40,
  generatedTokens: 11,
  prefixQueries: 40,
  draftTokens: 9,
  acceptedTokens: 6,
  prefixHits: 16,
  tiers: {
    memory: { hits: 0, misses: 7, pages: 1, bytes: 100 },
    disk: { hits: 5, misses: 2, pages: 9, bytes: 900 },
    skipped: 3,
    damaged: 1,
  },
};

describe("/metrics", () => {
  it("has every name that the dashboard asks for, with the labels that it sums by", async () => {
    const one = await start();
    Object.assign(one.engine, { stats: async () => stats });
    await (await one.post("/v1/chat/completions", chat)).text();
    await (await one.post("/v1/chat/completions", { ...chat, model: "none" })).text();
    const text = await (await fetch(`${one.server.url}/metrics`)).text();
    const dashboard = JSON.parse(readFileSync(new URL("../../deploy/grafana.json", import.meta.url), "utf8")) as {
      panels: { title: string; targets: { expr: string; legendFormat: string }[] }[];
    };
    expect(dashboard.panels.length).toBeGreaterThan(10);
    for (const { title, targets } of dashboard.panels) {
      for (const { expr, legendFormat } of targets) {
        const names = [...expr.matchAll(/\b(?:vllm:|tgi_|millrace_|http_)\w+/g)].map(([name]) => name);
        expect(names, title).not.toEqual([]);
        const label = /\{\{(\w+)\}\}/.exec(legendFormat)?.[1];
        for (const name of names) {
          const lines = text
            .split("\n")
            .filter((line) => line.startsWith(name) && /^[{ ]/.test(line.slice(name.length)));
          // A counter of failures has a line once there has been one.
          if (name !== "tgi_request_failure") expect(lines.length, `${title}: ${name}`).toBeGreaterThan(0);
          else expect(text, title).toContain(`# TYPE ${name} counter`);
          if (label !== undefined) for (const line of lines) expect(line, title).toContain(`${label}="`);
        }
      }
    }
  });

  it("counts guesses, those that were right among them", async () => {
    const one = await start();
    Object.assign(one.engine, { stats: async () => stats });
    await (await one.post("/v1/chat/completions", chat)).text();
    const seen = await scrape(one);
    expect(seen.get('vllm:spec_decode_num_draft_tokens_total{model_name="tiny"}')).toBe(9);
    expect(seen.get('vllm:spec_decode_num_accepted_tokens_total{model_name="tiny"}')).toBe(6);
  });

  it("counts answers under vLLM's names and TGI's", async () => {
    const one = await start();
    one.engine.cachedTokens = 4;
    await (await one.post("/v1/chat/completions", chat)).text();
    await (await one.post("/v1/chat/completions", { ...chat, stream: true, max_tokens: 2 })).text();
    const seen = await scrape(one);
    const tiny = '{model_name="tiny"}';
    // "Hello", " wor", "ld" and the end; then two.
    expect(seen.get(`vllm:generation_tokens_total${tiny}`)).toBe(6);
    expect(seen.get(`vllm:request_success_total{model_name="tiny",finished_reason="stop"}`)).toBe(1);
    expect(seen.get(`vllm:request_success_total{model_name="tiny",finished_reason="length"}`)).toBe(1);
    for (const name of [
      "vllm:time_to_first_token_seconds",
      "vllm:e2e_request_latency_seconds",
      "vllm:request_queue_time_seconds",
      "vllm:request_prefill_time_seconds",
      "vllm:request_decode_time_seconds",
      "vllm:request_inference_time_seconds",
      "tgi_request_duration",
      "tgi_request_queue_duration",
      "tgi_request_inference_duration",
      "tgi_request_mean_time_per_token_duration",
      "tgi_request_generated_tokens",
    ]) {
      expect(seen.get(`${name}_count${tiny}`), name).toBe(2);
    }
    expect(seen.get(`tgi_request_generated_tokens_sum${tiny}`)).toBe(6);
    expect(seen.get(`tgi_request_skipped_tokens_sum${tiny}`)).toBe(8);
    expect(seen.get(`vllm:prompt_tokens_total${tiny}`)).toBe(seen.get(`tgi_request_input_length_sum${tiny}`));
    expect(seen.get(`vllm:inter_token_latency_seconds_count${tiny}`)).toBeGreaterThan(0);
    expect(seen.get(`tgi_request_success${tiny}`)).toBe(2);
    expect(seen.get(`http_requests_total{method="POST",handler="/v1/chat/completions",status="2xx"}`)).toBe(2);
  });

  it("says what the engine counts at the moment of asking", async () => {
    const one = await start();
    Object.assign(one.engine, { stats: async () => stats });
    await (await one.post("/v1/chat/completions", chat)).text();
    await scrape(one);
    const seen = await scrape(one);
    const value = (name: string) => seen.get(`${name}{model_name="tiny"}`);
    expect(value("vllm:num_requests_running")).toBe(3);
    expect(value("tgi_batch_current_size")).toBe(3);
    expect(value("vllm:num_requests_waiting")).toBe(2);
    expect(value("tgi_queue_size")).toBe(2);
    expect(value("vllm:kv_cache_usage_perc")).toBe(0.25);
    expect(value("vllm:prefix_cache_queries_total")).toBe(40);
    expect(value("vllm:prefix_cache_hits_total")).toBe(16);
    expect(value("vllm:num_preemptions_total")).toBe(1);
    expect(seen.get('millrace_cache_tier_hits_total{model_name="tiny",tier="disk"}')).toBe(5);
    expect(seen.get('millrace_cache_tier_misses_total{model_name="tiny",tier="memory"}')).toBe(7);
    expect(seen.get('millrace_cache_tier_bytes{model_name="tiny",tier="disk"}')).toBe(900);
    expect(value("millrace_cache_damaged_files_total")).toBe(1);
  });

  it("counts failures by whose they are, and lets callers make up no label", async () => {
    const one = await start({ script: letters, contextLength: 1 << 20 });
    await one.post("/v1/chat/completions", { ...chat, temperature: 9 });
    await one.post("/v1/chat/completions", { ...chat, model: "made-up" });
    await fetch(`${one.server.url}/nowhere/made-up`);
    const answer = one.post("/v1/chat/completions", chat);
    await until(() => one.engine.running === 1);
    one.engine.die();
    expect((await answer).status).toBe(503);
    const seen = await scrape(one);
    expect(seen.get('tgi_request_failure{err="validation"}')).toBe(2);
    expect(seen.get('tgi_request_failure{err="generation"}')).toBe(1);
    expect([...seen.keys()].filter((key) => key.includes("made-up"))).toEqual([]);
  });

  it("is not public where there are keys", async () => {
    const one = await start({ apiKeys: ["secret"] });
    expect((await fetch(`${one.server.url}/metrics`)).status).toBe(401);
    expect((await scrape(one, { authorization: "Bearer secret" })).size).toBeGreaterThan(0);
    for (const path of ["/health", "/ping", "/ready"]) expect((await fetch(one.server.url + path)).status).toBe(200);
  });
});

describe("health", () => {
  it("is 503 while an engine is dead, and asking starts it again", async () => {
    const one = await start();
    await (await one.post("/v1/chat/completions", chat)).text();
    let restarts = 0;
    const state = { alive: false };
    Object.defineProperty(one.engine, "alive", { get: () => state.alive });
    Object.assign(one.engine, {
      stats: async () => {
        restarts += 1;
        state.alive = true;
        return stats;
      },
    });
    const dead = await fetch(`${one.server.url}/health`);
    expect([dead.status, dead.headers.get("retry-after")]).toEqual([503, "5"]);
    expect(await dead.json()).toMatchObject({
      error: "unhealthy",
      error_type: "healthcheck",
      models: [{ alive: false }],
    });
    expect(restarts).toBe(1);
    expect((await fetch(`${one.server.url}/ping`)).status).toBe(200);
  });

  it("is not ready while nothing more can wait", async () => {
    const one = await start({ script: letters, contextLength: 1 << 20, maxSequences: 1, maxWaiting: 0 });
    expect((await fetch(`${one.server.url}/ready`)).status).toBe(200);
    const leaving = new AbortController();
    const body = JSON.stringify(chat);
    const headers = { "content-type": "application/json" };
    const answer = fetch(`${one.server.url}/v1/chat/completions`, {
      method: "POST",
      body,
      headers,
      signal: leaving.signal,
    });
    answer.catch(() => {});
    await until(() => one.engine.running === 1);
    const full = await fetch(`${one.server.url}/ready`);
    expect([full.status, ((await full.json()) as { status: string }).status]).toEqual([503, "full"]);
    expect((await fetch(`${one.server.url}/health`)).status).toBe(200);
    leaving.abort();
  });
});

it("logs each request with what it used, and nothing of what it said", async () => {
  const lines: { message: string; fields: object }[] = [];
  setLog((_level, message, fields) => lines.push({ message, fields }), "info");
  try {
    const one = await start();
    await (await one.post("/v1/chat/completions", chat, { "x-request-id": "r-1" })).text();
    await until(() => lines.length === 1);
    expect(lines[0].message).toBe("POST /v1/chat/completions 200");
    expect(lines[0].fields).toMatchObject({
      id: "r-1",
      model: "tiny",
      generatedTokens: 4,
      cachedTokens: 0,
      finished: "stop",
    });
    expect(JSON.stringify(lines)).not.toContain("Hello");
  } finally {
    setLog(null);
  }
});
