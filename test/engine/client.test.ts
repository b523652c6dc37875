import { describe, expect, it } from "vitest";
import { UserError } from "../../src/base/errors.js";
import { EngineClient } from "../../src/engine/client.js";
import { runHost } from "../../src/engine/host.js";
import { channel, type Port } from "../../src/engine/protocol.js";
import type { GenerateRequest, TokenEvent } from "../../src/engine/types.js";
import { ids, request, vocabSize, World } from "./harness.js";

/** A client whose hosts run the null device in this thread; `hosts` are their ends, newest last. */
async function open(
  o: { fault?: (host: number, step: number) => "reject" | undefined; fail?: boolean; now?: () => number } = {},
) {
  const hosts: Port[] = [];
  const carrier = () => {
    const [client, host] = channel();
    hosts.push(host);
    const number = hosts.length - 1;
    void runHost(host, {
      load: async (spec, onProgress) => {
        if (o.fail) throw new UserError("no such model", { status: 404, code: "model_not_found" });
        onProgress(1, 2);
        expect(spec).toEqual({ model: "null" });
        const { program, limits } = new World({ fault: (step) => o.fault?.(number, step) });
        const { contextLength, maxSequences } = limits;
        const memory = { weights: 0, workspace: 0, cache: 0 };
        const modelLimits = {
          contextLength,
          trainedContextLength: 99,
          vocabSize,
          maxSequences,
          device: "null",
          memory,
        };
        return { program, limits, modelLimits, close: () => program.close() };
      },
      pause: () => new Promise((resolve) => setImmediate(resolve)),
      now: () => performance.now(),
    });
    return client;
  };
  const progress: number[] = [];
  const client = await EngineClient.open({
    carrier,
    now: o.now,
    spec: { model: "null" },
    onProgress: (done) => progress.push(done),
  });
  return { client, hosts, progress };
}

async function all(events: AsyncIterable<TokenEvent>): Promise<TokenEvent[]> {
  const list: TokenEvent[] = [];
  for await (const event of events) list.push(event);
  return list;
}

const tokensOf = (events: readonly TokenEvent[], index = 0) =>
  events.flatMap((event) => (event.type === "token" && event.index === index ? [event.id] : []));

async function alone(r: GenerateRequest): Promise<number[]> {
  const world = new World();
  world.submit(r);
  await world.finish();
  return world.tokens(r.id);
}

const finishesOf = (events: readonly TokenEvent[]) => events.filter((event) => event.type === "finish");

