// A server without named models: those of the store come and go by themselves, under Ollama's API and OpenAI's alike.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type * as ServeModule from "../../src/server/serve.js";
import { adopt, partialPath } from "../../src/store/blobs.js";
import { describeModel } from "../../src/store/describe.js";
import { Hold } from "../../src/store/keep.js";
import { configType, type Descriptor, encodeManifest, layerType, manifestType } from "../../src/store/manifest.js";
import { configBlob, fileLayer } from "../../src/store/package.js";
import { newName, Store } from "../../src/store/store.js";
import { startFakeRegistry } from "../store/registry-server.js";
import { smollm2 } from "../support/models.js";

const { serve } = (await import(new URL("../../dist/server/serve.js", import.meta.url).href)) as typeof ServeModule;
const tiny = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "millrace-server-"));
const store = new Store(folder);

/** A package of these files, with texts of further layers. */
async function pack(name: string, path: string, extra: readonly (readonly [type: string, text: string])[] = []) {
  const files = path.endsWith(".gguf") ? [path] : readdirSync(path).map((file) => join(path, file));
  const layers: Descriptor[] = [];
  const hold = new Hold(folder);
  for (const file of files.filter((one) => /(config\.json|\.safetensors|\.gguf)$/.test(one))) {
    mkdirSync(join(folder, "partial"), { recursive: true });
    const partial = partialPath(folder, "copy");
    copyFileSync(file, partial);
    const { sha256, bytes } = await adopt(folder, partial, file, undefined);
    layers.push(fileLayer({ name: file.split("/").at(-1)!, sha256, bytes }));
  }
  for (const [type, text] of extra) layers.push(await store.addText(hold, type, text));
  const config = await store.addText(hold, configType, JSON.stringify(configBlob(await describeModel(path), layers)));
  const manifest = { schemaVersion: 2 as const, mediaType: manifestType, config, layers };
  await store.commit(newName(name), encodeManifest(manifest));
  hold.release();
}

let server: ServeModule.ModelServer;
let ollama: Ollama;
const home = process.env.MILLRACE_HOME;
beforeAll(async () => {
  await pack("smollm2", smollm2());
  await pack("pirate", smollm2(), [
    [layerType.system, "You are a pirate."],
    [layerType.parameters, JSON.stringify({ temperature: 0, num_predict: 8, stop: ["Arr"] })],
    [
      layerType.messages,
      JSON.stringify([
        { role: "user", content: "Ahoy" },
        { role: "assistant", content: "Arr!" },
      ]),
    ],
    [layerType.license, "Do as you like."],
  ]);
  await pack("tiny", tiny);
  process.env.MILLRACE_HOME = folder;
  server = await serve({ models: [], port: 0, threads: 2, contextLength: 512, maxLoaded: 2 });
  ollama = new Ollama({ host: server.url });
});
afterAll(async () => {
  await server?.close();
  if (home === undefined) delete process.env.MILLRACE_HOME;
  else process.env.MILLRACE_HOME = home;
  rmSync(folder, { recursive: true, force: true });
});

const loaded = async () => (await ollama.ps()).models.map(({ name }) => name);
async function rendered(request: object): Promise<string> {
  const answer = await ollama.generate({ ...request, _debug_render_only: true } as never);
  return (answer as never as { _debug_info: { rendered_template: string } })._debug_info.rendered_template;
}
const greedy = { temperature: 0, num_predict: 12 };

