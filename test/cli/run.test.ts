// The commands that load a model, on a tiny one of random weights: what comes out where, and in which form.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { millrace, startMillrace } from "../support/millrace.js";
import { smollm2 } from "../support/models.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

let home: string;
let tiny: string;
let base: string;
const reference = ["--device", "reference"];
const run = (args: readonly string[], input = "") => millrace(args, { input, env: { MILLRACE_HOME: home } });

beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), "millrace-run-"));
  tiny = join(home, "tiny.gguf");
  writeTinyLlamaGguf(tiny);
  base = join(home, "base.gguf");
  writeTinyLlamaGguf(base, { meta: { "tokenizer.chat_template": undefined } });
});
afterAll(() => rmSync(home, { recursive: true }));

test("an answer goes to standard output, and one line of figures to standard error", async () => {
  const { code, stdout, stderr } = await run(["run", tiny, ...reference, "--max-tokens", "8", "--seed", "1", "Hello"]);
  expect(stderr).toMatch(
    /^\[prompt \d+ tokens, [\d.]+ tokens\/s · generation \d+ tokens.* · time to first token \d+ ms\]\n$/,
  );
  expect(stdout).toMatch(/\n$/);
  expect(code).toBe(0);
});

test("--json is one object with the answer and its figures, and the seed repeats it", async () => {
  const args = ["run", tiny, ...reference, "--json", "--max-tokens", "8", "--temperature", "1", "Hello", "there"];
  const first = JSON.parse((await run(args)).stdout);
  expect(first.generatedTokens).toBe(first.tokenIds.length);
  expect(["stop", "length"]).toContain(first.finishReason);
  for (const name of ["promptTokensPerSecond", "ttftMs", "startToFirstTokenMs", "loadMs", "promptTokens"]) {
    expect(first[name]).toBeGreaterThan(0);
  }
  expect(first.startToFirstTokenMs).toBeGreaterThan(first.ttftMs);
  const again = JSON.parse((await run([...args, "--seed", first.seed])).stdout);
  expect(again.tokenIds).toEqual(first.tokenIds);
});

test("a prompt can be piped in, and is the same prompt", async () => {
  const args = ["run", tiny, ...reference, "--json", "--max-tokens", "4", "--temperature", "0"];
  const [piped, given] = await Promise.all([run(args, "Hello there"), run([...args, "Hello there"])]);
  expect(JSON.parse(piped.stdout).tokenIds).toEqual(JSON.parse(given.stdout).tokenIds);
});

test("--system and --raw change the prompt; a model without a template continues the text and says so", async () => {
  const args = ["run", tiny, ...reference, "--json", "--max-tokens", "1"];
  const tokens = async (...more: string[]) => JSON.parse((await run([...args, ...more, "Hi"])).stdout).promptTokens;
  const [plain, system, raw] = [await tokens(), await tokens("--system", "Be brief."), await tokens("--raw")];
  expect(system).toBeGreaterThan(plain);
  expect(raw).toBeLessThan(plain);
  const noTemplate = await run(["run", base, ...reference, "--max-tokens", "1", "Hi"]);
  expect(noTemplate.stderr).toContain("has no chat template");
  expect(noTemplate.code).toBe(0);
});

test("a prompt beyond the context is refused with both numbers", async () => {
  const { code, stderr } = await run(["run", tiny, ...reference, "--ctx", "32", "word ".repeat(100)]);
  expect(code).toBe(1);
  expect(stderr).toContain("32");
});

test("inspect shows metadata, tensors and memory; --plan the operations; --json is all of it", async () => {
  const text = (await run(["inspect", tiny, ...reference])).stdout;
  for (const part of ["general.architecture", "token_embd.weight", "memory on", "weights", "context for"]) {
    expect(text).toContain(part);
  }
  const plan = (await run(["inspect", tiny, ...reference, "--plan"])).stdout;
  for (const part of ["embed", "attention", "logits", "FLOPs"]) expect(plan).toContain(part);
  const json = JSON.parse((await run(["inspect", tiny, ...reference, "--json", "--plan"])).stdout);
  expect(json.memory.weights).toBeGreaterThan(0);
  expect(json.plan[0]).toMatchObject({ op: "embed" });
  expect(json.tensors[0]).toHaveProperty("shape");
});

test("bench gives the medians by name and every run", async () => {
  const latency = ["bench", "latency", "--model", tiny, ...reference, "--json"];
  const one = JSON.parse((await run([...latency, "--prompt", "20", "--generate", "6", "--repeat", "3"])).stdout);
  expect(one.runs).toHaveLength(3);
  for (const name of ["promptTokensPerSecond", "generationTokensPerSecond", "ttftMs"]) {
    const values = one.runs.map((r: Record<string, number>) => r[name]).sort((a: number, b: number) => a - b);
    expect(one[name]).toBe(values[1]);
  }
  const throughput = ["bench", "throughput", "--model", tiny, ...reference, "--json", "--repeat", "1"];
  const many = JSON.parse((await run([...throughput, "--requests", "3", "--prompt", "8", "--generate", "6"])).stdout);
  expect(many).toMatchObject({ requests: 3, prompt: 8, generate: 6 });
  expect(many.totalGenerationTokensPerSecond).toBeGreaterThan(0);
});

