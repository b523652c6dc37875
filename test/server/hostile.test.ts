// A server that is sent whatever there is: random requests to every route and hostile ones by hand, on the real engine over
// the null device. Nothing is the server's fault, nothing stays, and others are answered as ever meanwhile.
import { connect } from "node:net";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Limits } from "../../src/device/device.js";
import { NullProgram } from "../../src/device/null/program.js";
import { EngineClient } from "../../src/engine/client.js";
import { runHost } from "../../src/engine/host.js";
import { channel } from "../../src/engine/protocol.js";
import { vocabSize } from "../session/fakes.js";
import { type Rig, rig } from "./support.js";

setFlagsFromString("--expose_gc");
const gc = runInNewContext("gc") as () => void;

let one: Rig;
let engine: EngineClient;

async function nullEngine(): Promise<EngineClient> {
  const limits: Limits = {
    ...{ maxTokens: 512, maxRows: 64, maxSequences: 16, slots: 16, contextLength: 256, memoryBytes: 2 ** 20 },
    ...{ kvDtype: "f32", threads: 1, depth: 2, deterministic: true, adapterSlots: 0, maxPages: 0 },
  };
  const group = { kind: "paged", pageTokens: 4, pageBytes: 16, numPages: 2048 } as const;
  const carrier = () => {
    const [client, host] = channel();
    const program = new NullProgram({ groups: [group], vocabSize, limits });
    const memory = { weights: 0, workspace: 0, cache: 0 };
    const about = {
      contextLength: 256,
      trainedContextLength: 256,
      vocabSize,
      maxSequences: 16,
      device: "null",
      memory,
    };
    void runHost(host, {
      load: async () => ({ program, limits, modelLimits: about, close: () => program.close() }),
      pause: () => new Promise((resolve) => setImmediate(resolve)),
      now: () => performance.now(),
    });
    return client;
  };
  return EngineClient.open({ carrier, spec: {} });
}

beforeAll(async () => {
  engine = await nullEngine();
  one = await rig({ generator: engine, maxWaiting: 512, maxSequences: 16 });
});
afterAll(async () => {
  await one.server.close();
  await engine.close();
});

/** Mulberry32. */
class Dice {
  constructor(private state: number) {}

  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), this.state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
}

const chat = { model: "tiny", messages: [{ role: "user", content: "Hi" }], max_tokens: 8 };
const bodies: Record<string, Record<string, unknown>> = {
  "/v1/chat/completions": chat,
  "/v1/completions": { model: "tiny", prompt: "Hi", max_tokens: 8 },
  "/v1/embeddings": { model: "tiny", input: "Hi" },
  "/v1/messages": chat,
  "/v1/messages/count_tokens": { model: "tiny", messages: chat.messages },
  "/api/chat": { ...chat, max_tokens: undefined, options: { num_predict: 8 } },
  "/api/generate": { model: "tiny", prompt: "Hi", options: { num_predict: 8 } },
  "/api/embed": { model: "tiny", input: "Hi" },
  "/api/show": { model: "tiny" },
  "/generate": { inputs: "Hi", parameters: { max_new_tokens: 8 } },
  "/generate_stream": { inputs: "Hi", parameters: { max_new_tokens: 8 } },
  "/": { inputs: "Hi", parameters: { max_new_tokens: 8 } },
  "/invocations": { inputs: "Hi", parameters: { max_new_tokens: 8 } },
  "/tokenize": { inputs: "Hi" },
  "/chat_tokenize": { messages: chat.messages },
  "/detokenize": { tokens: [72, 105] },
};
const fields = (
  "messages prompt inputs parameters input model system options format tools tool_choice response_format structured_outputs n " +
  "best_of stop stop_sequences logprobs top_logprobs max_tokens min_tokens stream seed logit_bias echo temperature top_p top_k " +
  "stop_token_ids chat_template_kwargs stream_options priority cache_salt timeout keep_alive think thinking metadata raw " +
  "suffix truncate dimensions __proto__ constructor toString"
).split(" ");

const nested = (depth: number) => JSON.parse(`${"[".repeat(depth)}${"]".repeat(depth)}`) as unknown;
const values: readonly unknown[] = [
  ...[null, true, false, 0, -0, -1, 1, 0.5, 2 ** 31, 2 ** 53, -(2 ** 63), 1e308, 5e-324, 1e21],
  ...[
    "",
    " ",
    "tiny",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "a\u0301\u202e",
    "👩‍👩‍👧‍👦".repeat(20),
    "</s><s>[INST]<|im_start|>system",
    "x".repeat(5000),
  ],
  ...[[], {}, [[]], [{}], [null], [1, "a", null], { a: { b: { c: {} } } }, nested(60)],
  ...[
    { type: "json_schema" },
    { type: "regex", value: "(" },
    { role: "user", content: 1 },
    [{ role: "user", content: "x" }],
  ],
  ...[{ "0": 1e9 }, { "-1": 1 }, { toString: 1 }, { type: "function", function: { name: "x", parameters: {} } }],
];

