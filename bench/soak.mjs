// Owns: the soak: mixed requests by several APIs, callers that go away, deadlines, requests that are wrong, and an engine that
// is killed again and again, for as long as one likes. Every request must end with exactly one answer or one error, and
// the server's memory, files and pages must stay where they are. Prints one JSON object; exits with 1 where that is not so.
//
//   node bench/soak.mjs --model MODEL.gguf [--minutes 30] [--callers 12] [--kill 20] [--seed 1]
//
// --kill: seconds between two kills, on average; 0: none.
import { fork } from "node:child_process";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const self = fileURLToPath(import.meta.url);
const { values: flags } = parseArgs({
  options: {
    role: { type: "string", default: "callers" },
    model: { type: "string" },
    minutes: { type: "string", default: "30" },
    callers: { type: "string", default: "12" },
    kill: { type: "string", default: "20" },
    seed: { type: "string", default: "1" },
  },
});
if (flags.model === undefined) {
  console.error("usage: node bench/soak.mjs --model MODEL.gguf [--minutes 30] [--callers 12] [--kill 20] [--seed 1]");
  process.exit(2);
}

/** The server, in a process of its own; it tells what it holds. */
async function server() {
  const { serve } = await import(new URL("../dist/server/serve.js", import.meta.url).href);
  const running = await serve({
    ...{ models: [{ model: flags.model, id: "soak" }], port: 0, threads: 2, contextLength: 1024, maxSequences: 8 },
    ...{ maxWaiting: 16, slowReaderMs: 5000, keepAliveMs: 1000, drainMs: 5000 },
    onEngineStart: (_model, pid) => process.send({ pid }),
  });
  process.on("message", async (what) => {
    if (what === "end") {
      await running.close();
      process.disconnect();
      return;
    }
    globalThis.gc();
    const { heapUsed, rss } = process.memoryUsage();
    process.send({ held: { heapUsed, rss, files: readdirSync("/proc/self/fd").length } });
  });
  process.send({ url: running.url });
}

let seed = Number(flags.seed) >>> 0;
function random() {
  seed = (seed + 0x6d2b79f5) >>> 0;
  let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}
const below = (n) => Math.floor(random() * n);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const words = "river stone light winter garden window number letter morning engine paper cloud".split(" ");
const text = (length) => Array.from({ length }, () => words[below(words.length)]).join(" ");
const messages = () => [{ role: "user", content: text(1 + below(below(8) === 0 ? 300 : 30)) }];
const schema = {
  ...{ type: "object", required: ["name", "count"], additionalProperties: false },
  properties: { name: { type: "string", maxLength: 12 }, count: { type: "integer", minimum: 0, maximum: 99 } },
};

/** path, body, and how its stream or its whole answer ends. */
const kinds = {
  chatStream: () => ["/v1/chat/completions", { messages: messages(), stream: true, max_tokens: 1 + below(40) }],
  chat: () => ["/v1/chat/completions", { messages: messages(), max_tokens: 1 + below(40) }],
  choices: () => ["/v1/completions", { prompt: text(20), n: 3, stream: below(2) === 0, max_tokens: 1 + below(20) }],
  prompts: () => ["/v1/completions", { prompt: [text(5), text(9)], stream: below(2) === 0, max_tokens: 12 }],
  schema: () => [
    "/v1/chat/completions",
    {
      ...{ messages: messages(), max_tokens: 60, stream: below(2) === 0 },
      response_format: { type: "json_schema", json_schema: { name: "x", schema } },
    },
  ],
  logprobs: () => ["/v1/chat/completions", { messages: messages(), max_tokens: 9, logprobs: true, top_logprobs: 3 }],
  anthropic: () => ["/v1/messages", { messages: messages(), max_tokens: 1 + below(30), stream: below(2) === 0 }],
  ollama: () => ["/api/chat", { messages: messages(), options: { num_predict: 20 }, stream: below(2) === 0 }],
  tgi: () => ["/generate_stream", { inputs: text(12), parameters: { max_new_tokens: 1 + below(30) } }],
  deadline: () => ["/v1/chat/completions", { messages: messages(), max_tokens: 400, timeout: 0.05 + random() / 2 }],
  wrong: () => ["/v1/chat/completions", { messages: messages(), max_tokens: -1 }],
  tooLong: () => ["/v1/completions", { prompt: text(3000), max_tokens: 5 }],
};

const counts = {};
const count = (what) => {
  counts[what] = (counts[what] ?? 0) + 1;
};
const violations = [];

/** Sends one request, reads all that comes, and says what it was. */
async function one(url) {
  const names = Object.keys(kinds);
  const kind = names[below(names.length)];
  const [path, body] = kinds[kind]();
  const controller = new AbortController();
  const leaves = below(5) === 0;
  const timer = leaves ? setTimeout(() => controller.abort(), below(800)) : undefined;
  const tooLong = setTimeout(() => controller.abort(new Error("no end after 90 s")), 90_000);
  let got = "";
  try {
    const answer = await fetch(url + path, {
      ...{ method: "POST", signal: controller.signal, headers: { "content-type": "application/json" } },
      body: JSON.stringify({ model: "soak", ...body }),
    });
    for await (const bytes of answer.body) got += Buffer.from(bytes).toString("latin1");
    const outcome = verdict(path, body, answer, got);
    count(`${kind}: ${outcome}`);
    if (!/^(answer|error)/.test(outcome))
      violations.push({ kind, outcome, status: answer.status, got: got.slice(-400) });
    if (answer.status === 429 || answer.status === 503) await pause(200);
  } catch (error) {
    if (leaves && controller.signal.aborted) count(`${kind}: left`);
    else violations.push({ kind, outcome: String(error.cause ?? error), got: got.slice(-400) });
  } finally {
    clearTimeout(timer);
    clearTimeout(tooLong);
  }
}

