// Prompt lookup on the real model: the same tokens and log-probabilities to the bit, in fewer steps.
import { expect, test } from "vitest";
import type * as Open from "../../src/host/open.js";
import type * as Worker from "../../src/host/worker.js";
import { plainSampling } from "../../src/session/sampling.js";
import type { Delta } from "../../src/session/types.js";
import { smollm2 } from "../support/models.js";

const dist = (name: string) => import(new URL(`../../dist/${name}`, import.meta.url).href);
const { openSession } = (await dist("host/open.js")) as typeof Open;
const { workerCarrier } = (await dist("host/worker.js")) as typeof Worker;

const list = ["red", "green", "blue", "amber", "white"].map(
  (colour, i) => `Item ${i + 1}: serial ${7919 * (i + 3)}, ${colour}.`,
);
const content = `Copy the following list exactly.\n${list.join("\n")}`;

async function run(lookup: boolean, temperature: number) {
  const spec = { path: smollm2(), threads: 2, maxSequences: 2, lookup };
  const { session, engine } = await openSession({ spec, carrier: workerCarrier });
  const sampling = { ...plainSampling, temperature, seed: 11n };
  const limits = { n: 2, maxTokens: 90, minTokens: 0, stop: [], stopIds: [], logprobs: 2, priority: 0 };
  const job = {
    messages: [{ role: "user" as const, content }],
    sampling,
    ...limits,
    includeStop: false,
    ignoreEos: false,
  };
  const tokens: Extract<Delta, { type: "content" }>["tokens"][] = [];
  const before = (await engine.stats()).steps;
  for await (const delta of session.run(job)) {
    if (delta.type === "content" || delta.type === "finish") tokens.push(delta.tokens);
  }
  const stats = await engine.stats();
  await engine.close();
  const said = tokens.flat().map(({ id, logprobs }) => JSON.stringify([id, logprobs]));
  return { said: said.sort(), steps: stats.steps - before, accepted: stats.acceptedTokens, guessed: stats.draftTokens };
}

test.each([0, 0.8])("at temperature %s guessing changes no token and no log-probability", async (temperature) => {
  const plain = await run(false, temperature);
  const guessed = await run(true, temperature);
  expect(plain.guessed).toBe(0);
  expect(guessed.said).toEqual(plain.said);
  expect(guessed.accepted).toBeGreaterThan(10);
  expect(guessed.steps).toBeLessThan(plain.steps);
});