interface Sent {
  readonly what: string;
  readonly status: number;
  readonly text: string;
}

async function send(path: string, body: string, headers: Record<string, string> = {}): Promise<Sent> {
  const answer = await one.post(path, body, headers);
  return { what: `${path} ${body.slice(0, 300)}`, status: answer.status, text: await answer.text() };
}

function judge({ what, status, text }: Sent): void {
  // 424 is how TGI spells what its model could not do; here nothing fails.
  expect(status, `${what}\n${text.slice(0, 500)}`).toBeLessThan(500);
  expect(status, what).not.toBe(424);
  expect(text, what).not.toMatch(/internal_error|RangeError|TypeError|node:internal|\.ts:\d/);
  if (status >= 400) expect(text, what).toMatch(/"(message|error)":/);
}

async function randomRequest(dice: Dice): Promise<void> {
  const path = dice.pick(Object.keys(bodies));
  const body: Record<string, unknown> = dice.chance(85) ? { ...bodies[path] } : {};
  for (let changes = dice.below(4); changes > 0; changes--) {
    const value = dice.pick(values);
    const name = dice.pick(fields);
    if (dice.chance(20) && typeof body.parameters === "object") {
      body.parameters = { ...(body.parameters as object), [dice.pick(fields)]: value };
    } else Object.defineProperty(body, name, { value, enumerable: true, configurable: true, writable: true });
  }
  let text = JSON.stringify(body);
  if (dice.chance(5)) text = text.slice(0, dice.below(text.length));
  if (dice.chance(5)) text = text.replace(/\d/, "1e999");
  const headers: Record<string, string> = dice.chance(5)
    ? { "content-type": dice.pick(["text/plain", "x", "application/xml"]) }
    : {};
  judge(await send(path, text, headers));
}

/** What comes back on a connection that gets these bytes, until it ends or is silent. */
function raw(bytes: string | Buffer, half: boolean): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(one.server.port, "127.0.0.1");
    let text = "";
    // Those that ask for it are closed by the server, however long it takes.
    socket.setTimeout(bytes.includes("Connection: close") ? 20_000 : 300, () => socket.destroy());
    socket.on("data", (data) => {
      text += data.toString("latin1");
    });
    socket.on("error", () => {});
    socket.on("close", () => resolve(text));
    socket.write(bytes, () => half && socket.destroy());
  });
}

const request = (body: string, path = "/v1/chat/completions", more = "") =>
  `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n${more}` +
  `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`;

const deep = (depth: number, open: string, close: string) => `${open.repeat(depth)}1${close.repeat(depth)}`;
const schema = (value: unknown) =>
  JSON.stringify({ ...chat, response_format: { type: "json_schema", json_schema: { name: "x", schema: value } } });
const regex = (pattern: string) => JSON.stringify({ ...chat, structured_outputs: { regex: pattern } });

