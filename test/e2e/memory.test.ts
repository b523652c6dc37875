// What a real model takes in the process that runs it: its packed weights once, of the file at most the largest tensor at a
// time, the cache that was touched, and a fixed sum for node and the engine.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import type * as ClientModule from "../../src/engine/client.js";
import { openCheckpoint } from "../../src/formats/open.js";
import type * as ProcessModule from "../../src/host/process.js";
import { gemma, smollm2 } from "../support/models.js";
import { randomIds, request } from "./world.js";

const dist = (path: string) => import(new URL(`../../dist/${path}`, import.meta.url).href);
const { EngineClient } = (await dist("engine/client.js")) as typeof ClientModule;
const { processCarrier } = (await dist("host/process.js")) as typeof ProcessModule;

const MB = 2 ** 20;
/** Node itself with its pages of code, heap, the engine, workspace: in the process of the engine. */
const fixed = 90 * MB;
const contextLength = 1024;
/** cacheBytes: of a token, K and V of all layers in f16. */
const models = [
  { name: "SmolLM2", find: smollm2, cacheBytes: 30 * 3 * 64 * 2 * 2 },
  { name: "Gemma 3", find: gemma, cacheBytes: 18 * 256 * 2 * 2 },
];

const absent = whyNoNative() ?? (process.platform === "linux" ? undefined : "/proc is only on Linux");
if (absent) console.warn(`SKIPPED: memory of real models: ${absent}`);

describe.skipIf(absent !== undefined).each(models)("$name", ({ find, cacheBytes }) => {
  const path = find();
  test.skipIf(path === undefined)(
    "its process never takes more than its weights, one tensor of the file, the cache that is used, and 90 MB",
    async () => {
      const checkpoint = await openCheckpoint(path!);
      const largestTensor = Math.max(...[...checkpoint.tensors.values()].map(({ bytes }) => bytes));
      checkpoint.close();
      let pid = 0;
      const spec = { path, device: "cpu", threads: 2, contextLength };
      const client = await EngineClient.open({ carrier: () => processCarrier((started) => (pid = started)), spec });
      const { memory } = client.limits;
      const tokens = 300;
      const ids = randomIds(tokens, client.limits.vocabSize, 1);
      for await (const _ of client.generate(request("one", ids, { maxTokens: 4 })));
      const most = resident(pid, "VmHWM");
      await client.close();
      const cache = Math.min(memory.cache, (tokens + 16) * cacheBytes);
      const beyond = most - memory.weights - cache - largestTensor;
      expect(beyond).toBeLessThan(fixed);
    },
  );
});

function resident(pid: number, what: string): number {
  const [, kilobytes] = new RegExp(`^${what}:\\s+(\\d+) kB`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))!;
  return Number(kilobytes) * 1024;
}