test("Ctrl-C stops an answer: what has come stays, the figures follow, the exit code is 130", async () => {
  const args = ["run", smollm2(), "--raw", "--temperature", "0", "--max-tokens", "4000", "Once upon a time"];
  const running = startMillrace(args, { env: { MILLRACE_HOME: home } });
  await new Promise((seen) => running.child.stdout?.once("data", seen));
  await sleep(200);
  running.child.kill("SIGINT");
  const { code, stdout, stderr } = await running.done;
  expect(code).toBe(130);
  expect(stdout.length).toBeGreaterThan(0);
  expect(stderr).toContain("time to first token");
});

test("the real model answers, and knows when to stop", async () => {
  const question = "Why does the moon look larger when it is close to the horizon? Answer in two sentences.";
  const args = ["run", smollm2(), "--json", "--temperature", "0", "--max-tokens", "200", question];
  const { text, finishReason } = JSON.parse((await run(args)).stdout);
  expect(text).toMatch(/moon/i);
  expect(finishReason).toBe("stop");
});

test("serve takes requests, and ends tidily with all its processes", async () => {
  const args = ["serve", tiny, ...reference, "--port", "0", "--json", "--id", "tiny"];
  const running = startMillrace(args, { env: { MILLRACE_HOME: home } });
  const line = await new Promise<string>((seen) => running.child.stdout?.once("data", seen));
  const { url, models } = JSON.parse(line);
  expect(models).toMatchObject([{ id: "tiny" }]);
  const body = JSON.stringify({ model: "tiny", prompt: "Hello", max_tokens: 4 });
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
  expect(answer.status).toBe(200);
  running.child.kill("SIGTERM");
  expect((await running.done).code).toBe(0);
  await expect(fetch(`${url}/health`)).rejects.toThrow();
});

test("--keepalive is for a server's model: it stays there for so long, and without a server that is said", async () => {
  const server = startMillrace(["serve", tiny, "--id", "kept", "--port", "0", "--json", ...reference], {
    env: { MILLRACE_HOME: home },
  });
  let out = "";
  server.child.stdout!.on("data", (text: string) => (out += text));
  while (!out.includes("\n")) await sleep(20);
  const { port } = JSON.parse(out) as { port: number };
  const args = ["run", tiny, ...reference, "--max-tokens", "2", "--keepalive", "7m", "Hi"];
  const asked = (address: string) => millrace(args, { env: { MILLRACE_HOME: home, OLLAMA_HOST: address } });
  // The server has it under another name.
  const refused = await asked(`127.0.0.1:${port}`);
  expect([refused.code, refused.stderr]).toEqual([
    0,
    expect.stringMatching(/--keepalive is for a server's models, and/),
  ]);
  expect((await asked("127.0.0.1:1")).stderr).toMatch(/there is no server on http:\/\/127\.0\.0\.1:1/);
  server.child.kill("SIGTERM");
  await server.done;
  expect((await run(["run", tiny, "--keepalive", "soon", "Hi"])).stderr).toMatch(/It must be a duration such as "5m"/);
});

test("a picture that a prompt names by its path is refused; a word that looks like one is text", async () => {
  const picture = join(home, "cat.png");
  writeFileSync(picture, "");
  const ask = (prompt: string) => run(["run", tiny, ...reference, "--max-tokens", "2", prompt]);
  const refused = await ask(`What is on ${picture} ?`);
  expect([refused.code, refused.stdout]).toEqual([1, ""]);
  expect(refused.stderr).toMatch(/takes no images: leave .*cat\.png out of the prompt/);
  expect((await ask("What is a cat.png?")).code).toBe(0);
});

const miniLm = process.env.MILLRACE_TEST_MINILM;
if (!miniLm)
  console.warn("SKIPPED: MILLRACE_TEST_MINILM does not name all-MiniLM-L6-v2's folder (npm test fetches it)");
test.skipIf(!miniLm)("an embedding model prints its vector, and is planned as what it is", async () => {
  const vector = async (...args: string[]) => JSON.parse((await run(["run", miniLm!, ...args])).stdout) as number[];
  const whole = await vector("This is an example sentence");
  expect(whole).toHaveLength(384);
  expect(whole[0]).toBeCloseTo(0.067657, 4);
  expect(await vector("--dimensions", "3", "hello")).toHaveLength(3);
  const long = "word ".repeat(600);
  expect(await vector(long)).toHaveLength(384);
  expect(await run(["run", miniLm!, "--truncate=false", long])).toMatchObject({ code: 1, stdout: "" });
  const plan = JSON.parse((await run(["plan", miniLm!, "--json", "--device", "reference"])).stdout);
  expect(plan).toMatchObject({ fits: true, contextLength: 512, embeddingLength: 384 });
  expect(plan.memory.weights).toBeGreaterThan(80e6);
});

test("--format takes a file that holds a JSON schema, and nothing else that a file may hold", async () => {
  const refused = await run(["run", tiny, "--format", tiny, "Hi"]);
  expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining("holds no JSON schema") });
});