/** Bodies of /v1/chat/completions. */
const hostileBodies: readonly string[] = [
  ...[100, 1000, 100_000, 1_000_000].flatMap((depth) => [
    deep(depth, "[", "]"),
    `{"model":"tiny","messages":${deep(depth, "[", "]")}}`,
    `{"model":"tiny","metadata":${deep(depth, '{"a":', "}")}}`,
    `{"model":"tiny","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":${deep(depth, '{"items":', "}").replace("1", "{}")}}}}`,
    `{"model":"tiny","messages":[{"role":"user","content":"x"}],"chat_template_kwargs":${deep(depth, '{"a":', "}")}}`,
    `{"model":"tiny","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":${deep(depth, '{"not":', "}").replace("1", "{}")}}}]}`,
  ]),
  ...["1e999", "-1e999", "9".repeat(400), `0.${"0".repeat(400)}1`, "NaN", "Infinity", "0x10", "01"].flatMap(
    (number) => [
      `{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":${number}}`,
      `{"model":"tiny","messages":[{"role":"user","content":"x"}],"seed":${number},"max_tokens":4}`,
      `{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":${number},"max_tokens":4}`,
    ],
  ),
  JSON.stringify({ ...chat, n: 129 }),
  JSON.stringify({ ...chat, stop: new Array(65).fill("x") }),
  JSON.stringify({ ...chat, stop: "x".repeat(1_000_000) }),
  JSON.stringify({ ...chat, stop: new Array(64).fill("x".repeat(50_000)) }),
  JSON.stringify({ ...chat, messages: new Array(100_000).fill({ role: "user", content: "" }) }),
  JSON.stringify({ ...chat, messages: [{ role: "user", content: "a".repeat(4_000_000) }] }),
  JSON.stringify({ ...chat, messages: [{ role: "user", content: "\u0000\ufffe\u200f".repeat(50) }] }),
  JSON.stringify({ ...chat, logit_bias: Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [i, 1])) }),
  JSON.stringify({ ...chat, tools: new Array(129).fill({ type: "function", function: { name: "f" } }) }),
  ...[100, 100_000].map((depth) =>
    JSON.stringify({
      ...chat,
      messages: [
        { role: "user", content: "x" },
        {
          role: "assistant",
          tool_calls: [{ id: "1", type: "function", function: { name: "f", arguments: deep(depth, "[", "]") } }],
        },
        { role: "tool", tool_call_id: "1", content: deep(depth, '{"a":', "}") },
      ],
    }),
  ),
  JSON.stringify({ ...chat, model: "../../../etc/passwd" }),
  JSON.stringify({ ...chat, model: "http://127.0.0.1:1/model.gguf" }),
  JSON.stringify({ ...chat, model: "tiny\0" }),
  `{"model":"tiny","model":"other","messages":[]}`,
  `{"__proto__":{"model":"tiny"},"messages":[{"role":"user","content":"x"}]}`,
  `{"constructor":{"prototype":{"x":1}},"model":"tiny","messages":[{"role":"user","content":"x"}]}`,
  "﻿{}",
  "null",
  '"',
  "{}{}",
  "",
  // Schemas and patterns that would take for ever, or fetch.
  schema({ $ref: "http://127.0.0.1:1/schema.json" }),
  schema({ $ref: "file:///etc/passwd" }),
  schema({ $ref: "#" }),
  schema({ $ref: "#/$defs/a", $defs: { a: { $ref: "#/$defs/b" }, b: { $ref: "#/$defs/a" } } }),
  schema({ enum: Array.from({ length: 100_000 }, (_, i) => `value ${i}`) }),
  schema({ type: "array", minItems: 1e9 }),
  schema({ type: "string", minLength: 1e9, maxLength: 2e9 }),
  schema({ type: "integer", minimum: 1e300, maximum: 1e308 }),
  schema({ type: "object", properties: Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`p${i}`, {}])) }),
  schema({ anyOf: new Array(5000).fill({ type: "object", properties: { a: { anyOf: new Array(20).fill({}) } } }) }),
  schema({ type: "string", pattern: "(a+)+$" }),
  schema({ type: "string", pattern: "(?=a)(?<!b)\\1" }),
  schema({ type: 5 }),
  ...[
    "(a+)+$",
    "(a|a)*b",
    "a{1,1000000000}",
    "((a{1,1000}){1,1000}){1,1000}",
    "(",
    "[z-a]",
    "\\",
    "(?:",
    "a**",
    "[",
    "\\u{110000}",
  ].map(regex),
  regex("(".repeat(100_000)),
  regex("a".repeat(1_000_000)),
  regex(`${"(".repeat(5000)}a${")".repeat(5000)}`),
  regex("(a?){200}a{200}"),
  JSON.stringify({ ...chat, structured_outputs: { grammar: "root ::= root" } }),
  JSON.stringify({ ...chat, structured_outputs: { grammar: "root ::= ".repeat(10_000) } }),
  JSON.stringify({ ...chat, structured_outputs: { grammar: `root ::= ${"(".repeat(50_000)}` } }),
  JSON.stringify({ ...chat, structured_outputs: { choice: new Array(100_000).fill("x") } }),
  JSON.stringify({ ...chat, structured_outputs: { choice: [] } }),
];

/** Whole conversations on a socket. */
const hostileBytes: readonly (string | Buffer)[] = [
  "\r\n\r\n\r\n",
  "GET\r\n\r\n",
  "GET / HTTP/9.9\r\n\r\n",
  "BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "PROPFIND / HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "GET http://example.com/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "GET / HTTP/1.1\r\n\r\n",
  "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
  `GET /${"a".repeat(20_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`,
  `GET /v1/models?${"a=1&".repeat(3000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`,
  `GET / HTTP/1.1\r\nHost: localhost\r\n${"X-Flood: aaaaaaaaaaaaaaaa\r\n".repeat(5000)}\r\n`,
  `GET / HTTP/1.1\r\nHost: localhost\r\n${Array.from({ length: 1900 }, (_, i) => `a${i}:b\r\n`).join("")}\r\n`,
  `GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ${"a".repeat(100_000)}\r\n\r\n`,
  "GET / HTTP/1.1\r\nHost: localhost\r\nX-Nul: a\0b\r\n\r\n",
  "GET / HTTP/1.1\r\nHost: localhost\r\nx-request-id: \u00ff\u00ff\r\n\r\n",
  "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n{",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n{}",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nffffffff\r\n{}",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: nothing\r\nContent-Length: 2\r\n\r\n{}",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json; charset=utf-16\r\nContent-Length: 2\r\n\r\n{}",
  "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
  "GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "GET /%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
  "HEAD /api/blobs/sha256:../../x HTTP/1.1\r\nHost: localhost\r\n\r\n",
  Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]),
  Buffer.alloc(100_000, 0xff),
];

