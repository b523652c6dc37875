// Owns: what the server itself costs: a device that computes nothing behind the real server and the real engine process.
// Streamed tokens a second with many callers at once, and the time to the first token of one caller alone. Engine, server
// and callers are processes of their own, as in use; they share this machine's processors, callers included.
//
//   node bench/overhead.mjs [--streams 64] [--tokens 400] [--requests 256] [--model MODEL.gguf] [--profile FOLDER] [--json]
//
// --model: its tokenizer is used (its weights are not); by default tokens are bytes.
import { fork } from "node:child_process";
import { connect } from "node:net";
import { cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const self = fileURLToPath(import.meta.url);
const { values: flags } = parseArgs({
  options: {
    role: { type: "string", default: "all" },
    streams: { type: "string", default: "64" },
    tokens: { type: "string", default: "400" },
    requests: { type: "string", default: "256" },
    alone: { type: "string", default: "2000" },
    rounds: { type: "string", default: "3" },
    model: { type: "string" },
    profile: { type: "string" },
    port: { type: "string" },
    json: { type: "boolean", default: false },
  },
});
const streams = Number(flags.streams);
const dist = (path) => import(new URL(`../dist/${path}`, import.meta.url).href);

/** Runs this file in another role; resolves with what it sends first. */
function start(role, args = [], execArgv = []) {
  const child = fork(self, ["--role", role, ...process.argv.slice(2), ...args], { execArgv });
  return new Promise((resolve, reject) => {
    child.once("message", (message) => resolve({ child, message }));
    child.once("exit", (code) => reject(new Error(`${role} ended with ${code}`)));
  });
}

async function all() {
  const profile = flags.profile ? ["--cpu-prof", `--cpu-prof-dir=${flags.profile}`] : [];
  const { child, message } = await start("server", [], profile);
  const runs = [];
  for (let round = 0; round < Number(flags.rounds); round++) {
    const before = await ask(child, "cpu");
    const { message: run } = await start("callers", ["--port", String(message.port)]);
    const after = await ask(child, "cpu");
    runs.push({ ...run, serverMicrosecondsPerToken: (after.cpu - before.cpu) / run.tokens });
  }
  const engine = await ask(child, "direct");
  child.send("end");
  await new Promise((resolve) => child.once("exit", resolve));
  const middle = (name) => median(runs.map((run) => run[name]));
  const report = {
    streams,
    tokensPerSecond: middle("tokensPerSecond"),
    serverMicrosecondsPerToken: middle("serverMicrosecondsPerToken"),
    ttftMs: middle("ttftMs"),
    engineTtftMs: engine.median,
    addedTtftMs: middle("ttftMs") - engine.median,
    // With other work on the machine the fast tenth is closer to what the server costs.
    addedTtftP10Ms: middle("ttftP10Ms") - engine.p10,
    runs,
    machine: { processor: cpus()[0]?.model.trim(), cores: cpus().length, node: process.versions.node },
  };
  if (flags.json) console.log(JSON.stringify(report));
  else {
    const { tokensPerSecond, serverMicrosecondsPerToken: each, ttftMs, addedTtftMs, addedTtftP10Ms } = report;
    console.log(
      `${Math.round(tokensPerSecond)} streamed tokens/s to ${streams} callers, ${each.toFixed(1)} µs of server each`,
    );
    console.log(
      `first token after ${ttftMs.toFixed(2)} ms, ${addedTtftMs.toFixed(2)} ms of them beyond the engine's own (p10: ${addedTtftP10Ms.toFixed(2)})`,
    );
  }
  process.exit(0);
}

function ask(child, what) {
  child.send(what);
  return new Promise((resolve) => child.once("message", resolve));
}

const quantile = (values, share) => values.toSorted((a, b) => a - b)[Math.floor(values.length * share)];
const median = (values) => quantile(values, 0.5);

/** The engine's process: the real host around a program that computes nothing. */
async function engine() {
  const { runHost } = await dist("engine/host.js");
  const limits = {
    ...{ maxTokens: 2048, maxRows: 1024, maxSequences: 1024, slots: 1024, contextLength: 8192, memoryBytes: 0 },
    ...{ kvDtype: "f16", threads: 1, depth: 1, deterministic: false, adapterSlots: 0, maxPages: 0 },
  };
  const none = { weights: 0, workspace: 0, cache: 0 };
  const runtime = {
    load: async ({ vocabSize }) => ({
      program: idleProgram(vocabSize),
      limits,
      modelLimits: {
        ...{ contextLength: 8192, trainedContextLength: 8192, vocabSize, maxSequences: 1024 },
        ...{ device: "idle", memory: none },
      },
      close: async () => {},
    }),
    now: () => performance.now(),
    pause: () => new Promise((resolve) => setImmediate(resolve)),
  };
  const port = {
    post: (message) => process.connected && process.send(message, undefined, undefined, () => {}),
    onMessage: (listener) => process.on("message", listener),
    onClose: () => process.on("disconnect", () => process.exit(0)),
    close: () => process.connected && process.disconnect(),
  };
  await runHost(port, runtime);
  process.exit(0);
}

/** Draws letters, at once. */
function idleProgram(vocabSize) {
  let drawn = 0;
  return {
    memory: { weights: 0, workspace: 0, cache: 0, pagesPerGroup: [32_768], maxContext: 8192 },
    caches: [{ kind: "paged", pageTokens: 16, pageBytes: 0, numPages: 32_768 }],
    vocabSize,
    run({ rows, topLogprobs }) {
      const count = rows.length;
      const tokens = new Int32Array(count);
      for (let row = 0; row < count; row++) tokens[row] = 97 + (drawn++ % 26);
      const result = {
        tokens,
        logprobs: new Float32Array(count),
        ranks: new Int32Array(count),
        topIds: new Int32Array(count * topLogprobs),
        topLogprobs: new Float32Array(count * topLogprobs),
      };
      return { result: Promise.resolve(result), setMasks() {} };
    },
    copyPages() {},
    close: async () => {},
  };
}

function bytes() {
  const encoder = new TextEncoder();
  const decoder = () => {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return { push: (id) => utf8.decode(Uint8Array.of(id), { stream: true }), flush: () => utf8.decode() };
  };
  const encode = (text) => Int32Array.from(encoder.encode(text));
  return {
    tokenizer: {
      endIds: [],
      encode,
      tokenBytes: (id) => Uint8Array.of(id),
      control: () => undefined,
      detokenizer: decoder,
    },
    template: { source: "", encode: (messages) => encode(messages.map(({ content }) => content).join("\n")) },
  };
}

async function server() {
  const [{ listen }, { ServedModels }, { QueueLimit }, { Session }, { EngineClient }] = await Promise.all([
    dist("server/app.js"),
    dist("server/models.js"),
    dist("server/limits.js"),
    dist("session/session.js"),
    dist("engine/client.js"),
  ]);
  let text = bytes();
  if (flags.model) {
    const [{ openSpec }, { loadText }] = await Promise.all([dist("host/checkpoint.js"), dist("session/text.js")]);
    text = loadText((await openSpec({ path: flags.model })).meta);
  }
  const carrier = () => {
    const child = fork(self, ["--role", "engine"], { serialization: "advanced", execArgv: [] });
    return {
      post: (message) => child.connected && child.send(message, () => {}),
      onMessage: (listener) => child.on("message", listener),
      onClose: (listener) => child.once("exit", () => listener("it ended")),
      close: () => child.kill("SIGKILL"),
    };
  };
  const vocabSize = flags.model ? 32_000 : 256;
  const engine = await EngineClient.open({ carrier, spec: { vocabSize } });
  const session = new Session(engine, text, []);
  const served = { id: "idle", created: 1, session, queue: new QueueLimit(1024, 1024), fingerprint: "fp_idle" };
  const models = [{ id: "idle", created: 1, pinned: true, path: "" }];
  const source = {
    find: (name) => (name === "idle" ? models[0] : null),
    list: () => models,
    load: async () => ({ served, hostBytes: 0, grantThreads() {}, close: () => engine.close() }),
  };
  const all = new ServedModels(source, { memoryBytes: 1, maxLoaded: 1, maxQueued: 16, keepAliveMs: 1e9 });
  const running = await listen(all, null, { port: 0 });
  process.on("message", async (what) => {
    if (what === "cpu") {
      const { user, system } = process.cpuUsage();
      process.send({ cpu: user + system });
    } else if (what === "direct") process.send(await direct(engine, session));
    else {
      await running.close();
      await all.close();
      process.disconnect();
    }
  });
  process.send({ port: running.port });
}

/** The engine's own time to a first token, asked from the server's process. */
async function direct(engine, session) {
  const { plainSampling } = await dist("session/sampling.js");
  const times = [];
  for (let i = 0; i < Number(flags.alone); i++) {
    const prompt = `Say something about the number ${i}.`;
    const { request } = session.prepare({
      ...{ prompt, n: 1, sampling: { ...plainSampling, seed: 0n }, maxTokens: 4, minTokens: 0, stop: [], stopIds: [] },
      ...{ includeStop: false, ignoreEos: true, priority: 0 },
    });
    const from = performance.now();
    let first;
    for await (const { type } of engine.generate(request)) if (type === "token") first ??= performance.now();
    times.push(first - from);
  }
  return { median: median(times), p10: quantile(times, 0.1) };
}

async function callers() {
  const port = Number(flags.port);
  const tokens = Number(flags.tokens);
  const warm = new Caller(port);
  for (let i = 0; i < 200; i++) await warm.ask(16);
  const ttfts = [];
  for (let i = 0; i < Number(flags.alone); i++) ttfts.push((await warm.ask(4)).ttft);
  warm.end();
  let left = Number(flags.requests);
  let counted = 0;
  const from = performance.now();
  await Promise.all(
    Array.from({ length: streams }, async () => {
      const caller = new Caller(port);
      while (left-- > 0) {
        const answer = await caller.ask(tokens);
        counted += answer.tokens;
      }
      caller.end();
    }),
  );
  const seconds = (performance.now() - from) / 1000;
  const times = { ttftMs: median(ttfts), ttftP10Ms: quantile(ttfts, 0.1) };
  process.send({ tokens: counted, tokensPerSecond: counted / seconds, ...times }, () => process.exit(0));
}

/** One connection, kept open; it looks at bytes and nothing else, so that it costs the server's processors little. */
class Caller {
  constructor(port) {
    this.socket = connect(port, "127.0.0.1");
    this.socket.setNoDelay(true);
    this.socket.on("data", (data) => this.listener?.(data));
  }

  ask(tokens) {
    const body = JSON.stringify({
      ...{ model: "idle", max_tokens: tokens, stream: true, ignore_eos: true },
      messages: [{ role: "user", content: "Say something about the number 7." }],
    });
    const from = performance.now();
    this.socket.write(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
        `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
    );
    return new Promise((resolve) => {
      let letters = 0;
      let ttft;
      let tail = "";
      this.listener = (data) => {
        const text = tail + data.toString("latin1");
        // A chunk may hold several tokens' letters.
        for (const [, content] of text.matchAll(/"content":"([a-z]+)"/g)) {
          letters += content.length;
          ttft ??= performance.now() - from;
        }
        const end = text.lastIndexOf("\n\n");
        tail = end < 0 ? text : text.slice(end + 2);
        if (tail.length > 1 << 16) tail = "";
        if (text.includes("data: [DONE]")) resolve({ tokens: letters, ttft });
      };
    });
  }

  end() {
    this.socket.end();
  }
}

const roles = { all, engine, server, callers };
await roles[flags.role]();
