// Draft models on a real device: the same answers as without, and refused where the vocabulary is another.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import type * as ClientModule from "../../src/engine/client.js";
import type { TokenEvent } from "../../src/engine/types.js";
import type * as WorkerModule from "../../src/host/worker.js";
import { plainSampling } from "../../src/session/sampling.js";
import { tinyLlama } from "../support/lora.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const built = (path: string) => import(new URL(`../../dist/${path}`, import.meta.url).href);
const { EngineClient } = (await built("engine/client.js")) as typeof ClientModule;
const { workerCarrier } = (await built("host/worker.js")) as typeof WorkerModule;
const home = mkdtempSync(join(tmpdir(), "millrace-draft-"));
afterAll(() => rmSync(home, { recursive: true }));

const path = (name: string) => join(home, `${name}.gguf`);
writeTinyLlamaGguf(path("model"), { seed: 1, layers: 3 });
writeTinyLlamaGguf(path("stranger"), { seed: 2, layers: 1 });

const spec = {
  path: path("model"),
  ...{ device: whyNoNative() ? "reference" : "cpu", threads: 1, contextLength: 256, lookup: false },
};

async function answers(draft?: string) {
  const engine = await EngineClient.open({ carrier: workerCarrier, spec: { ...spec, draft } });
  try {
    const said = await Promise.all(
      [0, 1, 2, 3, 4, 5].map(async (i) => {
        const tokens: [id: number, logprob: number][] = [];
        const events: AsyncIterable<TokenEvent> = engine.generate({
          id: String(i),
          promptIds: Int32Array.from([5 + i, 9, 11, 3 * i]),
          n: 1,
          sampling: { ...plainSampling, temperature: (i % 2) * 0.8, seed: BigInt(i) },
          maxTokens: 60,
          minTokens: 0,
          stopIds: [],
          priority: 0,
          logprobs: 1,
        });
        for await (const event of events) {
          if (event.type === "token") tokens.push([event.id, event.logprobs!.logprob]);
        }
        return tokens;
      }),
    );
    return { said, stats: await engine.stats() };
  } finally {
    await engine.close();
  }
}

test("the model itself as its draft, and one that knows nothing: the same tokens and log-probabilities", async () => {
  const plain = await answers();
  const twin = await answers(path("model"));
  const stranger = await answers(path("stranger"));
  expect(twin.said).toEqual(plain.said);
  expect(stranger.said).toEqual(plain.said);
  expect(plain.said.map(({ length }) => length)).toEqual(Array(6).fill(60));
  expect(plain.stats.draftTokens).toBe(0);
  expect(twin.stats.acceptedTokens).toBeGreaterThan(0);
});

test("another vocabulary is refused, with what differs", async () => {
  await expect(EngineClient.open({ carrier: workerCarrier, spec: { ...spec, draft: tinyLlama } })).rejects.toThrow(
    /cannot draft for model: it has \d+ tokens, the model \d+; both must have one vocabulary/,
  );
});
