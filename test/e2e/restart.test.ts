// Computed pages outlive their engine: a restarted one, or one whose process was killed, begins a prompt where the first
// had got to, and gives the same tokens and log-probabilities to the bit as an engine that computes everything.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import type * as ClientModule from "../../src/engine/client.js";
import type { GenerateRequest, TokenEvent } from "../../src/engine/types.js";
import type { LoadSpec } from "../../src/host/load.js";
import { reportPages } from "../../src/host/page-files.js";
import type * as ProcessModule from "../../src/host/process.js";
import type * as WorkerModule from "../../src/host/worker.js";
import { tinyFolder } from "../support/golden.js";
import { smollm2 } from "../support/models.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { drawn, randomIds, request } from "./world.js";

const dist = (path: string) => import(new URL(`../../dist/${path}`, import.meta.url).href);
const { EngineClient } = (await dist("engine/client.js")) as typeof ClientModule;
const { workerCarrier } = (await dist("host/worker.js")) as typeof WorkerModule;
const { processCarrier } = (await dist("host/process.js")) as typeof ProcessModule;

const absent = whyNoNative();
if (absent) console.warn(`SKIPPED: restarts on the cpu device: ${absent}`);

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-restart-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const pages = () => join(folder, "pages");

/** An engine of its own in a thread, or in a process that is killed afterwards, and what it answers. */
async function answers(spec: LoadSpec, requests: readonly GenerateRequest[], kill = false) {
  let pid = 0;
  const carrier = kill ? () => processCarrier((id) => (pid = id)) : workerCarrier;
  const client = await EngineClient.open({ carrier, spec: { threads: 2, maxSequences: 4, ...spec } });
  const said: TokenEvent[][] = [];
  for (const one of requests) {
    const events: TokenEvent[] = [];
    for await (const event of client.generate(one)) events.push(event);
    said.push(events);
  }
  if (kill) {
    await onDisk(1);
    process.kill(pid, "SIGKILL");
  }
  const stats = kill ? undefined : await client.stats();
  await client.close();
  return {
    cached: said.map(([start]) => (start.type === "start" ? start.cachedTokens : -1)),
    said: said.map(words),
    stats,
  };
}

const words = (events: readonly TokenEvent[]) =>
  events.flatMap((event) => (event.type === "token" ? [{ id: event.id, ...event.logprobs }] : []));

/** Waits until so many pages have been written. */
async function onDisk(least: number): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    const [report] = await reportPages(pages());
    if (report && report.pages >= least) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("no page was written");
}

interface Subject {
  readonly name: string;
  readonly spec: () => LoadSpec;
  readonly vocabSize: number;
  readonly prompt: number;
}
const gguf = () => {
  const path = join(folder, "tiny.gguf");
  writeTinyLlamaGguf(path, { contextLength: 1024, layers: 2 });
  return path;
};
const subjects: readonly Subject[] = [
  ...(absent
    ? []
    : [
        { name: "llama on cpu", spec: () => ({ path: gguf(), device: "cpu" }), vocabSize: 256, prompt: 203 },
        {
          ...{ name: "llama on cpu, cache in q8", vocabSize: 256, prompt: 203 },
          spec: () => ({ path: gguf(), device: "cpu", kvDtype: "q8" }) as const,
        },
        // two page groups, windows of 8
        ...["gemma3", "mistral-swa"].map((name) => ({
          ...{ name: `${name} on cpu`, vocabSize: 256, prompt: 117 },
          spec: () => ({ path: tinyFolder(name), device: "cpu" }),
        })),
        {
          ...{ name: "SmolLM2 on cpu", vocabSize: 49152, prompt: 150 },
          spec: () => ({ path: smollm2(), device: "cpu" }),
        },
      ]),
  { name: "llama on reference", spec: () => ({ path: gguf(), device: "reference" }), vocabSize: 256, prompt: 70 },
];

describe.each(subjects)("$name", ({ spec, vocabSize, prompt }) => {
  test("a restarted engine goes on from the pages of the one before", async () => {
    const ids = randomIds(prompt, vocabSize, 5);
    const subject = request("it", ids, { sampling: drawn, maxTokens: 12 });
    const part = request("part", [...ids.slice(0, prompt - 30), 1, 2, 3], { sampling: drawn, maxTokens: 5 });
    const whole = spec();
    const plain = await answers(whole, [subject, part]);
    expect(plain.cached[0]).toBe(0);

    const cached = { ...whole, pageCache: { folder: pages() } };
    const first = await answers(cached, [subject]);
    expect(first.cached).toEqual([0]);
    const second = await answers(cached, [subject]);
    expect(second.cached[0]).toBeGreaterThan(prompt - 18);
    expect(second.said[0]).toEqual(plain.said[0]);
    expect(second.stats!.tiers!.disk.hits).toBeGreaterThan(0);
    const third = await answers(cached, [part]);
    expect(third.cached[0]).toBeGreaterThan(prompt - 30 - 17);
    expect(third.said[0]).toEqual(plain.said[1]);
  });
});

test.skipIf(absent)("a killed engine's pages are found, damaged ones are not used", async () => {
  const spec = { path: gguf(), device: "cpu", pageCache: { folder: pages() } };
  const subject = request("it", randomIds(203, 256, 5), { sampling: drawn, maxTokens: 5 });
  const first = await answers(spec, [subject], true);
  const second = await answers(spec, [subject]);
  expect(second.cached[0]).toBeGreaterThan(0);
  expect(second.said).toEqual(first.said);
  const [{ kind }] = await reportPages(pages());
  for (const name of readdirSync(join(pages(), kind)).filter((name) => name.endsWith("-0"))) {
    const path = join(pages(), kind, name);
    const bytes = readFileSync(path);
    bytes[bytes.length - 3] ^= 0x10;
    writeFileSync(path, bytes);
  }
  const third = await answers(spec, [subject]);
  expect(third.cached).toEqual([0]);
  expect(third.said).toEqual(first.said);
  expect(third.stats!.tiers!.damaged).toBeGreaterThan(0);
});

test.skipIf(absent)("another model, number format or salt finds nothing; a copy of the model does", async () => {
  const spec = { path: gguf(), device: "cpu", pageCache: { folder: pages() } };
  const subject = request("it", randomIds(100, 256, 5), { maxTokens: 3 });
  await answers(spec, [subject]);
  const again = async (other: Partial<LoadSpec>, more: Partial<GenerateRequest> = {}) =>
    (await answers({ ...spec, ...other }, [{ ...subject, ...more }])).cached[0];
  for (const kvDtype of ["f32", "q8"] as const) expect(await again({ kvDtype })).toBe(0);
  expect(await again({}, { cacheSalt: "another tenant" })).toBe(0);
  cpSync(spec.path, join(folder, "copy.gguf"));
  expect(await again({ path: join(folder, "copy.gguf") })).toBe(96);
  const other = readFileSync(spec.path);
  other[other.length - 100] ^= 1;
  writeFileSync(spec.path, other);
  expect(await again({})).toBe(0);
});