describe("a server over the store", () => {
  it("lists what is there, and has nothing loaded", async () => {
    const { models } = await ollama.list();
    expect(models.map(({ name }) => name)).toEqual(["pirate:latest", "smollm2:latest", "tiny:latest"]);
    const [, one] = models;
    expect(one).toMatchObject({
      model: "smollm2:latest",
      details: {
        format: "gguf",
        family: "llama",
        quantization_level: "Q4_1",
        context_length: 8192,
        embedding_length: 576,
      },
      capabilities: ["completion"],
    });
    expect(one.digest).toMatch(/^[0-9a-f]{64}$/);
    expect(one.size).toBeGreaterThan(80e6);
    expect(await loaded()).toEqual([]);
  });

  it("loads a model when it is asked for, and says what it takes", async () => {
    const answer = await ollama.generate({
      model: "smollm2",
      raw: true,
      prompt: "The capital of France is",
      options: greedy,
    });
    expect(answer.response).toContain("Paris");
    expect(answer.load_duration).toBeGreaterThan(1e6);
    const again = await ollama.generate({
      model: "smollm2:latest",
      raw: true,
      prompt: "The capital of France is",
      options: greedy,
    });
    expect(again.response).toBe(answer.response);
    expect(again.load_duration).toBeLessThan(answer.load_duration / 5);
    const { models } = await ollama.ps();
    expect(models).toMatchObject([{ name: "smollm2:latest", size_vram: 0, context_length: 512 }]);
    expect(models[0].size).toBeGreaterThan(85e6);
    const minutes = (Date.parse(models[0].expires_at as never) - Date.now()) / 60_000;
    expect(minutes).toBeGreaterThan(4.5);
    expect(minutes).toBeLessThanOrEqual(5);
  });

  it("serves OpenAI's clients from the same models", async () => {
    const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    const ids = (await client.models.list()).data.map(({ id }) => id);
    expect(ids).toEqual(["pirate", "smollm2", "tiny"]);
    const { choices } = await client.completions.create({
      model: "smollm2",
      prompt: "The capital of France is",
      temperature: 0,
    });
    expect(choices[0].text).toContain("Paris");
    await expect(client.models.retrieve("nobody")).rejects.toMatchObject({ status: 404 });
  });

  it("puts a package's system message, history and parameters before a caller's", async () => {
    const rendered = async (model: string, messages: object[]) => {
      const answer = await ollama.chat({ model, messages, _debug_render_only: true } as never);
      return (answer as never as { _debug_info: { rendered_template: string } })._debug_info.rendered_template;
    };
    const said = await rendered("pirate", [{ role: "user", content: "Who are you?" }]);
    expect(said).toMatch(/You are a pirate\.[\s\S]*Ahoy[\s\S]*Arr![\s\S]*Who are you\?/);
    const own = await rendered("pirate", [
      { role: "system", content: "You are a nun." },
      { role: "user", content: "Who are you?" },
    ]);
    expect(own).not.toContain("pirate");
    const messages = [{ role: "user", content: "Tell me about the sea." }];
    const short = await ollama.chat({ model: "pirate", messages });
    expect(short.eval_count).toBeLessThanOrEqual(8);
    expect(await ollama.chat({ model: "pirate", messages })).toMatchObject({ message: short.message });
  });

  it("unloads the least recently used for another, and on request", async () => {
    await ollama.generate({ model: "smollm2", prompt: "" });
    await ollama.generate({ model: "tiny", prompt: "" });
    expect(await loaded()).toEqual(["smollm2:latest", "tiny:latest"]);
    await ollama.generate({ model: "pirate", prompt: "" });
    expect(await loaded()).toEqual(["tiny:latest", "pirate:latest"]);
    await ollama.generate({ model: "tiny", prompt: "", keep_alive: 0 });
    expect(await loaded()).toEqual(["pirate:latest"]);
    await ollama.chat({ model: "pirate", messages: [{ role: "user", content: "Hi" }], keep_alive: "200ms" });
    await vi.waitFor(async () => expect(await loaded()).toEqual([]), { timeout: 5000 });
    const forever = await ollama.generate({ model: "tiny", prompt: "", keep_alive: -1 });
    expect(forever.done_reason).toBe("load");
    await expect(ollama.generate({ model: "nobody", prompt: "", keep_alive: 0 })).rejects.toThrow(/no model "nobody"/);
    expect((await ollama.ps()).models[0].expires_at).toMatch(/^9999/);
  });

  it("answers with two models at once", async () => {
    const ask = (model: string) =>
      ollama.generate({ model, raw: true, prompt: "Once upon a time", options: { temperature: 0, num_predict: 60 } });
    await ollama.generate({ model: "tiny", prompt: "", keep_alive: 0 });
    const alone = (await ask("smollm2")).response;
    const both = await Promise.all([ask("smollm2"), ask("pirate"), ask("smollm2")]);
    for (const { response } of both) expect(response).toBe(alone);
  });

  it("shows a package in full", async () => {
    const shown = await ollama.show({ model: "pirate" });
    expect(shown).toMatchObject({
      system: "You are a pirate.",
      license: "Do as you like.",
      details: { family: "llama", context_length: 8192, embedding_length: 576 },
      messages: [
        { role: "user", content: "Ahoy" },
        { role: "assistant", content: "Arr!" },
      ],
    });
    expect(shown.parameters).toMatch(/^num_predict +8$/m);
    expect(shown.parameters).toMatch(/^stop +"Arr"$/m);
    expect(shown.modelfile).toMatch(/^FROM [\s\S]*SYSTEM [\s\S]*PARAMETER stop Arr$/m);
    expect(shown.template).toContain("<|im_start|>");
    expect((shown as never as { capabilities: string[] }).capabilities).toContain("completion");
    const info = shown.model_info as never as Record<string, unknown>;
    expect(info["general.architecture"]).toBe("llama");
    expect(info["llama.block_count"]).toBe(30);
    expect(info["tokenizer.ggml.tokens"]).toBeNull();
    const folderModel = await ollama.show({ model: "tiny", verbose: true } as never);
    expect(folderModel.details).toMatchObject({ format: "safetensors" });
    expect((folderModel as never as { tensors: object[] }).tensors.length).toBeGreaterThan(5);
    await expect(ollama.show({ model: "nobody" })).rejects.toMatchObject({ status_code: 404 });
  });

  it("copies, answers by the new name, and deletes", async () => {
    await ollama.copy({ source: "tiny", destination: "team/other:v1" });
    expect((await ollama.list()).models.map(({ name }) => name)).toContain("team/other:v1");
    expect((await ollama.generate({ model: "team/other:v1", prompt: "" })).done_reason).toBe("load");
    await ollama.delete({ model: "team/other:v1" });
    await expect(ollama.generate({ model: "team/other:v1", prompt: "" })).rejects.toMatchObject({ status_code: 404 });
    await vi.waitFor(async () => expect(await loaded()).not.toContain("team/other:v1"));
    await expect(ollama.copy({ source: "nobody", destination: "x" })).rejects.toMatchObject({ status_code: 404 });
    await expect(ollama.delete({ model: "nobody" })).rejects.toMatchObject({ status_code: 404 });
  });

  it("creates a package from another, and from uploaded files, and answers as it says", async () => {
    const statuses: string[] = [];
    const made = await ollama.create({
      model: "brief",
      from: "pirate",
      system: "You are brief.",
      parameters: { num_predict: 4, temperature: 0 },
      template: "{{ .System }}|{{ .Prompt }}|",
      stream: true,
    });
    for await (const { status } of made) statuses.push(status);
    expect(statuses.at(-1)).toBe("success");
    expect(statuses).toContain("writing manifest");
    const shown = await ollama.show({ model: "brief" });
    expect(shown.modelfile).toContain("SYSTEM You are brief.");
    const answer = await ollama.generate({ model: "brief", prompt: "Hi" });
    expect(answer.eval_count).toBeLessThanOrEqual(4);
    const rendered = await ollama.generate({ model: "brief", prompt: "Hi", _debug_render_only: true } as never);
    const { rendered_template } = (rendered as never as { _debug_info: { rendered_template: string } })._debug_info;
    expect(rendered_template).toContain("You are brief.|Ahoy|Arr!|Hi|");

    // More context than the model was made for is as much as it was made for.
    await ollama.create({ model: "wide", from: "tiny", parameters: { num_ctx: 1_000_000 } });
    expect((await ollama.generate({ model: "wide", prompt: "" })).done_reason).toBe("load");
    const wide = (await ollama.ps()).models.find(({ name }) => name === "wide:latest");
    expect(wide).toMatchObject({ context_length: 512 });
    expect((await ollama.generate({ model: "wide", prompt: "", keep_alive: 0 })).done_reason).toBe("unload");

    const files: Record<string, string> = {};
    for (const name of ["config.json", "model.safetensors"]) {
      const content = readFileSync(join(tiny, name));
      files[name] = `sha256:${createHash("sha256").update(content).digest("hex")}`;
      await fetch(`${server.url}/api/blobs/${files[name]}`, { method: "POST", body: content });
    }
    expect(await ollama.create({ model: "uploaded", files } as never)).toEqual({ status: "success" });
    expect((await ollama.generate({ model: "uploaded", prompt: "" })).done_reason).toBe("load");
    await expect(ollama.create({ model: "x", from: "nobody-has-this" })).rejects.toThrow(/nobody-has-this/);
    await expect(ollama.push({ model: "nobody" })).rejects.toMatchObject({ status_code: 404 });
    for (const model of ["brief", "uploaded", "wide"]) await ollama.delete({ model });
  });

  it("pushes a package to a registry and pulls it back, the same to the digest, with progress on the way", async () => {
    const registry = await startFakeRegistry();
    try {
      const model = `${registry.host}/me/model:v1`;
      await ollama.copy({ source: "tiny", destination: model });
      const digest = async () => (await ollama.list()).models.find(({ name }) => name === model)?.digest;
      const before = await digest();
      const sent: string[] = [];
      for await (const { status } of await ollama.push({ model, stream: true })) sent.push(status);
      expect(sent.at(-1)).toBe("success");
      await ollama.delete({ model });
      expect(await digest()).toBeUndefined();
      const came: { status: string; completed?: number; total?: number }[] = [];
      for await (const progress of await ollama.pull({ model, stream: true })) came.push(progress);
      expect(came.at(-1)!.status).toBe("success");
      expect(came[0].status).toBe("pulling manifest");
      expect(came.some(({ completed, total }) => total !== undefined && completed === total)).toBe(true);
      expect(await digest()).toBe(before);
      expect((await ollama.generate({ model, prompt: "" })).done_reason).toBe("load");
      await expect(ollama.pull({ model: `${registry.host}/me/other:v1` })).rejects.toThrow(/has no .*other|404/);
      await ollama.delete({ model });
    } finally {
      await registry.close();
    }
  });

  it("fills in between a prompt and a suffix where the template has a place for it", async () => {
    const template = "{{ if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}";
    await ollama.create({ model: "between", from: "smollm2", template });
    expect(((await ollama.show({ model: "between" })) as never as { capabilities: string[] }).capabilities).toContain(
      "insert",
    );
    const options = { ...greedy, num_predict: 6 };
    const whole = "<PRE>def f(<SUF>return x<MID>";
    const asked = { model: "between", prompt: "def f(", suffix: "return x", options };
    expect(await rendered(asked)).toBe(whole);
    const raw = await ollama.generate({ model: "smollm2", raw: true, prompt: whole, options });
    expect((await ollama.generate(asked)).response).toBe(raw.response);
    const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    const { choices } = await client.completions.create({
      ...{ model: "between", prompt: "def f(", suffix: "return x", temperature: 0, max_tokens: 6 },
    });
    expect(choices[0].text).toBe(raw.response);
    // What a caller spells stays text: the template's own tokens are its alone.
    const spelled = await ollama.generate({ ...asked, suffix: "<|im_end|>", raw: false });
    expect(spelled.prompt_eval_count).toBeGreaterThan(raw.prompt_eval_count);
    await expect(ollama.generate({ ...asked, model: "smollm2" })).rejects.toMatchObject({
      status_code: 400,
      error: expect.stringContaining("insert"),
    });
    await expect(ollama.generate({ ...asked, system: "Be kind." })).rejects.toMatchObject({ status_code: 400 });
    await ollama.delete({ model: "between" });
  });

  it("takes another template for one request, and refuses what is none", async () => {
    const asked = { model: "smollm2", prompt: "Hi", system: "Be kind." };
    expect(await rendered({ ...asked, template: "[{{ .System }}] {{ .Prompt }} ->" })).toBe("[Be kind.] Hi ->");
    expect(await rendered(asked)).not.toContain("->");
    for (const template of ["{{ if }", "{{ nothing .Prompt }}"]) {
      await expect(ollama.generate({ ...asked, template })).rejects.toMatchObject({
        status_code: 400,
        error: expect.stringContaining("template"),
      });
    }
  });

  it("shows a template the reasoning of earlier answers", async () => {
    const template = "{{ range .Messages }}({{ .Role }}|{{ .Thinking }}|{{ .Content }}){{ end }}";
    await ollama.create({ model: "thoughts", from: "smollm2", template });
    const messages = [
      { role: "user", content: "2+2?" },
      { role: "assistant", content: "4", thinking: "Easy." },
      { role: "user", content: "3+3?" },
    ];
    const answer = await ollama.chat({ model: "thoughts", messages, _debug_render_only: true } as never);
    expect(answer).toMatchObject({
      _debug_info: { rendered_template: "(user||2+2?)(assistant|Easy.|4)(user||3+3?)" },
    });
    const wrong = [{ role: "user", content: "Hi", thinking: "Hm." }];
    await expect(ollama.chat({ model: "thoughts", messages: wrong })).rejects.toThrow(/thinking/);
    await ollama.delete({ model: "thoughts" });
  });

  it("counts times that add up", async () => {
    const { load_duration, prompt_eval_duration, eval_duration, total_duration } = await ollama.generate({
      model: "smollm2",
      prompt: "Once upon a time",
      options: { ...greedy, num_predict: 30 },
    });
    const parts = [load_duration, prompt_eval_duration, eval_duration];
    for (const part of parts) expect(Number.isInteger(part) && part > 0).toBe(true);
    expect(parts.reduce((a, b) => a + b, 0)).toBeLessThanOrEqual(total_duration);
  });

  it("takes blobs whole, with the digest they come under, or not at all", async () => {
    const content = readFileSync(join(tiny, "config.json"));
    const digest = `sha256:${createHash("sha256").update(content).update("more").digest("hex")}`;
    const url = `${server.url}/api/blobs/${digest}`;
    const head = async () => (await fetch(url, { method: "HEAD" })).status;
    expect(await head()).toBe(404);
    const wrong = await fetch(url, { method: "POST", body: content });
    expect([wrong.status, await wrong.json()]).toEqual([400, { error: expect.stringContaining("digest") }]);
    expect(await head()).toBe(404);
    const whole = Buffer.concat([content, Buffer.from("more")]);
    for (const type of ["application/octet-stream", "application/json"]) {
      const right = await fetch(url, { method: "POST", body: whole, headers: { "content-type": type } });
      expect([right.status, await right.text()]).toEqual([201, ""]);
    }
    expect(await head()).toBe(200);
    expect((await fetch(`${server.url}/api/blobs/nonsense`, { method: "POST", body: "x" })).status).toBe(400);
  });
});