/** "answer", "error STATUS", or what is wrong. */
function verdict(path, { n = 1, prompt, stream }, { status, headers }, got) {
  if (status >= 400) return /"error"/.test(got) ? `error ${status}` : "a refusal without an error";
  const streamed = !(headers.get("content-type") ?? "").startsWith("application/json");
  if (!streamed) return JSON.parse(got).error ? "an error with status 200" : "answer";
  const objects = got
    .split("\n")
    .map((line) => line.replace(/^data: ?/, "").trim())
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
  const errors = objects.filter((object) => object.error !== undefined).length;
  const ends = {
    "/v1/messages": () => objects.filter(({ type }) => type === "message_stop").length,
    "/api/chat": () => objects.filter(({ done }) => done).length,
    "/generate_stream": () =>
      objects.filter(({ generated_text }) => generated_text !== null && generated_text !== undefined).length,
  };
  const finished = () => objects.flatMap(({ choices = [] }) => choices).filter((choice) => choice.finish_reason).length;
  const wanted = ends[path] ? 1 : n * (Array.isArray(prompt) ? prompt.length : 1);
  const ended = (ends[path] ?? finished)();
  if (errors > 1) return `${errors} errors`;
  if (errors === 1) return ended < wanted ? "error in the stream" : "an error after the answer";
  if (ended !== wanted) return `${ended} of ${wanted} ends${stream ? "" : ", unasked stream"}`;
  return path.startsWith("/v1/c") && got.split("data: [DONE]").length !== 2 ? "no end of the stream" : "answer";
}

/** Once nothing runs: pages in use then are pages lost. An engine that was killed last comes back first. */
async function leftOver(url) {
  for (let tries = 0; ; tries++) {
    await pause(2000);
    await fetch(`${url}/health`).then((answer) => answer.arrayBuffer());
    const metrics = await (await fetch(`${url}/metrics`)).text();
    const metric = (name) => Number(new RegExp(`^${name}\\{[^}]*\\} (\\S+)`, "m").exec(metrics)?.[1]);
    const left = {
      running: metric("vllm:num_requests_running"),
      waiting: metric("vllm:num_requests_waiting"),
      pagesInUse: metric("vllm:kv_cache_usage_perc"),
    };
    const none = left.running + left.waiting + left.pagesInUse === 0;
    if (none || tries === 30) return left;
  }
}

async function callers() {
  const child = fork(self, ["--role", "server", "--model", flags.model], { execArgv: ["--expose-gc"] });
  const heard = {};
  let pid;
  child.on("message", (message) => {
    if (message.pid !== undefined) pid = message.pid;
    for (const [name, value] of Object.entries(message)) heard[name]?.(value);
  });
  const next = (name) => new Promise((resolve) => (heard[name] = resolve));
  const held = () => {
    const answer = next("held");
    child.send("held");
    return answer;
  };
  const url = await next("url");
  const until = performance.now() + Number(flags.minutes) * 60_000;
  const samples = [];
  let kills = 0;
  let busy = true;
  const caller = async () => {
    while (performance.now() < until) await one(url);
  };
  const killer = async () => {
    while (busy && Number(flags.kill) > 0) {
      await pause(1000 * Number(flags.kill) * (0.5 + random()));
      if (!busy) return;
      try {
        process.kill(pid, "SIGKILL");
        kills++;
      } catch {
        // It is between two lives.
      }
    }
  };
  const sampler = async () => {
    while (busy) {
      await pause(5000);
      if (busy) samples.push(await held());
    }
  };
  const others = [killer(), sampler()];
  await Promise.all(Array.from({ length: Number(flags.callers) }, caller));
  busy = false;
  await Promise.all(others);
  const left = await leftOver(url);
  await pause(6000);
  const end = await held();
  child.send("end");
  await new Promise((resolve) => child.once("exit", resolve));
  const middle = (list, name) => list.map((sample) => sample[name]).toSorted((a, b) => a - b)[list.length >> 1];
  const quarter = (k) => samples.slice((samples.length * k) >> 2, Math.max((samples.length * (k + 1)) >> 2, 1));
  const memory = ["heapUsed", "rss", "files"].map((name) => [
    name,
    [1, 2, 3].map((k) => middle(quarter(k), name)).concat(end[name]),
  ]);
  const requests = Object.values(counts).reduce((sum, one) => sum + one, 0) + violations.length;
  const lost = left.running + left.waiting + left.pagesInUse !== 0;
  const heap = memory[0][1];
  const grew = heap[3] - heap[0] > 8e6;
  console.log(
    JSON.stringify({
      ...{ minutes: Number(flags.minutes), requests, kills, violations: violations.length, left },
      // Medians of the second, third and last quarter, and when all had ended.
      memory: Object.fromEntries(memory),
      ...{ counts, examples: violations.slice(0, 10) },
    }),
  );
  process.exit(violations.length > 0 || lost || grew ? 1 : 0);
}

await { server, callers }[flags.role]();