describe("the engine's client", () => {
  it("loads, reports progress and limits, and streams what the engine gives", async () => {
    const { client, progress } = await open();
    expect(progress).toEqual([1]);
    expect(client.limits.trainedContextLength).toBe(99);
    const r = request("a", ids(9), { n: 2, logprobs: 2, promptLogprobs: 1 });
    const events = await all(client.generate(r));
    const world = new World();
    world.submit(r);
    await world.finish();
    expect(events[0]).toEqual({ type: "start", ...world.of("a").starts[0] });
    for (const index of [0, 1]) {
      expect(tokensOf(events, index)).toEqual(world.tokens("a", index));
      const logprobs = events.flatMap((e) => (e.type === "token" && e.index === index ? [e.logprobs] : []));
      expect(logprobs).toEqual(world.of("a").choices[index].logprobs);
    }
    expect(finishesOf(events)).toHaveLength(2);
    expect((await client.stats()).generatedTokens).toBe(16);
    await client.close();
  });

  it("keeps the events of a slow reader", async () => {
    const { client } = await open();
    const r = request("slow", ids(5), { maxTokens: 60 });
    const events = client.generate(r);
    const first = await events.next();
    await all(client.generate(request("fast", ids(6), { maxTokens: 80 })));
    expect(first.value).toMatchObject({ type: "start" });
    expect(tokensOf(await all(events))).toEqual(await alone(r));
    await client.close();
  });

  it("aborts by signal, by id, and when the reader leaves", async () => {
    const { client } = await open();
    const aborted = new AbortController();
    aborted.abort();
    const before = await all(client.generate(request("before", ids(5)), aborted.signal));
    expect(finishesOf(before)).toMatchObject([{ reason: "abort" }]);
    const later = new AbortController();
    const seen: TokenEvent[] = [];
    for await (const event of client.generate(request("later", ids(5), { maxTokens: 100 }), later.signal)) {
      seen.push(event);
      if (event.type === "token") later.abort();
    }
    expect(finishesOf(seen)).toMatchObject([{ reason: "abort" }]);
    const half = all(client.generate(request("half", ids(7), { n: 2, maxTokens: 50 })));
    await Promise.resolve(); // submitted at the first next()
    client.abort("half", 1);
    expect(finishesOf(await half)).toMatchObject([
      { index: 1, reason: "abort" },
      { index: 0, reason: "length" },
    ]);
    for await (const event of client.generate(request("left", ids(5), { maxTokens: 100 }))) {
      if (event.type === "token") break;
    }
    await all(client.generate(request("last", ids(4))));
    expect(await client.stats()).toMatchObject({ running: 0, waiting: 0 });
    await client.close();
  });

  it("gives an error event for a request that the engine refuses", async () => {
    const { client } = await open();
    const events = await all(client.generate(request("long", ids(100), { maxTokens: 100, n: 2 })));
    expect(events).toMatchObject([
      { type: "finish", index: 0, reason: "error", error: { status: 400, code: "context_length_exceeded" } },
      { type: "finish", index: 1, reason: "error" },
    ]);
    await client.close();
  });

  it("ends open requests with errors when the host dies, and starts another for the next", async () => {
    const { client, hosts } = await open();
    const open1 = client.generate(request("one", ids(5), { maxTokens: 100, n: 2 }));
    const open2 = all(client.generate(request("two", ids(6), { maxTokens: 100 })));
    for await (const event of open1) if (event.type === "token") break;
    const open3 = all(client.generate(request("three", ids(6), { maxTokens: 100 })));
    await Promise.resolve(); // submitted, and nothing of it has come
    hosts[0].close();
    for (const events of [open2, open3]) {
      expect(finishesOf(await events)).toMatchObject([{ reason: "error", error: { code: "engine_died" } }]);
    }
    const r = request("four", ids(7));
    expect(tokensOf(await all(client.generate(r)))).toEqual(await alone(r));
    expect(hosts).toHaveLength(2);
    await client.close();
  });

  it("gives a host that dies without an answer ever more time, and tells callers how long", async () => {
    let now = 0;
    const { client, hosts } = await open({ now: () => now });
    const ask = async (id: string) => (await all(client.generate(request(id, ids(7)))))[0];
    hosts[0].close();
    await new Promise((resolve) => setImmediate(resolve));
    const dying = all(client.generate(request("again", ids(7), { maxTokens: 100 })));
    while (hosts.length < 2) await new Promise((resolve) => setImmediate(resolve));
    hosts[1].close();
    expect(finishesOf(await dying)).toMatchObject([{ error: { code: "engine_died", retryAfter: 1 } }]);
    expect(await ask("soon")).toMatchObject({
      reason: "error",
      error: { status: 503, code: "engine_restarting", retryAfter: 2 },
    });
    expect(hosts).toHaveLength(2);
    now += 1000;
    expect(await ask("later")).toMatchObject({ type: "start" });
    expect(hosts).toHaveLength(3);
    // It answered: its death is forgiven.
    hosts[2].close();
    await new Promise((resolve) => setImmediate(resolve));
    expect(await ask("last")).toMatchObject({ type: "start" });
    await client.close();
  });

  it("goes on after a fault of the device, whose requests end with errors", async () => {
    const { client } = await open({ fault: (_, step) => (step === 3 ? "reject" : undefined) });
    const events = await all(client.generate(request("one", ids(5), { maxTokens: 20 })));
    expect(finishesOf(events)).toMatchObject([{ reason: "error", error: { code: "device_error", status: 500 } }]);
    const r = request("two", ids(5));
    const again = await all(client.generate(r));
    expect(tokensOf(again)).toEqual(await alone(r));
    expect(again[0]).toMatchObject({ type: "start", cachedTokens: 0 });
    await client.close();
  });

  it("says why a model cannot be loaded", async () => {
    await expect(open({ fail: true })).rejects.toMatchObject({ status: 404, code: "model_not_found" });
  });

  it("ends a host that is taking the place of a dead one when it is closed meanwhile", async () => {
    const { client, hosts } = await open();
    hosts[0].close();
    await new Promise((resolve) => setImmediate(resolve));
    expect(client.alive).toBe(false);
    const answer = all(client.generate(request("late", ids(5))));
    await client.close();
    await answer;
    expect(hosts).toHaveLength(2);
    expect(client.alive).toBe(false);
  });

  it("ends what is open when it is closed", async () => {
    const { client } = await open();
    const events = all(client.generate(request("a", ids(5), { maxTokens: 100 })));
    await Promise.resolve(); // submitted
    await client.close();
    expect(finishesOf(await events)).toMatchObject([{ reason: "abort" }]);
    const late = await all(client.generate(request("b", ids(5))));
    expect(late).toMatchObject([{ type: "finish", reason: "error", error: { status: 503, code: "model_closed" } }]);
  });
});
