// The engine in a worker thread and in a child process, as compiled: real carriers, a tiny model on the reference device.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type * as ClientModule from "../../src/engine/client.js";
import type { Port } from "../../src/engine/protocol.js";
import type { GenerateRequest, TokenEvent } from "../../src/engine/types.js";
import type * as ProcessModule from "../../src/host/process.js";
import type * as WorkerModule from "../../src/host/worker.js";
import { plainSampling } from "../../src/session/sampling.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const dist = (path: string) => import(new URL(`../../dist/${path}`, import.meta.url).href);
const { EngineClient } = (await dist("engine/client.js")) as typeof ClientModule;
const { workerCarrier } = (await dist("host/worker.js")) as typeof WorkerModule;
const { processCarrier } = (await dist("host/process.js")) as typeof ProcessModule;

let folder: string;
let path: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-host-"));
  path = join(folder, "tiny.gguf");
  writeTinyLlamaGguf(path, { contextLength: 4096 });
});
afterAll(() => rmSync(folder, { recursive: true }));

const request = (id: string, more: Partial<GenerateRequest> = {}): GenerateRequest => ({
  id,
  promptIds: Int32Array.of(1, 2, 3, 4, 5),
  n: 1,
  sampling: { ...plainSampling, temperature: 0, seed: 2n ** 63n + 1n },
  maxTokens: 8,
  minTokens: 0,
  stopIds: [],
  priority: 0,
  ...more,
});

const open = (carrier: () => Port) =>
  EngineClient.open({ carrier, spec: { path, device: "reference", threads: 1, maxSequences: 4 } });

async function collect(events: AsyncIterable<TokenEvent>): Promise<TokenEvent[]> {
  const all: TokenEvent[] = [];
  for await (const event of events) all.push(event);
  return all;
}
const ids = (events: readonly TokenEvent[]) => events.flatMap((event) => (event.type === "token" ? [event.id] : []));
const finishes = (events: readonly TokenEvent[]) => events.filter((event) => event.type === "finish");

const carriers: [string, () => Port][] = [
  ["worker thread", workerCarrier],
  ["child process", () => processCarrier()],
];
describe.each(carriers)("in a %s", (_, carrier) => {
  test("requests side by side give what each gives alone, in order: start, tokens, finish", async () => {
    const client = await open(carrier);
    const alone = await collect(client.generate(request("a")));
    expect(alone.map(({ type }) => type)).toEqual(["start", ...Array(8).fill("token"), "finish"]);
    const both = await Promise.all([
      collect(client.generate(request("same"))),
      collect(client.generate(request("same", { n: 2, logprobs: 3 }))),
    ]);
    expect(ids(both[0])).toEqual(ids(alone));
    const [first, second] = [0, 1].map((index) =>
      both[1].flatMap((event) => (event.type === "token" && event.index === index ? [event] : [])),
    );
    expect(first.map(({ id }) => id)).toEqual(ids(alone));
    expect(second.map(({ id }) => id)).toEqual(ids(alone));
    expect(first[0].logprobs!.top).toHaveLength(3);
    expect(finishes(both[1])).toHaveLength(2);
    await client.close();
  });

  test("a signal, leaving the loop and close() each end a request with one finish event", async () => {
    const client = await open(carrier);
    const controller = new AbortController();
    const events: TokenEvent[] = [];
    for await (const event of client.generate(request("long", { maxTokens: 3000 }), controller.signal)) {
      events.push(event);
      if (events.length === 5) controller.abort();
    }
    expect(finishes(events)).toMatchObject([{ reason: "abort" }]);

    for await (const event of client.generate(request("left", { maxTokens: 3000 }))) if (event.type === "token") break;
    while ((await client.stats()).running > 0);

    const last = collect(client.generate(request("last", { maxTokens: 3000 })));
    while ((await client.stats()).running === 0);
    await client.close();
    expect(finishes(await last)).toMatchObject([{ reason: "abort" }]);
    expect(finishes(await collect(client.generate(request("late"))))).toMatchObject([{ error: { status: 503 } }]);
  });

  test("what the engine refuses is the request's finish event, with the numbers", async () => {
    const client = await open(carrier);
    const events = await collect(client.generate(request("over", { n: 2, maxTokens: 5000 })));
    expect(events).toMatchObject([
      { type: "finish", index: 0, reason: "error", error: { code: "context_length_exceeded" } },
      { type: "finish", index: 1, reason: "error", error: { message: expect.stringMatching(/5005.*4096/) } },
    ]);
    await client.close();
  });

  test("a file that is no model is a load error in the caller's words", async () => {
    const spec = { path: join(folder, "absent.gguf"), device: "reference" };
    await expect(EngineClient.open({ carrier, spec })).rejects.toMatchObject({ status: 404, code: "model_not_found" });
  });
});

test("SIGKILL of the process in mid-stream: every open request gets error events, and the next request works", async () => {
  const pids: number[] = [];
  const client = await open(() => processCarrier((pid) => pids.push(pid)));
  const whole = ids(await collect(client.generate(request("whole"))));
  const cut = [request("a", { maxTokens: 3000, n: 2 }), request("b", { maxTokens: 3000 })].map((r) =>
    collect(client.generate(r)),
  );
  while ((await client.stats()).running < 3);
  process.kill(pids[0], "SIGKILL");
  const [a, b] = await Promise.all(cut);
  expect(finishes(a)).toMatchObject([{ reason: "error" }, { reason: "error", error: { code: "engine_died" } }]);
  expect(finishes(b)).toMatchObject([{ error: { message: expect.stringContaining("SIGKILL"), status: 503 } }]);
  expect(ids(await collect(client.generate(request("next"))))).toEqual(whole);
  expect(pids).toHaveLength(2);
  await client.close();
});
