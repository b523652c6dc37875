// OpenAI's responses over a real socket with OpenAI's own client, on a scripted engine, and the database behind them.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import type OpenAI from "openai";
import { afterEach, describe, expect, it } from "vitest";
import type { GenerateRequest } from "../../src/engine/types.js";
import { Database } from "../../src/server/database.js";
import { digestOf } from "../../src/server/keys.js";
import { eos, ids, letters, type Script } from "../session/fakes.js";
import { type Rig, type RigOptions, rig, until } from "./support.js";

const open: Rig[] = [];
const folders: string[] = [];
const folder = () => {
  const made = mkdtempSync(join(tmpdir(), "millrace-responses-"));
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
    await server.close();
  }
  for (const made of folders.splice(0)) rmSync(made, { recursive: true, force: true });
});

const answers = (...texts: string[]) => {
  const requests: GenerateRequest[] = [];
  const script: Script = (request, _index, position) => {
    if (!requests.includes(request)) requests.push(request);
    const text = texts[Math.min(requests.indexOf(request), texts.length - 1)];
    return [...ids(text), eos][position] ?? eos;
  };
  const prompt = (index: number) => new TextDecoder().decode(Uint8Array.from(requests[index].promptIds.slice(1)));
  return { script, requests, prompt };
};

const model = "tiny";
const tools: OpenAI.Responses.Tool[] = [
  {
    type: "function",
    name: "add",
    description: "Adds",
    parameters: {
      type: "object",
      properties: { a: { type: "integer" } },
      required: ["a"],
      additionalProperties: false,
    },
    strict: true,
  },
];
const call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>';

async function gathered(stream: AsyncIterable<OpenAI.Responses.ResponseStreamEvent>) {
  const all: OpenAI.Responses.ResponseStreamEvent[] = [];
  for await (const event of stream) all.push(event);
  return all;
}

/** Without what is new each time. */
function plain(response: object): object {
  const text = JSON.stringify(response, (key, value) =>
    /^(id|call_id|created_at|completed_at)$/.test(key) ? "" : value,
  );
  return JSON.parse(text);
}

