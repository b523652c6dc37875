// millrace cache, and a server that is started anew: as a user sees them.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { millrace, startMillrace } from "../support/millrace.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

let home: string;
let model: string;
beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), "millrace-cache-"));
  model = join(home, "tiny.gguf");
  writeTinyLlamaGguf(model, { contextLength: 512 });
});
afterAll(() => rmSync(home, { recursive: true, force: true }));

const env = () => ({ MILLRACE_HOME: home });
const run = (...args: string[]) => millrace(args, { env: env() });
const caches = async () => JSON.parse((await run("cache", "--json")).stdout).caches;

interface Answer {
  readonly choices: readonly { readonly text: string }[];
  readonly usage: { readonly prompt_tokens_details: { readonly cached_tokens: number } };
}

/** Starts a server, asks it once, ends it; what the answer says was cached, what /metrics says of the disk. */
async function served(...flags: string[]) {
  const args = ["serve", model, "--device", "reference", "--id", "tiny", "--port", "0", "--json", ...flags];
  const running = startMillrace(args, { env: env() });
  const line = await new Promise<string>((seen) => running.child.stdout?.once("data", seen));
  const { url } = JSON.parse(line);
  const prompt = Array.from({ length: 60 }, (_, i) => (i * 7) % 200);
  const body = JSON.stringify({ model: "tiny", prompt, max_tokens: 3, temperature: 0 });
  const headers = { "content-type": "application/json" };
  const answered = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
  const { choices, usage } = (await answered.json()) as Answer;
  const metrics = await (await fetch(`${url}/metrics`)).text();
  running.child.kill("SIGTERM");
  expect((await running.done).code).toBe(0);
  return {
    text: choices[0].text,
    cached: usage.prompt_tokens_details.cached_tokens,
    hits: /millrace_cache_tier_hits_total\{model_name="tiny",tier="disk"\} (\d+)/.exec(metrics)?.[1],
  };
}

test("a server that is started anew goes on from kept pages; they are shown, and cleared", async () => {
  expect(await caches()).toEqual([]);
  expect(await served("--cache-disk", "0")).toMatchObject({ cached: 0 });
  expect(await caches()).toEqual([]);
  const first = await served();
  expect(first).toMatchObject({ cached: 0, hits: "0" });
  const [kept] = await caches();
  expect(kept).toMatchObject({ model: "tiny", kvDtype: "f16", pageTokens: 16, tokens: 48, pages: 3, hits: 0 });
  expect(kept.bytes).toBeGreaterThan(0);

  expect(await served()).toEqual({ text: first.text, cached: 48, hits: "3" });
  const shown = (await run("cache")).stdout;
  expect(shown).toMatch(/^MODEL +ID +MADE ON +TOKENS +PAGES +SIZE +HITS +OLDEST +LAST USED\ntiny .* 48 +3 .* 3 /);
  expect((await caches())[0].hits).toBe(3);

  const wrong = await run("cache", "clear", "other");
  expect(wrong.code).toBe(1);
  expect(wrong.stderr).toMatch(/no pages of a model "other".*tiny/);
  expect((await run("cache", "clear", "tiny")).stdout).toMatch(/removed 3 pages/);
  expect(await caches()).toEqual([]);
  expect(await served()).toMatchObject({ text: first.text, cached: 0 });
  expect(JSON.parse((await run("cache", "clear", "--json")).stdout)).toMatchObject({ pages: 3 });
}, 180_000);

test("sizes are bytes, with units", async () => {
  for (const size of ["-1", "much", "1X"]) {
    const { code, stderr } = await run("serve", "x", "--cache-disk", size);
    expect(code).toBe(2);
    expect(stderr).toMatch(/number of bytes such as/);
  }
});