/** Asks the same again and again until it is told to stop: every answer is the first one's. */
async function bystander(stopped: () => boolean): Promise<number> {
  const body = {
    ...chat,
    messages: [{ role: "user", content: "What is the same every time?" }],
    seed: 1,
    max_tokens: 24,
    ignore_eos: true,
  };
  const ask = async () => {
    const answer = await one.post("/v1/chat/completions", { ...body, return_token_ids: true });
    const { choices } = (await answer.json()) as { choices: { token_ids: number[] }[] };
    return choices[0].token_ids.join();
  };
  const first = await ask();
  expect(first.split(",").length).toBe(24);
  let asked = 1;
  for (; !stopped(); asked++) expect(await ask()).toBe(first);
  return asked;
}

async function settled() {
  for (let i = 0; ; i++) {
    const { running, waiting, pages } = await engine.stats();
    const used = pages.reduce((sum, page) => sum + page.used, 0);
    if (running + waiting + used === 0) break;
    if (i > 400) throw new Error(`${running} running, ${waiting} waiting, ${used} pages in use`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await new Promise((resolve) => setTimeout(resolve, 100));
  gc();
  const handles = process.getActiveResourcesInfo().filter((name) => name !== "Timeout" && name !== "Immediate").length;
  return { heap: process.memoryUsage().heapUsed, handles };
}

/** So many at a time. */
async function each<T>(items: readonly T[], width: number, work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: width }, worker));
}

describe("a server that is sent anything", () => {
  it("answers 1,000 random requests without a fault of its own, and nothing stays", async () => {
    const dice = new Dice(7);
    const round = (count: number) =>
      each(
        Array.from({ length: count }, () => dice),
        8,
        randomRequest,
      );
    await round(300);
    const before = await settled();
    let done = false;
    const same = bystander(() => done);
    const [asked] = await Promise.all([same, round(1000).finally(() => (done = true))]);
    expect(asked).toBeGreaterThan(3);
    const after = await settled();
    expect(after.heap - before.heap).toBeLessThan(12e6);
    expect(after.handles - before.handles).toBeLessThan(12);
  }, 120_000);

  it("answers 200 hostile requests likewise", async () => {
    const cut = hostileBodies.slice(0, 20).map((body) => request(body).slice(0, -20));
    const sent = [
      ...hostileBodies.map((body) => ({ bytes: request(body) as string | Buffer, half: false })),
      ...hostileBytes.map((bytes) => ({ bytes, half: false })),
      ...cut.map((bytes) => ({ bytes: bytes as string | Buffer, half: true })),
      ...Array.from({ length: 20 }, () => ({
        bytes: request(JSON.stringify({ ...chat, stream: true, max_tokens: 200, ignore_eos: true })) as string | Buffer,
        half: true,
      })),
    ];
    while (sent.length < 200)
      sent.push({ bytes: request(hostileBodies[sent.length % 24], "/v1/messages"), half: false });
    // The first time for what is kept on purpose: compiled code, caches.
    await each(sent, 4, async ({ bytes, half }) => void (await raw(bytes, half)));
    const before = await settled();
    let done = false;
    const same = bystander(() => done);
    const served = each(sent, 4, async ({ bytes, half }) => {
      const text = await raw(bytes, half);
      const what = bytes.toString().slice(0, 400);
      expect(text, what).not.toMatch(/^HTTP\/1\.1 5|internal_error|RangeError|TypeError|node:internal/);
      if (text.startsWith("HTTP/1.1 4")) expect(text, what).toMatch(/"error"|^HTTP\/1\.1 4\d\d [^\r]*\r\n[^{]*$/);
    }).finally(() => (done = true));
    const [asked] = await Promise.all([same, served]);
    expect(asked).toBeGreaterThan(1);
    const after = await settled();
    expect(after.heap - before.heap).toBeLessThan(16e6);
    expect(after.handles - before.handles).toBeLessThan(12);
  }, 120_000);
});
