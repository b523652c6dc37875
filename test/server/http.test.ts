// What surrounds the routes: refusals in OpenAI's shape, keys, limits, clients that go away or read slowly, and the end.
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import fc from "fast-check";
import OpenAI from "openai";
import { afterEach, describe, expect, it } from "vitest";
import { listen } from "../../src/server/app.js";
import { letters } from "../session/fakes.js";
import { fixed, type Rig, type RigOptions, rig, until } from "./support.js";

const open: Rig[] = [];
const start = async (options?: RigOptions) => {
  const one = await rig(options);
  open.push(one);
  return one;
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

const messages = [{ role: "user" as const, content: "Hi" }];
const chat = { model: "tiny", messages };
const long = { script: letters, contextLength: 1 << 20 };

async function errorOf(answer: Response) {
  const { error } = (await answer.json()) as {
    error: { message: string; type: string; param: string | null; code: string };
  };
  expect(Object.keys(error)).toEqual(["message", "type", "param", "code"]);
  return error;
}

describe("refusals", () => {
  it("of bad JSON, an empty body, a wrong type, no object", async () => {
    const { post, server } = await start();
    const path = "/v1/chat/completions";
    const bad = await post(path, '{"model": ');
    expect([bad.status, (await errorOf(bad)).code]).toEqual([400, "invalid_json"]);
    const empty = await post(path, "");
    expect([empty.status, (await errorOf(empty)).code]).toEqual([400, "invalid_json"]);
    const text = await post(path, "{}", { "content-type": "text/plain" });
    expect([text.status, (await errorOf(text)).code]).toEqual([415, "unsupported_media_type"]);
    const list = await post(path, "[]");
    expect([list.status, (await errorOf(list)).message]).toEqual([400, "The body must be a JSON object."]);
    const prototype = await post(path, '{"__proto__": {"model": "tiny"}}');
    expect(prototype.status).toBe(400);
    const none = await fetch(server.url + path, { method: "POST" });
    expect([none.status, (await errorOf(none)).type]).toEqual([400, "invalid_request_error"]);
  });

  it("of a body that is too large", async () => {
    const { post } = await start({ maxBodyBytes: 1000 });
    const answer = await post("/v1/chat/completions", { ...chat, user: "x".repeat(2000) });
    expect([answer.status, (await errorOf(answer)).code]).toEqual([413, "body_too_large"]);
  });

  it("of unknown paths and wrong methods", async () => {
    const { server } = await start();
    const missing = await fetch(`${server.url}/v1/nothing?x=1`);
    expect([missing.status, (await errorOf(missing)).code]).toEqual([404, "not_found"]);
    const method = await fetch(`${server.url}/v1/chat/completions`);
    expect([method.status, method.headers.get("allow")]).toEqual([405, "POST"]);
    expect((await errorOf(method)).code).toBe("method_not_allowed");
    const remove = await fetch(`${server.url}/v1/models/tiny`, { method: "DELETE" });
    expect([remove.status, remove.headers.get("allow")]).toEqual([405, "GET"]);
    const broken = await fetch(`${server.url}/v1/models/%ff`);
    expect([broken.status, (await errorOf(broken)).code]).toEqual([400, "invalid_request"]);
  });
});

describe("what is not a request", () => {
  it("is answered in the same shape", async () => {
    const { server } = await start();
    const answer = await new Promise<string>((resolve, reject) => {
      let text = "";
      const socket = connect(server.port, "127.0.0.1", () => socket.write("NOT HTTP AT ALL\r\n\r\n"));
      socket
        .on("data", (data) => (text += data))
        .on("end", () => resolve(text))
        .on("error", reject);
    });
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(JSON.parse(answer.split("\r\n\r\n")[1])).toMatchObject({ error: { type: "invalid_request_error" } });
  });

  it("is never the server's fault, whatever JSON comes", async () => {
    const { post } = await start();
    const value = fc.oneof(
      fc.jsonValue({ maxDepth: 2 }),
      fc.constantFrom<unknown>(0, -1, 1, 1e308, "", "tiny", true, null, [], {}, [[]], [{}], "\ud800"),
    );
    const fields = [
      "prompt",
      "messages",
      "n",
      "stop",
      "logprobs",
      "max_tokens",
      "stream",
      "seed",
      "logit_bias",
      "echo",
    ];
    const more = [
      "temperature",
      "top_p",
      "stop_token_ids",
      "tools",
      "chat_template_kwargs",
      "stream_options",
      "__proto__",
    ];
    const body = fc.tuple(
      fc.constantFrom("/v1/completions", "/v1/chat/completions"),
      fc.boolean(),
      fc.dictionary(fc.constantFrom(...fields, ...more), value, { maxKeys: 3 }),
    );
    await fc.assert(
      fc.asyncProperty(body, async ([path, valid, changes]) => {
        const base = !valid ? {} : path.includes("chat") ? chat : { model: "tiny", prompt: "a" };
        const answer = await post(path, { ...base, ...changes });
        expect([200, 400]).toContain(answer.status);
        const text = await answer.text();
        if (answer.status === 400) expect(JSON.parse(text).error.message).toMatch(/./);
        expect(text).not.toMatch(/internal_error/);
      }),
      { numRuns: 300 },
    );
  });
});

describe("request ids and origins", () => {
  it("gives every answer an id, the caller's where it sent one", async () => {
    const { post, server } = await start();
    const named = await post("/v1/chat/completions", chat, { "x-request-id": "abc-1" });
    expect(named.headers.get("x-request-id")).toBe("abc-1");
    const streamed = await post("/v1/chat/completions", { ...chat, stream: true }, { "x-request-id": "abc-2" });
    expect(streamed.headers.get("x-request-id")).toBe("abc-2");
    expect(streamed.headers.get("content-type")).toMatch(/^text\/event-stream/);
    await streamed.text();
    const unnamed = await fetch(`${server.url}/nothing`);
    expect(unnamed.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
    expect(unnamed.headers.get("access-control-allow-origin")).toBeNull();
  });

  it("without a key answers only names of this machine", async () => {
    const { server } = await start();
    const status = (host: string) =>
      new Promise<number>((resolve, reject) => {
        httpRequest({ port: server.port, path: "/v1/models", headers: { host } }, (answer) => {
          answer.resume();
          resolve(answer.statusCode!);
        })
          .on("error", reject)
          .end();
      });
    expect(await status("evil.example")).toBe(403);
    expect(await status("localhost:1")).toBe(200);
    expect(await status("[::1]:80")).toBe(200);
  });
});

describe("API keys", () => {
  it("are needed where set, except for /health", async () => {
    const { server, client } = await start({ apiKeys: ["one", "two"] });
    await expect(client.models.list()).rejects.toMatchObject({ status: 401, code: "invalid_api_key" });
    const right = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "two", maxRetries: 0 });
    expect((await right.models.list()).data.length).toBe(1);
    const none = await fetch(`${server.url}/v1/models`);
    expect([none.status, none.headers.get("www-authenticate")]).toEqual([401, "Bearer"]);
    expect((await errorOf(none)).message).toMatch(/Authorization: Bearer/);
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
  });

  it("are needed before another address than this machine's is served", async () => {
    await expect(listen(fixed(), null, { host: "0.0.0.0", port: 0 })).rejects.toThrow(/--api-key/);
    await expect(listen(fixed(), null, { host: "::", port: 0 })).rejects.toThrow(/API key/);
    await expect(listen(fixed(), null, { host: "0.0.0.0", port: 0, apiKeys: [""] })).rejects.toThrow(/empty/);
  });

  it("and a port that is taken is said so", async () => {
    const { server } = await start();
    await expect(listen(fixed(), null, { port: server.port })).rejects.toThrow(/port \d+ is taken/);
  });
});