describe("a response", () => {
  it("answers whole, with usage and everything that was asked echoed", async () => {
    const { client } = await start();
    const response = await client.responses.create({
      model,
      input: "Hi",
      instructions: "Be brief.",
      metadata: { a: "b" },
      temperature: 0.5,
      max_output_tokens: 100,
    });
    expect(response.output_text).toBe("Hello world");
    expect(response).toMatchObject({
      object: "response",
      status: "completed",
      model,
      instructions: "Be brief.",
      metadata: { a: "b" },
      temperature: 0.5,
      max_output_tokens: 100,
      error: null,
      incomplete_details: null,
      parallel_tool_calls: true,
      truncation: "disabled",
      store: true,
    });
    expect(response.id).toMatch(/^resp_/);
    expect(response.output).toMatchObject([{ type: "message", role: "assistant", status: "completed" }]);
    const prompt = "system: Be brief.\nuser: Hi\nassistant: ".length + 1;
    expect(response.usage).toMatchObject({ input_tokens: prompt, output_tokens: 4, total_tokens: prompt + 4 });
  });

  it("streams every event once, numbered and in OpenAI's order, and adds up to the whole", async () => {
    const { client } = await start();
    const body = { model, input: "Hi" };
    const events = await gathered(await client.responses.create({ ...body, stream: true }));
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index));
    const types = events.map((event) => event.type);
    expect(types.filter((type, at) => type !== types[at - 1])).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.completed",
    ]);
    const last = events.at(-1) as OpenAI.Responses.ResponseCompletedEvent;
    expect(plain(last.response)).toEqual(plain(await client.responses.create(body).then(withoutText)));
    const helped = await client.responses.stream(body).finalResponse();
    expect(helped.output_text).toBe("Hello world");
  });

  it("gives calls as items, streamed and whole alike, and takes their outputs", async () => {
    const said = `Let me see.\n${call}`;
    const { script, prompt, requests } = answers(said, said, "Three");
    const { client } = await start({ script });
    const body = { model, input: "1?", tools };
    const whole = await client.responses.create(body);
    expect(whole.output.map(({ type }) => type)).toEqual(["message", "function_call"]);
    const made = whole.output[1] as OpenAI.Responses.ResponseFunctionToolCall;
    expect(made).toMatchObject({ name: "add", arguments: '{"a": 1}', status: "completed" });
    const events = await gathered(await client.responses.create({ ...body, stream: true }));
    expect(plain((events.at(-1) as OpenAI.Responses.ResponseCompletedEvent).response)).toEqual(
      plain(withoutText(whole)),
    );
    const types = events.map((event) => event.type);
    expect(types.indexOf("response.output_text.done")).toBeLessThan(
      types.indexOf("response.function_call_arguments.delta"),
    );
    expect(events.find((event) => event.type === "response.function_call_arguments.done")).toMatchObject({
      arguments: '{"a": 1}',
      name: "add",
    });
    const next = await client.responses.create({
      model,
      previous_response_id: whole.id,
      input: [{ type: "function_call_output", call_id: made.call_id, output: "3" }],
      tools,
    });
    expect(next.output_text).toBe("Three");
    expect(prompt(2)).toContain("user: 1?\n");
    expect(prompt(2)).toContain("<tool_response>\n3\n");
    expect(requests).toHaveLength(3);
  });

  it("constrains to a schema, as the client's parser reads it", async () => {
    const { script, requests } = answers('{"a": 1}');
    const { client } = await start({ script });
    const schema = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
    const format = { type: "json_schema" as const, name: "it", schema, strict: true };
    const response = await client.responses.create({ model, input: "Hi", text: { format } });
    expect(JSON.parse(response.output_text)).toEqual({ a: 1 });
    expect(requests[0].grammar).toBeDefined();
  });

  it("is incomplete where it was cut, in the stream too", async () => {
    const { client } = await start({ script: letters });
    const body = { model, input: "Hi", max_output_tokens: 5 };
    const whole = await client.responses.create(body);
    expect(whole).toMatchObject({ status: "incomplete", incomplete_details: { reason: "max_output_tokens" } });
    expect(whole.output).toMatchObject([{ status: "incomplete" }]);
    const events = await gathered(await client.responses.create({ ...body, stream: true }));
    expect(events.at(-1)!.type).toBe("response.incomplete");
  });

  it("tells log-probabilities where they are included", async () => {
    const { client } = await start();
    const include = ["message.output_text.logprobs" as const];
    const response = await client.responses.create({ model, input: "Hi", include, top_logprobs: 2 });
    const [message] = response.output as OpenAI.Responses.ResponseOutputMessage[];
    const [part] = message.content as OpenAI.Responses.ResponseOutputText[];
    expect(part.logprobs!.map(({ token }) => token).join("")).toBe("Hello world");
    const events = await gathered(await client.responses.create({ model, input: "Hi", include, stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    expect(
      deltas
        .flatMap(({ logprobs }) => logprobs)
        .map(({ token }) => token)
        .join(""),
    ).toBe("Hello world");
  });

  it("refuses by name what it does not do", async () => {
    const { post } = await start();
    const refused = async (more: object) => {
      const answer = await post("/v1/responses", { model, input: "Hi", ...more });
      return [answer.status, ((await answer.json()) as { error: { param: string } }).error.param];
    };
    expect(await refused({ conversation: "conv_1" })).toEqual([400, "conversation"]);
    expect(await refused({ tools: [{ type: "web_search" }] })).toEqual([400, "tools[0].type"]);
    expect(await refused({ include: ["reasoning.encrypted_content"] })).toEqual([400, "include[0]"]);
    expect(await refused({ background: true, store: false })).toEqual([400, "store"]);
    expect(await refused({ top_logprobs: 3 })).toEqual([400, "top_logprobs"]);
    expect(await refused({ input: [{ type: "input_image" }] })).toEqual([400, "input[0].type"]);
    expect(await refused({ input: "x".repeat(5000) })).toEqual([400, "input"]);
  });

  it("drops the oldest turns where truncation says so, and keeps the instructions", async () => {
    const { script, prompt } = answers("ok");
    const { client } = await start({ script });
    const turn = (text: string) => [
      { role: "user" as const, content: text.repeat(600) },
      { role: "assistant" as const, content: "yes" },
    ];
    const input = [...turn("one "), ...turn("two "), ...turn("six "), { role: "user" as const, content: "now?" }];
    const body = { model, instructions: "Rules.", input, max_output_tokens: 10 };
    await expect(client.responses.create(body)).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
    const { data, response } = await client.responses.create({ ...body, truncation: "auto" }).withResponse();
    const { context } = data.usage as never as { context: { kept: number; cut: number; cached: number } };
    expect(context).toEqual({ kept: prompt(0).length + 1, cut: expect.any(Number), cached: 0 });
    expect(context.cut).toBeGreaterThan(2 * 2400);
    expect(response.headers.get("x-context-cut")).toBe(String(context.cut));
    expect(prompt(0)).toMatch(/^system: Rules\.\nuser: six /);
    expect(prompt(0)).toContain("user: now?");
  });
});

const withoutText = ({ output_text: _, ...rest }: OpenAI.Responses.Response) => rest;

describe("stored responses", () => {
  it("come back, list their input, continue a conversation, and go", async () => {
    const { script, prompt } = answers("One", "Two");
    const { client } = await start({ script });
    const first = await client.responses.create({ model, input: "a?", instructions: "Not inherited." });
    const second = await client.responses.create({ model, input: "b?", previous_response_id: first.id });
    expect(prompt(1)).toBe("user: a?\nassistant: One\nuser: b?\nassistant: ");
    expect(await client.responses.retrieve(second.id)).toEqual(second);
    const items = [];
    for await (const item of client.responses.inputItems.list(second.id, { order: "asc" })) items.push(item);
    expect(items).toMatchObject([{ type: "message", role: "user", content: [{ type: "input_text", text: "b?" }] }]);
    await client.responses.delete(first.id);
    await expect(client.responses.retrieve(first.id)).rejects.toMatchObject({ status: 404 });
    await expect(
      client.responses.create({ model, input: "c?", previous_response_id: second.id }),
    ).rejects.toMatchObject({ status: 400, code: "previous_response_not_found" });
  });

  it("are not kept where store is false", async () => {
    const { client } = await start();
    const { id } = await client.responses.create({ model, input: "Hi", store: false });
    await expect(client.responses.retrieve(id)).rejects.toMatchObject({ status: 404 });
  });

  it("are seen by their own key alone", async () => {
    const key = (name: string) => ({ name, scopes: new Set(["infer" as const]), digest: digestOf(name) });
    const { client } = await start({ keys: [key("ann"), key("bob")] });
    const ann = client.withOptions({ apiKey: "ann" });
    const bob = client.withOptions({ apiKey: "bob" });
    const { id } = await ann.responses.create({ model, input: "Hi" });
    expect((await ann.responses.retrieve(id)).id).toBe(id);
    await expect(bob.responses.retrieve(id)).rejects.toMatchObject({ status: 404 });
    await expect(bob.responses.delete(id)).rejects.toMatchObject({ status: 404 });
    await expect(bob.responses.create({ model, input: "x", previous_response_id: id })).rejects.toMatchObject({
      status: 400,
    });
  });

  it("outlive the server", async () => {
    const recordsFolder = folder();
    const first = await start({ recordsFolder });
    const { id } = await first.client.responses.create({ model, input: "Hi" });
    await first.server.close();
    const second = await start({ recordsFolder });
    expect((await second.client.responses.retrieve(id)).output_text).toBe("Hello world");
  });

  it("are refused with words where the database is damaged; what is not stored works", async () => {
    const recordsFolder = folder();
    writeFileSync(join(recordsFolder, "server.db"), "no database at all ".repeat(500));
    const { client } = await start({ recordsFolder });
    await expect(client.responses.create({ model, input: "Hi" })).rejects.toMatchObject({
      status: 503,
      code: "database_damaged",
    });
    expect((await client.responses.create({ model, input: "Hi", store: false })).output_text).toBe("Hello world");
  });
});

describe("background responses", () => {
  const ends = async (client: OpenAI, id: string) => {
    for (;;) {
      const response = await client.responses.retrieve(id);
      if (response.status !== "queued" && response.status !== "in_progress") return response;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };

  it("are answered at once and worked on without their caller", async () => {
    const { client } = await start();
    const begun = await client.responses.create({ model, input: "Hi", background: true });
    expect(begun).toMatchObject({ status: "queued", background: true, output: [] });
    expect(await ends(client, begun.id)).toMatchObject({ status: "completed", output_text: "Hello world" });
  });

  it("stream, also from the middle and to who comes later", async () => {
    const { client } = await start();
    const stream = await client.responses.create({ model, input: "Hi", background: true, stream: true });
    const events = await gathered(stream);
    expect(events.slice(0, 3).map(({ type }) => type)).toEqual([
      "response.created",
      "response.queued",
      "response.in_progress",
    ]);
    expect(events.at(-1)!.type).toBe("response.completed");
    const { id } = (events[0] as OpenAI.Responses.ResponseCreatedEvent).response;
    const again = await gathered(await client.responses.retrieve(id, { stream: true, starting_after: 3 }));
    expect(again).toEqual(events.slice(4));
  });

  it("go on when who followed them leaves, and end when they are cancelled", async () => {
    const { client, engine } = await start({ script: letters });
    engine.pace = 5;
    const stream = await client.responses.create({ model, input: "Hi", background: true, stream: true });
    let id = "";
    for await (const event of stream) {
      if (event.type === "response.created") id = event.response.id;
      if (event.type === "response.output_text.delta") break;
    }
    expect((await client.responses.retrieve(id)).status).toBe("in_progress");
    expect(engine.aborts).toEqual([]);
    const cancelled = await client.responses.cancel(id);
    expect(cancelled.status).toBe("cancelled");
    expect(cancelled.output).toMatchObject([{ type: "message", status: "incomplete" }]);
    expect(await client.responses.retrieve(id)).toMatchObject({ status: "cancelled" });
    await until(() => engine.aborts.length > 0);
    expect((await client.responses.cancel(id)).status).toBe("cancelled");
  });

  it("fail, and say why, where they cannot be answered", async () => {
    const { client } = await start();
    const { id } = await client.responses.create({ model, input: "x".repeat(5000), background: true });
    expect(await ends(client, id)).toMatchObject({ status: "failed", error: { code: "context_length_exceeded" } });
    const unknown = client.responses.create({ model: "none", input: "Hi", background: true });
    await expect(unknown).rejects.toMatchObject({ status: 404 });
  });

  it("have failed where their server ended, in order", async () => {
    const recordsFolder = folder();
    const first = await start({ recordsFolder, script: letters, drainMs: 50 });
    first.engine.pace = 20;
    const { id } = await first.client.responses.create({ model, input: "Hi", background: true });
    await first.server.close();
    const second = await start({ recordsFolder });
    expect(await second.client.responses.retrieve(id)).toMatchObject({ status: "failed" });
  });

  it("have failed where their server was killed, and are seen and ended from other servers of the home", async () => {
    const recordsFolder = folder();
    const one = await start({ recordsFolder, script: letters });
    one.engine.pace = 5;
    const { id } = await one.client.responses.create({ model, input: "Hi", background: true });
    const two = await start({ recordsFolder });
    expect(["queued", "in_progress"]).toContain((await two.client.responses.retrieve(id)).status);
    // As a killed server leaves it: its process is no more.
    const database = Database.open(join(recordsFolder, "server.db"));
    const { pid } = spawnSync(process.execPath, ["--version"]);
    database.run("INSERT INTO servers VALUES ('dead', ?, ?, ?)", hostname(), pid, Date.now());
    const { body } = database.get<{ body: string }>("SELECT body FROM responses")!;
    const left = body.replaceAll(id, "resp_left");
    database.run(
      "INSERT INTO responses (id, client, created, server, input, body) VALUES ('resp_left', '', ?, 'dead', '[]', ?)",
      Math.floor(Date.now() / 1000),
      left,
    );
    database.close();
    const three = await start({ recordsFolder });
    expect(await three.client.responses.retrieve("resp_left")).toMatchObject({
      status: "failed",
      error: { code: "server_error" },
    });
    expect((await two.client.responses.cancel(id)).status).toBe("cancelled");
    await until(() => one.engine.aborts.length > 0, 20_000);
    expect((await one.client.responses.retrieve(id)).status).toBe("cancelled");
  });
});
