// The server as `millrace serve` runs it: the compiled program, real models in processes of their own, OpenAI's client.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as ServeModule from "../../src/server/serve.js";
import { smollm2 } from "../support/models.js";
import { until } from "./support.js";

const { serve } = (await import(new URL("../../dist/server/serve.js", import.meta.url).href)) as typeof ServeModule;
const tiny = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));

let server: ServeModule.ModelServer;
let client: OpenAI;
const pids = new Map<string, number[]>();
beforeAll(async () => {
  server = await serve({
    models: [{ model: smollm2(), id: "smollm2" }, { model: tiny }],
    port: 0,
    threads: 2,
    contextLength: 512,
    onEngineStart: (model, pid) => pids.set(model, [...(pids.get(model) ?? []), pid]),
  });
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
});
afterAll(() => server?.close());

const model = "smollm2";
const ask = (content: string) => [{ role: "user" as const, content }];
const greedy = { model, temperature: 0, max_tokens: 24 };

async function running(): Promise<number> {
  const health = (await (await fetch(`${server.url}/health`)).json()) as { models: { running: number }[] };
  return health.models.reduce((sum, one) => sum + one.running, 0);
}

describe("a served model", () => {
  it("streams what it answers whole, and counts cached tokens", async () => {
    const body = { ...greedy, messages: ask("Tell me about the rivers of France, and where they flow.") };
    const whole = await client.chat.completions.create(body);
    let text = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    const options = { stream: true as const, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ ...body, ...options })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage;
    }
    expect(text).toBe(whole.choices[0].message.content);
    expect(text.length).toBeGreaterThan(40);
    expect(whole.usage!.completion_tokens).toBe(24);
    expect(usage!.prompt_tokens).toBe(whole.usage!.prompt_tokens);
    // The same prompt again: its full pages are still there.
    expect(usage!.prompt_tokens_details!.cached_tokens).toBeGreaterThanOrEqual(16);
  });

  it("gives the same answer for a prompt as text and as token ids", async () => {
    const prompt = "The capital of France is";
    const text = (await client.completions.create({ ...greedy, prompt, return_token_ids: true } as never)) as never as {
      choices: { text: string; token_ids: number[]; prompt_token_ids: number[] }[];
    };
    const [choice] = text.choices;
    expect(choice.text).toContain("Paris");
    const ids = await client.completions.create({ ...greedy, prompt: choice.prompt_token_ids });
    expect(ids.choices[0].text).toBe(choice.text);
  });

  it("stops at a string wherever the tokens' borders are", async () => {
    const body = { ...greedy, prompt: "One, two, three, four," };
    const text = (await client.completions.create(body)).choices[0].text;
    for (const [start, end] of [
      [5, 8],
      [7, 14],
      [12, 13],
    ]) {
      const stop = text.slice(start, end);
      const cut = (await client.completions.create({ ...body, stop })).choices[0];
      expect(cut).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finish_reason: "stop" });
    }
  });

  it("draws the same with the same seed, n choices as n seeds, and otherwise differently", async () => {
    const body = { ...greedy, messages: ask("Tell me a story."), temperature: 1, seed: 11 };
    const texts = async (fields: object) =>
      (await client.chat.completions.create({ ...body, ...fields })).choices.map((choice) => choice.message.content);
    const three = await texts({ n: 3 });
    expect(new Set(three).size).toBe(3);
    expect(await texts({ n: 3 })).toEqual(three);
    expect(await texts({ seed: 12 })).toEqual([three[1]]);
  });

  it("gives log-probabilities that add up, of prompt and answer", async () => {
    const body = { ...greedy, max_tokens: 4, prompt: "The capital of France is", echo: true, logprobs: 5 };
    const [{ text, logprobs }] = (await client.completions.create(body)).choices;
    const { tokens, token_logprobs, top_logprobs, text_offset } = logprobs!;
    expect(tokens!.join("")).toBe(text);
    tokens!.forEach((token, i) => {
      expect(text.slice(text_offset![i], text_offset![i] + token.length)).toBe(token);
    });
    expect(token_logprobs![0]).toBeNull();
    token_logprobs!.slice(1).forEach((logprob, i) => {
      const top = Object.values(top_logprobs![i + 1]);
      expect(logprob).toBeLessThanOrEqual(Math.max(...top));
      expect(top.reduce((sum, one) => sum + Math.exp(one), 0)).toBeLessThanOrEqual(1.001);
    });
    // Greedy: what was drawn is the best.
    const last = top_logprobs!.at(-1)!;
    expect(last[tokens!.at(-1)!]).toBe(Math.max(...Object.values(last)));
  });

  it("gives each of 16 requests at once what it gets alone", async () => {
    const bodies = Array.from({ length: 16 }, (_, i) => ({
      model,
      max_tokens: 12 + (i % 5),
      prompt: `${"Once upon a time ".repeat(i % 4)}there was number ${i}, who`,
      temperature: i % 2 === 0 ? 0 : 0.9,
      seed: i,
    }));
    const together = await Promise.all(bodies.map((body) => client.completions.create(body)));
    for (const [i, body] of bodies.entries()) {
      const alone = await client.completions.create(body);
      expect(alone.choices[0].text, `request ${i}`).toBe(together[i].choices[0].text);
    }
  });

  it("frees the place of a client that goes away", async () => {
    const stream = await client.chat.completions.create({ model, messages: ask("Count to a thousand."), stream: true });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    let open = 1;
    await until(() => {
      void running().then((now) => {
        open = now;
      });
      return open === 0;
    });
  });

  it("outlives its engine's process: an error event, then the next request is served", async () => {
    const body = { model, prompt: "Once upon a time", max_tokens: 400, ignore_eos: true, stream: true as const };
    const stream = await client.completions.create(body);
    let chunks = 0;
    const reading = (async () => {
      for await (const _ of stream) if (++chunks === 3) process.kill(pids.get(model)!.at(-1)!, "SIGKILL");
    })();
    await expect(reading).rejects.toThrow(/killed by SIGKILL/);
    const next = await client.completions.create({ ...greedy, prompt: "The capital of France is" });
    expect(next.choices[0].text).toContain("Paris");
    expect(pids.get(model)!.length).toBe(2);
    expect(pids.get("llama-mha")!.length).toBe(1);
  });
});

describe("a served checkpoint without a tokenizer", () => {
  it("continues token ids as Hugging Face does", async () => {
    const golden = JSON.parse(readFileSync(`${tiny}/golden.json`, "utf8")) as {
      cases: { prompt_ids: number[]; greedy_ids: number[] }[];
    };
    for (const { prompt_ids, greedy_ids } of golden.cases) {
      const body = { model: "llama-mha", prompt: prompt_ids, temperature: 0, max_tokens: greedy_ids.length };
      const answer = await client.completions.create(body);
      expect(answer.choices[0]).toMatchObject({ token_ids: greedy_ids, finish_reason: "length" });
    }
    const text = client.completions.create({ model: "llama-mha", prompt: "text" });
    await expect(text).rejects.toMatchObject({ status: 400, code: "no_tokenizer" });
  });
});

describe("starting", () => {
  it("refuses a public address without a key, and a missing model, before it listens", async () => {
    const models = [{ model: tiny }];
    await expect(serve({ models, host: "0.0.0.0" })).rejects.toThrow(/--api-key/);
    await expect(serve({ models: [{ model: "./missing.gguf" }], port: 0 })).rejects.toThrow(/missing\.gguf/);
    await expect(serve({ models: [...models, ...models], port: 0, threads: 1 })).rejects.toThrow(/name of two models/);
  });
});