describe("limits", () => {
  it("answers 429 with Retry-After when too much waits, and serves again afterwards", async () => {
    const { client, engine, post } = await start({ ...long, maxSequences: 1, maxWaiting: 1 });
    engine.paused = true;
    const first = client.chat.completions.create({ ...chat, max_tokens: 2 });
    const second = client.chat.completions.create({ ...chat, max_tokens: 2 });
    await until(() => engine.running === 2);
    const third = await post("/v1/chat/completions", chat);
    expect(third.status).toBe(429);
    expect(Number(third.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    expect(await errorOf(third)).toMatchObject({ type: "rate_limit_error", code: "queue_full" });
    const many = await post("/v1/chat/completions", { ...chat, n: 3 });
    expect([many.status, (await errorOf(many)).code]).toEqual([400, "too_many_choices"]);
    engine.paused = false;
    await Promise.all([first, second]);
    expect((await post("/v1/chat/completions", { ...chat, max_tokens: 2 })).status).toBe(200);
  });
});

describe("clients", () => {
  it("that go away free their places, streaming or not", async () => {
    const { client, engine, server } = await start(long);
    engine.pace = 2;
    const stream = await client.chat.completions.create({ ...chat, stream: true });
    for await (const _ of stream) break;
    await until(() => engine.running === 0);
    const aborter = new AbortController();
    const whole = client.chat.completions.create(chat, { signal: aborter.signal });
    const outcome = expect(whole).rejects.toThrow(/abort/i);
    await until(() => engine.running === 1);
    aborter.abort();
    await outcome;
    await until(() => engine.running === 0);
    const health = (await (await fetch(`${server.url}/health`)).json()) as { models: unknown };
    expect(health.models).toMatchObject([{ id: "tiny", running: 0, waiting: 0 }]);
  });

  it("get comments while nothing comes", async () => {
    const { engine, post } = await start({ keepAliveMs: 20 });
    engine.paused = true;
    void until(() => engine.running > 0).then(() => setTimeout(() => (engine.paused = false), 150));
    const text = await (await post("/v1/chat/completions", { ...chat, stream: true })).text();
    expect(text).toMatch(/^: keep-alive\n\n/);
    expect(text.match(/: keep-alive\n\n/g)!.length).toBeGreaterThan(2);
    expect(text.endsWith("data: [DONE]\n\n")).toBe(true);
  });

  it("that do not read are cut off", async () => {
    const { engine, server } = await start({ ...long, slowReaderMs: 100 });
    const body = JSON.stringify({ ...chat, stream: true, n: 4, logprobs: true, top_logprobs: 20 });
    const socket = connect(server.port, "127.0.0.1");
    socket.on("error", () => {});
    socket.pause();
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n` +
        `Content-Length: ${body.length}\r\n\r\n${body}`,
    );
    await until(() => engine.running === 1);
    await until(() => engine.running === 0, 20_000);
    socket.destroy();
  });
});

describe("deadlines", () => {
  const late = { status: 504, code: "deadline_exceeded" };

  it("end an answer, whole or streamed, and free its place", async () => {
    const { engine, post } = await start(long);
    engine.pace = 5;
    const whole = await post("/v1/chat/completions", { ...chat, timeout: 0.1 });
    expect(whole.status).toBe(504);
    expect(await errorOf(whole)).toMatchObject({ code: "deadline_exceeded" });
    const streamed = await post(
      "/v1/completions",
      { model: "tiny", prompt: "a", max_tokens: 9999, stream: true },
      { "x-request-timeout": "0.1" },
    );
    expect(streamed.status).toBe(200);
    expect(await streamed.text()).toMatch(/"choices".*"code":"deadline_exceeded".*\[DONE\]/s);
    for (const [path, body] of [
      ["/v1/messages", { ...chat, max_tokens: 9999 }],
      ["/api/chat", { ...chat, stream: false }],
      ["/generate", { inputs: "a" }],
    ] as const) {
      const answer = await post(path, body, { "x-request-timeout": "0.1" });
      expect([path, answer.status]).toEqual([path, path === "/generate" ? 424 : late.status]);
      expect(await answer.text()).toContain("not answered within its 0.1 s");
    }
    await until(() => engine.running === 0);
  });

  it("that are none are refused", async () => {
    const { post } = await start();
    for (const given of ["soon", "-1", "0", "NaN", ""]) {
      const answer = await post("/v1/chat/completions", chat, { "x-request-timeout": given });
      expect(answer.status, given).toBe(400);
    }
    expect(await errorOf(await post("/v1/chat/completions", { ...chat, timeout: 0 }))).toMatchObject({
      param: "timeout",
    });
    expect((await post("/v1/chat/completions", { ...chat, timeout: 60 })).status).toBe(200);
  });
});

describe("closing", () => {
  it("lets open requests end, refuses new ones, then cuts off what lasts too long", async () => {
    const { engine, server, post, client } = await start({ ...long, drainMs: 300 });
    engine.pace = 2;
    const short = client.chat.completions.create({ ...chat, max_tokens: 20 });
    const endless = await post("/v1/chat/completions", { ...chat, stream: true });
    const endlessText = endless.text();
    await until(() => engine.running === 2);
    const closed = server.close();
    expect((await short).choices[0].finish_reason).toBe("length");
    const text = await endlessText;
    expect(text).toMatch(/"code":"shutting_down"/);
    await closed;
    await expect(fetch(`${server.url}/health`)).rejects.toThrow();
    expect(engine.running).toBe(0);
  });
});
