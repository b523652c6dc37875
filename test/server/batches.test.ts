// OpenAI's files and batches over a real socket with OpenAI's own client, on a scripted engine; and a server of its own that is
// killed in the middle of a batch.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import OpenAI, { toFile } from "openai";
import { afterEach, describe, expect, it } from "vitest";
import { digestOf } from "../../src/server/keys.js";
import { eos, ids, letters, type Script } from "../session/fakes.js";
import { type Rig, type RigOptions, rig } from "./support.js";

const open: Rig[] = [];
const children: ChildProcess[] = [];
const folders: string[] = [];
const folder = () => {
  const made = mkdtempSync(join(tmpdir(), "millrace-batches-"));
  folders.push(made);
  return made;
};
const start = async (options: RigOptions = {}) => {
  const one = await rig({ contextLength: 4096, recordsFolder: folder(), ...options });
  open.push(one);
  return one;
};
afterEach(async () => {
  for (const { server, engine } of open.splice(0)) {
    engine.paused = false;
    engine.pace = 0;
    await server.close();
  }
  for (const child of children.splice(0)) child.kill("SIGKILL");
  for (const made of folders.splice(0)) rmSync(made, { recursive: true, force: true });
});

const chat = "/v1/chat/completions" as const;
const request = (id: string, body: object, url: string = chat) =>
  JSON.stringify({ custom_id: id, method: "POST", url, body: { model: "tiny", ...body } });
const ask = (id: string, more: object = {}) => request(id, { messages: [{ role: "user", content: id }], ...more });

const upload = async (client: OpenAI, lines: readonly string[]) =>
  client.files.create({ file: await toFile(Buffer.from(lines.join("\n")), "input.jsonl"), purpose: "batch" });

async function batchOf(client: OpenAI, lines: readonly string[], more: Partial<OpenAI.BatchCreateParams> = {}) {
  const { id } = await upload(client, lines);
  return client.batches.create({ input_file_id: id, endpoint: chat, completion_window: "24h", ...more });
}

