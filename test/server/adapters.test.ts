// LoRA adapters of a served model: each is asked for by its name, as a model is, several at once in one batch.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, expect, it } from "vitest";
import type * as ServeModule from "../../src/server/serve.js";
import { goldenCases } from "../support/golden.js";
import { LoraFiles, tinyLlama } from "../support/lora.js";

const { serve } = (await import(new URL("../../dist/server/serve.js", import.meta.url).href)) as typeof ServeModule;
const home = mkdtempSync(join(tmpdir(), "millrace-adapters-"));
const [one, two] = [new LoraFiles(home, 7), new LoraFiles(home, 8)];
const [{ prompt_ids: prompt }] = goldenCases("llama-mha");

let server: ServeModule.ModelServer;
let client: OpenAI;
beforeAll(async () => {
  const adapters = [
    { name: "one", path: one.peft("one") },
    { name: "org/two", path: two.gguf("two.gguf") },
  ];
  server = await serve({
    models: [
      { model: tinyLlama, id: "base", adapters },
      { model: await one.merged("one-merged") },
      { model: await two.merged("two-merged") },
    ],
    ...{ port: 0, threads: 2, contextLength: 256, kvDtype: "f32" },
  });
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
});
afterAll(async () => {
  await server?.close();
  rmSync(home, { recursive: true });
});

interface Answer {
  model: string;
  choices: { text: string; token_ids: number[] }[];
}

async function answer(model: string): Promise<Answer> {
  const body = { model, prompt, temperature: 0, max_tokens: 24, ignore_eos: true, return_token_ids: true };
  return (await client.completions.create(body as never)) as never as Answer;
}

it("answers side by side as merged weights do, and as each alone", async () => {
  const names = ["base", "one", "org/two", "one-merged", "two-merged"];
  const together = await Promise.all(names.map(answer));
  const ids = together.map(({ choices }) => choices[0].token_ids);
  expect(ids[1]).toEqual(ids[3]);
  expect(ids[2]).toEqual(ids[4]);
  expect(new Set(ids.slice(0, 3).map(String)).size).toBe(3);
  expect(together.map(({ model }) => model)).toEqual(names);
  for (const [i, name] of names.slice(0, 3).entries()) {
    expect((await answer(name)).choices[0].token_ids).toEqual(ids[i]);
  }
});

it("lists them with the model they belong to", async () => {
  const cards = (await client.models.list()).data as (OpenAI.Model & { parent?: string })[];
  expect(cards.map(({ id, parent }) => [id, parent])).toEqual([
    ["base", undefined],
    ["one", "base"],
    ["org/two", "base"],
    ["one-merged", undefined],
    ["two-merged", undefined],
  ]);
  expect(await client.models.retrieve("org/two")).toMatchObject({ id: "org/two", parent: "base" });
});
