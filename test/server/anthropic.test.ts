// Anthropic's API with its own client.
import Anthropic from "@anthropic-ai/sdk";
import { afterEach, describe, expect, it } from "vitest";
import { letters } from "../session/fakes.js";
import { type Rig, type RigOptions, rig } from "./support.js";

const open: Rig[] = [];
const start = async (options?: RigOptions) => {
  const one = await rig(options);
  open.push(one);
  const client = new Anthropic({ baseURL: one.server.url, apiKey: "secret", maxRetries: 0 });
  return { ...one, client };
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

const ask = { model: "tiny", max_tokens: 20, messages: [{ role: "user" as const, content: "Hi" }] };

describe("messages", () => {
  it("answers with a text block and usage", async () => {
    const { client, engine } = await start();
    engine.cachedTokens = 4;
    const answer = await client.messages.create({ ...ask, system: "Be brief." });
    expect(answer).toMatchObject({ type: "message", role: "assistant", model: "tiny", stop_reason: "end_turn" });
    expect(answer.content).toEqual([{ type: "text", text: "Hello world" }]);
    const { input_tokens } = await client.messages.countTokens({
      model: "tiny",
      system: "Be brief.",
      messages: ask.messages,
    });
    expect(answer.usage).toMatchObject({
      input_tokens: input_tokens - 4,
      cache_read_input_tokens: 4,
      output_tokens: 4,
    });
  });

  it("streams the same message", async () => {
    const { client } = await start();
    const types: string[] = [];
    const stream = client.messages.stream(ask).on("streamEvent", ({ type }) => types.push(type));
    const answer = await stream.finalMessage();
    expect(answer.content).toEqual([{ type: "text", text: "Hello world" }]);
    expect([answer.stop_reason, answer.usage.output_tokens]).toEqual(["end_turn", 4]);
    expect(types[0]).toBe("message_start");
    expect(types.slice(-3)).toEqual(["content_block_stop", "message_delta", "message_stop"]);
  });

  it("says why it ended", async () => {
    const { client } = await start();
    const cut = await client.messages.create({ ...ask, max_tokens: 2 });
    expect([cut.stop_reason, cut.content]).toEqual(["max_tokens", [{ type: "text", text: "Hello wor" }]]);
    const stopped = await client.messages.create({ ...ask, stop_sequences: ["wor"] });
    expect([stopped.stop_reason, stopped.stop_sequence]).toEqual(["stop_sequence", "wor"]);
    expect(stopped.content).toEqual([{ type: "text", text: "Hello " }]);
  });

  it("takes system and messages as blocks, calls of tools and their results", async () => {
    const { client, post } = await start();
    const said = await client.messages.create({
      ...ask,
      system: [{ type: "text", text: "Be brief.", cache_control: { type: "ephemeral" } }],
      messages: [
        { role: "user", content: [{ type: "text", text: "Weather?" }] },
        { role: "assistant", content: [{ type: "tool_use", id: "t1", name: "weather", input: { city: "Bern" } }] },
        {
          role: "user",
          content: [
            { type: "tool_result", tool_use_id: "t1", content: "rain" },
            { type: "text", text: "So?" },
          ],
        },
      ],
    });
    expect(said.content).toHaveLength(1);
    const foreign = { role: "assistant", content: [{ type: "tool_result", tool_use_id: "t1" }] };
    const wrong = await post("/v1/messages", { ...ask, messages: [foreign, ...ask.messages] });
    expect([wrong.status, ((await wrong.json()) as { error: { message: string } }).error.message]).toEqual([
      400,
      "A message of the assistant cannot have a tool_result block.",
    ]);
  });

  it("refuses in Anthropic's shape", async () => {
    const { client, post } = await start();
    await expect(client.messages.create({ ...ask, model: "none" })).rejects.toMatchObject({
      status: 404,
      error: { type: "error", error: { type: "not_found_error" } },
    });
    await expect(client.messages.create({ ...ask, max_tokens: 0 })).rejects.toThrow(/max_tokens.* must be an integer/);
    await expect(
      client.messages.create({ ...ask, messages: [...ask.messages, { role: "assistant", content: "Well" }] }),
    ).rejects.toThrow("The last message must be the user's");
    const unknown = (await (await post("/v1/messages", { ...ask, container: "x" })).json()) as { request_id: string };
    expect(unknown).toMatchObject({ type: "error", error: { type: "invalid_request_error" } });
    expect(unknown.request_id).toBeTruthy();
  });

  it("says a failure in the middle of a stream as an event", async () => {
    const { client, engine } = await start({ script: letters, contextLength: 4096 });
    const failing = (async () => {
      for await (const { type } of await client.messages.create({ ...ask, max_tokens: 4000, stream: true })) {
        if (type === "content_block_delta") engine.die();
      }
    })();
    await expect(failing).rejects.toThrow("The engine's process ended.");
  });
});

it("takes a key as Anthropic's clients send it", async () => {
  const { client, server } = await start({ apiKeys: ["secret"] });
  expect((await client.messages.create(ask)).content).toHaveLength(1);
  const other = new Anthropic({ baseURL: server.url, apiKey: "wrong", maxRetries: 0 });
  await expect(other.messages.create(ask)).rejects.toMatchObject({ status: 401 });
});