async function ended(client: OpenAI, id: string, ms = 20_000) {
  for (const from = Date.now(); ; ) {
    const batch = await client.batches.retrieve(id);
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status)) return batch;
    if (Date.now() - from > ms) throw new Error(`the batch is still ${batch.status}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

interface Result {
  custom_id: string | null;
  response: { status_code: number; request_id: string; body: OpenAI.ChatCompletion } | null;
  error: { code: string; line: number } | null;
}

async function results(client: OpenAI, file: string | null | undefined): Promise<Result[]> {
  if (!file) return [];
  const text = await (await client.files.content(file)).text();
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
}

describe("files", () => {
  it("are uploaded, listed page by page, read back and deleted", async () => {
    const recordsFolder = folder();
    const { client } = await start({ recordsFolder });
    const made = [];
    for (const name of ["a", "b", "c"]) made.push((await upload(client, [name])).id);
    expect(await client.files.retrieve(made[0])).toMatchObject({
      object: "file",
      bytes: 1,
      purpose: "batch",
      filename: "input.jsonl",
      status: "processed",
    });
    const listed = [];
    for await (const file of client.files.list({ limit: 2, order: "asc" })) listed.push(file.id);
    expect(listed).toEqual(made);
    expect(await (await client.files.content(made[1])).text()).toBe("b");
    expect(await client.files.delete(made[1])).toEqual({ id: made[1], object: "file", deleted: true });
    await expect(client.files.retrieve(made[1])).rejects.toMatchObject({ status: 404 });
    expect(readdirSync(join(recordsFolder, "files"))).toHaveLength(2);
  });

  it("keep their bytes, whatever they look like to a parser of parts", async () => {
    const { client } = await start();
    const bytes = Buffer.concat(
      Array.from({ length: 3000 }, (_, index) => Buffer.from(`\r\n--${index % 7}\r\n\0${index}\r`)),
    );
    const { id } = await client.files.create({ file: await toFile(bytes, 'a "b".jsonl'), purpose: "batch" });
    expect(Buffer.from(await (await client.files.content(id)).arrayBuffer()).equals(bytes)).toBe(true);
  });

  it("are refused with words where the upload is no file for a batch", async () => {
    const recordsFolder = folder();
    const { client, server } = await start({ recordsFolder });
    const file = await toFile(Buffer.from("x"), "x");
    await expect(client.files.create({ file, purpose: "fine-tune" })).rejects.toMatchObject({
      status: 400,
      param: "purpose",
    });
    const post = (body: string | FormData, type?: string) =>
      fetch(`${server.url}/v1/files`, { method: "POST", body, headers: type ? { "content-type": type } : {} });
    const form = new FormData();
    form.set("purpose", "batch");
    expect((await post(form)).status).toBe(400);
    expect((await post("--x\r\ncut", "multipart/form-data; boundary=x")).status).toBe(400);
    expect((await post("{}", "multipart/form-data")).status).toBe(400);
    const json = await fetch(`${server.url}/v1/chat/completions`, { method: "POST", body: form });
    expect(json.status).toBe(415);
    expect(readdirSync(join(recordsFolder, "files"))).toEqual([]);
  });
});

describe("batches", () => {
  it("answer every line, in order, and say what each used", async () => {
    const { client } = await start();
    const lines = Array.from({ length: 20 }, (_, index) => ask(`line-${index}`));
    const begun = await batchOf(client, lines, { metadata: { a: "b" } });
    expect(begun).toMatchObject({ object: "batch", status: "validating", metadata: { a: "b" } });
    const batch = await ended(client, begun.id);
    expect(batch).toMatchObject({
      status: "completed",
      request_counts: { total: 20, completed: 20, failed: 0 },
      model: "tiny",
    });
    expect(batch.error_file_id).toBeNull();
    expect(batch.usage!.output_tokens).toBe(80);
    const output = await results(client, batch.output_file_id);
    expect(output.map(({ custom_id }) => custom_id)).toEqual(lines.map((_, index) => `line-${index}`));
    for (const { response } of output) {
      expect(response).toMatchObject({ status_code: 200 });
      expect(response!.body.choices[0].message.content).toBe("Hello world");
    }
    const listed = [];
    for await (const one of client.batches.list()) listed.push(one.id);
    expect(listed).toEqual([batch.id]);
  });

  it("serve completions and responses as well", async () => {
    const { client } = await start();
    const each = {
      "/v1/completions": { prompt: "Hi", max_tokens: 8 },
      "/v1/responses": { input: "Hi" },
    } as const;
    for (const [endpoint, body] of Object.entries(each) as [keyof typeof each, object][]) {
      const batch = await ended(client, (await batchOf(client, [request("a", body, endpoint)], { endpoint })).id);
      const [{ response }] = await results(client, batch.output_file_id);
      expect(JSON.stringify(response)).toContain("Hello world");
    }
  });

  it("tell bad lines by number and answer the others", async () => {
    const { client } = await start();
    const bad = [
      "{ no json",
      JSON.stringify({ custom_id: "b", method: "GET", url: chat, body: {} }),
      request("c", {}, "/v1/completions"),
      ask("a"),
      ask("d", { stream: true }),
      ask("e", { temperature: 9 }),
      ask("f", { model: "unknown" }),
    ];
    const batch = await ended(client, (await batchOf(client, [ask("a"), ...bad, "", ask("z")])).id);
    expect(batch.status).toBe("completed");
    expect(batch.request_counts).toEqual({ total: 9, completed: 2, failed: 7 });
    expect(batch.errors!.data!.map(({ line }) => line)).toEqual([2, 3, 4, 5, 6]);
    expect((await results(client, batch.output_file_id)).map(({ custom_id }) => custom_id)).toEqual(["a", "z"]);
    const errors = await results(client, batch.error_file_id);
    expect(errors.map(({ error, response }) => error?.code ?? response!.status_code)).toEqual([
      "invalid_json_line",
      "invalid_method",
      "mismatched_url",
      "duplicate_custom_id",
      "unsupported_field",
      400,
      404,
    ]);
  });

  it("fail where the input has no lines, and refuse what is no batch", async () => {
    const { client, post } = await start();
    const empty = await ended(client, (await batchOf(client, ["", ""])).id);
    expect(empty).toMatchObject({ status: "failed", errors: { data: [{ code: "empty_file" }] } });
    await expect(
      client.batches.create({ input_file_id: "file-none", endpoint: chat, completion_window: "24h" }),
    ).rejects.toMatchObject({ status: 404 });
    const wrong = await post("/v1/batches", {
      input_file_id: "x",
      endpoint: "/v1/moderations",
      completion_window: "24h",
    });
    expect(wrong.status).toBe(400);
  });

  it("end when they are cancelled, and keep what was answered", async () => {
    const script: Script = (asked, index, position) =>
      asked.promptIds.includes(33) ? letters(asked, index, position) : ([...ids("ok"), eos][position] ?? eos);
    const { client, engine } = await start({ script });
    engine.pace = 2;
    const lines = [ask("first"), ...Array.from({ length: 8 }, (_, index) => ask(`long ${index}!`))];
    const { id, input_file_id } = await batchOf(client, lines);
    for (;;) if ((await client.batches.retrieve(id)).request_counts!.completed === 1) break;
    await expect(client.files.delete(input_file_id)).rejects.toMatchObject({ status: 409 });
    expect((await client.batches.cancel(id)).status).toBe("cancelling");
    const batch = await ended(client, id);
    expect(batch).toMatchObject({ status: "cancelled", request_counts: { total: 9, completed: 1, failed: 0 } });
    expect((await results(client, batch.output_file_id)).map(({ custom_id }) => custom_id)).toEqual(["first"]);
    const errors = await results(client, batch.error_file_id);
    expect(errors.map(({ error }) => error!.code)).toEqual(Array(8).fill("batch_cancelled"));
    await expect(client.batches.cancel(id)).resolves.toMatchObject({ status: "cancelled" });
  });

  it("expire with what they have", async () => {
    const { client, engine } = await start({ script: letters });
    engine.pace = 2;
    const { id } = await batchOf(client, [ask("a"), ask("b")], { completion_window: "1s" as "24h" });
    const batch = await ended(client, id);
    expect(batch.status).toBe("expired");
    expect((await results(client, batch.error_file_id)).map(({ error }) => error!.code)).toEqual([
      "batch_expired",
      "batch_expired",
    ]);
  });

  it("are asked as their key, which alone sees them, and behind everybody who waits", async () => {
    const key = (name: string) => ({ name, scopes: new Set(["infer" as const]), digest: digestOf(name) });
    const asked: { client?: string; priority: number }[] = [];
    const script: Script = (one, _index, position) => {
      if (position === 0) asked.push(one);
      return [...ids("ok"), eos][position] ?? eos;
    };
    const { client } = await start({ keys: [key("ann"), key("bob")], script });
    const ann = client.withOptions({ apiKey: "ann" });
    const bob = client.withOptions({ apiKey: "bob" });
    const batch = await ended(ann, (await batchOf(ann, [ask("a")])).id);
    await bob.chat.completions.create({ model: "tiny", messages: [{ role: "user", content: "x" }] });
    expect(asked.map((one) => one.client)).toEqual(["ann", "bob"]);
    expect(asked[0].priority).toBeGreaterThan(asked[1].priority);
    await expect(bob.batches.retrieve(batch.id)).rejects.toMatchObject({ status: 404 });
    await expect(bob.files.content(batch.output_file_id!)).rejects.toMatchObject({ status: 404 });
    expect((await bob.batches.list()).data).toEqual([]);
    expect((await bob.files.list()).data).toEqual([]);
  });

  it("are worked on by one of several servers of the home, and answered by each", async () => {
    const recordsFolder = folder();
    const one = await start({ recordsFolder });
    const two = await start({ recordsFolder });
    const asked: string[] = [];
    const script: Script = ({ id }, _index, position) => {
      if (position === 0) asked.push(id);
      return [...ids("ok"), eos][position] ?? eos;
    };
    for (const { engine } of [one, two]) engine.script = script;
    const lines = Array.from({ length: 10 }, (_, index) => ask(`line-${index}`));
    const begun = await Promise.all([batchOf(one.client, lines), batchOf(two.client, lines)]);
    for (const { id } of begun) expect((await ended(two.client, id)).request_counts!.completed).toBe(10);
    expect(asked).toHaveLength(20);
  });

  it("go on where a server that ended in order left them", async () => {
    const recordsFolder = folder();
    const first = await start({ recordsFolder, drainMs: 5000 });
    first.engine.pace = 5;
    const lines = Array.from({ length: 40 }, (_, index) => ask(`line-${index}`));
    const { id } = await batchOf(first.client, lines);
    for (;;) if ((await first.client.batches.retrieve(id)).request_counts!.completed > 4) break;
    await first.server.close();
    const second = await start({ recordsFolder });
    const { request_counts: kept } = await second.client.batches.retrieve(id);
    expect(kept!.completed).toBeGreaterThan(4);
    const batch = await ended(second.client, id);
    expect(batch).toMatchObject({ status: "completed", request_counts: { total: 40, completed: 40, failed: 0 } });
    const output = await results(second.client, batch.output_file_id);
    expect(output.map(({ custom_id }) => custom_id)).toEqual(lines.map((_, index) => `line-${index}`));
  });
});

const tiny = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));
const command = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

/** `millrace serve` as it is run, in a home of its own. */
async function served(home: string): Promise<{ child: ChildProcess; client: OpenAI }> {
  const child = spawn(
    process.execPath,
    [command, "serve", tiny, "--id", "tiny", "--port", "0", "--json", "--threads", "1"],
    {
      env: { ...process.env, MILLRACE_HOME: home },
      stdio: ["ignore", "pipe", "inherit"],
    },
  );
  children.push(child);
  const { url } = await new Promise<{ url: string }>((resolve, reject) => {
    let text = "";
    child.stdout!.on("data", (piece) => {
      text += piece;
      if (text.includes("\n")) resolve(JSON.parse(text));
    });
    child.once("exit", () => reject(new Error("the server ended")));
  });
  return { child, client: new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }) };
}

describe("a server that is killed", () => {
  it("loses no line of a batch and tells none twice", async () => {
    const home = folder();
    const prompt = { prompt: [5, 6, 7], max_tokens: 12, ignore_eos: true };
    const lines = Array.from({ length: 80 }, (_, index) => request(`line-${index}`, prompt, "/v1/completions"));
    let { child, client } = await served(home);
    const { id } = await batchOf(client, lines, { endpoint: "/v1/completions" });
    let seen = 0;
    for (let kill = 0; kill < 2; kill++) {
      for (const from = seen; seen < from + 6; ) seen = (await client.batches.retrieve(id)).request_counts!.completed;
      const gone = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGKILL");
      await gone;
      ({ child, client } = await served(home));
      const { status, request_counts } = await client.batches.retrieve(id);
      expect(status).toBe("in_progress");
      expect(request_counts!.completed).toBeGreaterThanOrEqual(seen);
    }
    const batch = await ended(client, id, 120_000);
    expect(batch).toMatchObject({ status: "completed", request_counts: { total: 80, completed: 80, failed: 0 } });
    const output = await results(client, batch.output_file_id);
    expect(output.map(({ custom_id }) => custom_id)).toEqual(lines.map((_, index) => `line-${index}`));
    expect(output.every(({ response }) => response!.status_code === 200)).toBe(true);
  }, 240_000);
});
