// "timings": where an answer's time went, in whole answers and in the last chunk of streams.
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Rig, rig } from "./support.js";

let one: Rig;
beforeAll(async () => {
  one = await rig();
  one.engine.cachedTokens = 3;
  one.engine.pace = 2;
});
afterAll(() => one.server.close());

type Body = { timings?: Record<string, number | null>; choices: unknown[]; usage?: { prompt_tokens: number } };
const chat = { model: "tiny", messages: [{ role: "user", content: "Hi" }], max_tokens: 3, timings: true };

async function whole(path: string, body: object): Promise<Body> {
  return (await (await one.post(path, body)).json()) as Body;
}

async function chunks(path: string, body: object): Promise<Body[]> {
  const text = await (await one.post(path, { ...body, stream: true })).text();
  return text
    .split("\n\n")
    .filter((line) => line.startsWith("data: {"))
    .map((line) => JSON.parse(line.slice(6)) as Body);
}

it("are in a whole answer that asked for them, and in no other", async () => {
  const { timings, usage } = await whole("/v1/chat/completions", chat);
  expect(timings).toEqual({
    first_token_ms: expect.any(Number),
    total_ms: expect.any(Number),
    queue_ms: 0,
    cache_n: 3,
    prompt_n: usage!.prompt_tokens - 3,
    prompt_ms: 1,
    prompt_per_token_ms: expect.any(Number),
    prompt_per_second: 1000 * (usage!.prompt_tokens - 3),
    predicted_n: 3,
    predicted_ms: 1,
    predicted_per_token_ms: 0.5,
    predicted_per_second: 2000,
    draft_n: 8,
    draft_n_accepted: 6,
  });
  expect(timings!.first_token_ms).toBeGreaterThan(0);
  expect(timings!.total_ms).toBeGreaterThan(timings!.first_token_ms!);
  expect(await whole("/v1/chat/completions", { ...chat, timings: false })).not.toHaveProperty("timings");
});

it("are in a stream's last chunk alone, the one with the usage where that is wanted", async () => {
  const plain = await chunks("/v1/chat/completions", { ...chat, n: 2 });
  expect(plain.filter(({ timings }) => timings !== undefined)).toEqual([plain.at(-1)]);
  expect(plain.at(-1)).toMatchObject({ choices: [{ finish_reason: "length" }], timings: { predicted_n: 6 } });
  const counted = await chunks("/v1/chat/completions", { ...chat, stream_options: { include_usage: true } });
  expect(counted.filter(({ timings }) => timings !== undefined)).toEqual([counted.at(-1)]);
  expect(counted.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 3 }, timings: { predicted_n: 3 } });
});

it("are in a response that asked for them, and in the last event of its stream", async () => {
  const body = { model: "tiny", input: "Hi", max_output_tokens: 3, store: false };
  const answer = (await whole("/v1/responses", { ...body, timings: true })) as Body;
  expect(answer.timings).toMatchObject({ predicted_n: 3, cache_n: 3, draft_n: 8 });
  expect(await whole("/v1/responses", body)).not.toHaveProperty("timings");
  const events = (await (await one.post("/v1/responses", { ...body, timings: true, stream: true })).text())
    .split("\n")
    .filter((line) => line.startsWith("data: "))
    .map((line) => JSON.parse(line.slice(6)) as { response?: Body });
  expect(events.filter(({ response }) => response?.timings !== undefined)).toEqual([events.at(-1)]);
  expect(events.at(-1)!.response!.timings).toMatchObject({ predicted_n: 3 });
});

it("add up several prompts' tokens, and have no time a token where there is but one", async () => {
  const body = { model: "tiny", prompt: ["ab", "cde"], max_tokens: 1, timings: true };
  for (const { timings } of [await whole("/v1/completions", body), (await chunks("/v1/completions", body)).at(-1)!]) {
    expect(timings).toMatchObject({ predicted_n: 2, predicted_per_token_ms: null, cache_n: 6, draft_n: 16 });
  }
});
