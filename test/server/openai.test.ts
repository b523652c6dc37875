// The OpenAI routes over a real socket with OpenAI's own client, on a scripted engine.
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { eos, ids, letters, type Script, tokenBytes } from "../session/fakes.js";
import { type Rig, type RigOptions, rig, until } from "./support.js";

// The plain one is shared: it takes a while to start.
let plain: Rig;
beforeAll(async () => {
  plain = await rig();
});
afterAll(() => plain.server.close());

const open: Rig[] = [];
const start = async (options?: RigOptions) => {
  const one = await rig(options);
  open.push(one);
  return one;
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

const messages = [{ role: "user" as const, content: "Hi" }];
const says =
  (text: string): Script =>
  (_request, _index, position) =>
    [...ids(text), eos][position] ?? eos;

describe("chat completions", () => {
  it("answers whole, with usage and a fingerprint", async () => {
    const { client, engine } = await start();
    engine.cachedTokens = 3;
    const answer = await client.chat.completions.create({ model: "tiny", messages });
    expect(answer.object).toBe("chat.completion");
    expect(answer.id).toMatch(/^chatcmpl-/);
    expect(answer.system_fingerprint).toMatch(/^fp_/);
    expect(answer.choices).toMatchObject([
      { index: 0, message: { role: "assistant", content: "Hello world" }, finish_reason: "stop", logprobs: null },
    ]);
    const prompt = "user: Hi\nassistant: ".length + 1;
    expect(answer.usage).toEqual({
      prompt_tokens: prompt,
      completion_tokens: 4,
      total_tokens: prompt + 4,
      prompt_tokens_details: { cached_tokens: 3 },
      completion_tokens_details: { reasoning_tokens: 0 },
      context: { kept: prompt, cut: 0, cached: 3 },
    });
  });

  it("streams: role first, then text, the reason, usage, [DONE]", async () => {
    const { client, post } = await start();
    const body = { model: "tiny", messages, stream: true as const, stream_options: { include_usage: true } };
    const chunks = [];
    for await (const chunk of await client.chat.completions.create(body)) chunks.push(chunk);
    expect(chunks[0].choices[0].delta).toEqual({ role: "assistant", content: "" });
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    expect(text).toBe("Hello world");
    expect(chunks.at(-2)!.choices[0]).toMatchObject({ delta: {}, finish_reason: "stop" });
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 4 } });
    expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1);
    const raw = await (await post("/v1/chat/completions", body)).text();
    expect(raw.endsWith("\n\ndata: [DONE]\n\n")).toBe(true);
  });

  it("gives n choices, each with its own seed, whole and streamed alike", async () => {
    const { client } = await start({ script: letters });
    const body = { model: "tiny", messages, n: 3, max_tokens: 8, seed: 5 };
    const whole = await client.chat.completions.create(body);
    const texts = whole.choices.map((choice) => choice.message.content);
    expect(new Set(texts).size).toBe(3);
    expect(whole.choices.map((choice) => choice.index)).toEqual([0, 1, 2]);
    expect(whole.choices.every((choice) => choice.finish_reason === "length")).toBe(true);
    expect(whole.usage!.completion_tokens).toBe(24);
    const streamed = ["", "", ""];
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      for (const { index, delta } of chunk.choices) streamed[index] += delta.content ?? "";
    }
    expect(streamed).toEqual(texts);
    expect((await client.chat.completions.create(body)).choices.map((choice) => choice.message.content)).toEqual(texts);
    expect((await client.chat.completions.create({ ...body, seed: 6 })).choices[0].message.content).toBe(texts[1]);
  });

  it("stops at strings that cross token borders, and never sends a part of one", async () => {
    const { client, engine } = await start({ script: says("Hello world User: and more") });
    const body = { model: "tiny", messages, stop: ["\n\n", "User:"] };
    const whole = await client.chat.completions.create(body);
    expect(whole.choices[0]).toMatchObject({ message: { content: "Hello world " }, finish_reason: "stop" });
    expect(whole.choices[0]).toHaveProperty("stop_reason", "User:");
    const pieces: string[] = [];
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      pieces.push(chunk.choices[0].delta.content ?? "");
    }
    expect(pieces.join("")).toBe("Hello world ");
    expect(engine.aborts).toContain(0);
    const kept = { ...body, include_stop_str_in_output: true };
    expect((await client.chat.completions.create(kept)).choices[0].message.content).toBe("Hello world User:");
  });

  it("streams text held back for a stop string that did not come", async () => {
    const { client } = await start({ script: says("Hello Use") });
    const answer = await client.chat.completions.create({ model: "tiny", messages, stop: "User:" });
    expect(answer.choices[0].message.content).toBe("Hello Use");
  });

  it("never cuts a character in two", async () => {
    const { client } = await start({ script: says("a🙂é") });
    const pieces: string[] = [];
    const stream = await client.chat.completions.create({ model: "tiny", messages, stream: true });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) pieces.push(chunk.choices[0].delta.content);
    expect(pieces).toEqual(["a", "🙂", "é"]);
  });

  it("gives log-probabilities with bytes, the best tokens, and escapes for parts of characters", async () => {
    const { client } = await start({ script: says("Hello é") });
    const body = { model: "tiny", messages, logprobs: true, top_logprobs: 2 };
    const { content, refusal } = (await client.chat.completions.create(body)).choices[0].logprobs!;
    expect(refusal).toBeNull();
    expect(content!.map((entry) => entry.token)).toEqual(["Hello", " ", "\\xc3", "\\xa9"]);
    expect(content!.map((entry) => entry.bytes)).toEqual([[...tokenBytes(258)], [32], [0xc3], [0xa9]]);
    expect(content![1].top_logprobs).toEqual([
      { token: " ", logprob: -0.5, bytes: [32] },
      { token: "!", logprob: -1.5, bytes: [33] },
    ]);
    const streamed = [];
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      streamed.push(...(chunk.choices[0].logprobs?.content ?? []));
    }
    expect(streamed).toEqual(content);
  });

  it("reports token ids on request, those of the end included", async () => {
    const { client } = plain;
    const body = { model: "tiny", messages, return_token_ids: true };
    const whole = (await client.chat.completions.create(body)) as unknown as {
      prompt_token_ids: number[];
      choices: { token_ids: number[] }[];
    };
    expect(whole.choices[0].token_ids).toEqual([...ids("Hello world"), eos]);
    expect(whole.prompt_token_ids.length).toBe(21);
    const stream = await client.chat.completions.create({ ...body, stream: true });
    const streamed: number[] = [];
    for await (const chunk of stream) {
      streamed.push(...((chunk.choices[0] as unknown as { token_ids?: number[] }).token_ids ?? []));
    }
    expect(streamed).toEqual([...ids("Hello world"), eos]);
  });

  it("takes a conversation with tools' calls and answers in it", async () => {
    const { client } = plain;
    const call = { id: "c1", type: "function" as const, function: { name: "f", arguments: "{}" } };
    const answer = await client.chat.completions.create({
      model: "tiny",
      messages: [
        { role: "developer", content: [{ type: "text", text: "Be brief." }] },
        { role: "user", content: "Hi" },
        { role: "assistant", content: null, tool_calls: [call] },
        { role: "tool", tool_call_id: "c1", content: "42" },
      ],
    });
    expect(answer.choices[0].message.content).toBe("Hello world");
  });

  it("takes fields that spell out what happens anyway", async () => {
    const { post } = plain;
    const noOps = {
      audio: null,
      best_effort: null,
      function_call: "none",
      functions: [],
      logit_bias: {},
      logprobs: false,
      metadata: { a: "b" },
      modalities: ["text"],
      n: 1,
      parallel_tool_calls: true,
      prompt_cache_key: "k",
      response_format: { type: "text" },
      safety_identifier: "me",
      seed: null,
      service_tier: "auto",
      stop: null,
      store: false,
      stream_options: null,
      tool_choice: "none",
      tools: [],
      user: "me",
    };
    const answer = await post("/v1/chat/completions", { model: "tiny", messages, ...noOps });
    expect(answer.status).toBe(200);
  });

  it.each([
    ["temprature", { temprature: 1 }, "temprature", /not supported/],
    ["a custom tool", { tools: [{ type: "custom", custom: { name: "f" } }] }, "tools[0].function", /missing/],
    ["tool_choice without tools", { tool_choice: "required" }, "tool_choice", /no tools/],
    [
      "a tool that is not there",
      {
        tools: [{ type: "function", function: { name: "f" } }],
        tool_choice: { type: "function", function: { name: "g" } },
      },
      "tool_choice",
      /"g"/,
    ],
    [
      "a schema that cannot be kept",
      {
        response_format: {
          type: "json_schema",
          json_schema: { name: "x", schema: { type: "array", uniqueItems: true } },
        },
      },
      "response_format",
      /"uniqueItems"/,
    ],
    ["modalities", { modalities: ["text", "audio"] }, "modalities", /\["text"\]/],
    ["store", { store: true }, "store", /false/],
    ["reasoning_effort", { reasoning_effort: "low" }, "reasoning_effort", /does not reason/],
    ["temperature", { temperature: 3 }, "temperature", /from 0 to 2, not 3/],
    ["temperature as text", { temperature: "1" }, "temperature", /a number.*not "1"/],
    ["top_logprobs", { logprobs: true, top_logprobs: 21 }, "top_logprobs", /from 0 to 20/],
    ["top_logprobs without logprobs", { top_logprobs: 2 }, "top_logprobs", /"logprobs": true/],
    ["n", { n: 0 }, "n", /from 1 to 128/],
    ["logit_bias", { logit_bias: { x: 1 } }, "logit_bias.x", /not supported/],
    ["logit_bias of an unknown id", { logit_bias: { 5000: 1 } }, "logit_bias", /0 to 264/],
    ["stream_options alone", { stream_options: { include_usage: true } }, "stream_options", /"stream": true/],
    ["two limits", { max_tokens: 1, max_completion_tokens: 2 }, "max_tokens", /different/],
    ["no messages", { messages: [] }, "messages", /at least one message/],
    ["messages left out", { messages: null }, "messages", /missing/],
    ["a role", { messages: [{ role: "king", content: "x" }] }, "messages[0].role", /developer, system, user/],
    ["content", { messages: [{ role: "user" }] }, "messages[0].content", /missing/],
    [
      "an image",
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] },
      "messages[0].content",
      /no images/,
    ],
    ["a field of a message", { messages: [{ role: "user", content: "x", audio: {} }] }, "messages[0].audio", /not/],
    ["min_tokens", { min_tokens: 9, max_tokens: 8 }, "min_tokens", /9.*8/],
  ])("refuses %s by name", async (_name, fields, param, message) => {
    const { post } = plain;
    const answer = await post("/v1/chat/completions", { model: "tiny", messages, ...fields });
    expect(answer.status).toBe(400);
    const { error } = (await answer.json()) as {
      error: { message: string; type: string; param: string; code: string };
    };
    expect(error.param).toBe(param);
    expect(error.message).toMatch(message);
    expect(error.type).toBe("invalid_request_error");
  });

  it("says both numbers when the context is too short", async () => {
    const { client } = await start({ contextLength: 50 });
    const tooLong = client.chat.completions.create({ model: "tiny", messages, max_tokens: 40 });
    await expect(tooLong).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
    await expect(tooLong).rejects.toThrow(/context is 50 tokens.*61 tokens were asked for: 21 of the prompt and 40/);
    await expect(tooLong).rejects.toMatchObject({ param: "max_tokens" });
    const untilTheEnd = await client.chat.completions.create({ model: "tiny", messages, stop: ["nothing"] });
    expect(untilTheEnd.choices[0].finish_reason).toBe("stop");
    const promptAlone = client.chat.completions.create({
      model: "tiny",
      messages: [{ role: "user", content: "x".repeat(60) }],
    });
    await expect(promptAlone).rejects.toThrow(/context is 50 tokens.*the prompt has 79 tokens/);
    await expect(promptAlone).rejects.toMatchObject({ param: "messages" });
  });
});

describe("completions", () => {
  it("takes text, lists of texts, ids and lists of ids", async () => {
    const { client } = await start({ script: ({ promptIds }, _i, position) => [promptIds.at(-1)!, eos][position] });
    const texts = async (prompt: string | string[] | number[] | number[][]) =>
      (await client.completions.create({ model: "tiny", prompt })).choices.map((choice) => [choice.index, choice.text]);
    expect(await texts("ab")).toEqual([[0, "b"]]);
    expect(await texts(["ab", "cd"])).toEqual([
      [0, "b"],
      [1, "d"],
    ]);
    expect(await texts([97, 98])).toEqual([[0, "b"]]);
    expect(await texts([[97], [98], [99]])).toEqual([
      [0, "a"],
      [1, "b"],
      [2, "c"],
    ]);
  });

  it("streams several prompts side by side, n choices each", async () => {
    const { client } = await start({ script: letters });
    const body = { model: "tiny", prompt: ["ab", "cd"], n: 2, best_of: 2, max_tokens: 5, seed: 1 };
    const whole = await client.completions.create(body);
    const streamed = ["", "", "", ""];
    const reasons: (string | null)[] = [];
    let usage: unknown;
    const options = { stream: true as const, stream_options: { include_usage: true } };
    for await (const chunk of await client.completions.create({ ...body, ...options })) {
      for (const { index, text, finish_reason } of chunk.choices) {
        streamed[index] += text;
        if (finish_reason !== null) reasons[index] = finish_reason;
      }
      usage = chunk.usage ?? usage;
    }
    expect(streamed).toEqual(whole.choices.map((choice) => choice.text));
    expect(reasons).toEqual(["length", "length", "length", "length"]);
    expect(usage).toMatchObject({ prompt_tokens: 6, completion_tokens: 20 });
    expect(whole.usage).toEqual(usage);
  });

  it("generates 16 tokens where nothing else is said", async () => {
    const { client } = await start({ script: letters });
    const answer = await client.completions.create({ model: "tiny", prompt: "a" });
    expect(answer.usage!.completion_tokens).toBe(16);
  });

  it("begins an empty prompt with the model's first token, and refuses empty ids", async () => {
    const { client } = plain;
    const answer = await client.completions.create({ model: "tiny", prompt: "" });
    expect(answer.usage!.prompt_tokens).toBe(1);
    const none = client.completions.create({ model: "tiny", prompt: [] as number[] });
    await expect(none).rejects.toMatchObject({ status: 400, code: "empty_prompt", param: "prompt" });
  });

  it("echoes the prompt with its log-probabilities and offsets", async () => {
    const { client } = await start({ script: says("Hello world") });
    const body = { model: "tiny", prompt: "ab", echo: true, logprobs: 1, max_tokens: 2 };
    const [choice] = (await client.completions.create(body)).choices;
    expect(choice.text).toBe("abHello wor");
    expect(choice.logprobs!.tokens).toEqual(["<s>", "a", "b", "Hello", " wor"]);
    expect(choice.logprobs!.token_logprobs).toEqual([null, -0.5, -0.5, -0.5, -0.5]);
    expect(choice.logprobs!.text_offset).toEqual([0, 0, 1, 2, 7]);
    expect(choice.logprobs!.top_logprobs).toEqual([null, { a: -0.5 }, { b: -0.5 }, { Hello: -0.5 }, { " wor": -0.5 }]);
    const scored = await client.completions.create({ ...body, max_tokens: 0 });
    expect(scored.choices[0].text).toBe("ab");
    expect(scored.choices[0].logprobs!.tokens).toEqual(["<s>", "a", "b"]);
    expect(scored.choices[0].finish_reason).toBe("length");
    let text = "";
    const offsets: number[] = [];
    for await (const chunk of await client.completions.create({ ...body, stream: true })) {
      text += chunk.choices[0].text;
      offsets.push(...(chunk.choices[0].logprobs?.text_offset ?? []));
    }
    expect(text).toBe("abHello wor");
    expect(offsets).toEqual([0, 0, 1, 2, 7]);
  });

  it("spells parts of characters by their bytes, so that no two collide", async () => {
    const { client } = await start({ script: says("é") });
    const answer = await client.completions.create({ model: "tiny", prompt: "a", logprobs: 0 });
    expect(answer.choices[0].logprobs!.tokens).toEqual(["bytes:\\xc3", "bytes:\\xa9"]);
    expect(answer.choices[0].logprobs!.top_logprobs).toEqual([{ "bytes:\\xc3": -0.5 }, { "bytes:\\xa9": -0.5 }]);
  });

  it.each([
    ["suffix", { suffix: "x" }, "suffix"],
    ["best_of", { n: 2, best_of: 1 }, "best_of"],
    ["logprobs", { logprobs: 6 }, "logprobs"],
    ["an unknown id", { prompt: [97, 9999] }, "prompt"],
    ["a mixed list", { prompt: ["a", 1] }, "prompt"],
    ["nothing to do", { max_tokens: 0 }, "max_tokens"],
    ["chat's fields", { messages: [] }, "messages"],
  ])("refuses %s by name", async (_name, fields, param) => {
    const { post } = plain;
    const answer = await post("/v1/completions", { model: "tiny", prompt: "a", ...fields });
    expect(answer.status).toBe(400);
    expect(await answer.json()).toMatchObject({ error: { param } });
  });
});

describe("a checkpoint without a tokenizer", () => {
  it("is served by token ids", async () => {
    const { client, post } = await start({ text: null, script: letters });
    const body = { model: "tiny", prompt: [1, 2, 3], max_tokens: 4, seed: 0, logprobs: 1 };
    const answer = await client.completions.create(body);
    const expected = [97, 104, 111, 118];
    expect(answer.choices[0]).toMatchObject({ text: "", token_ids: expected, prompt_token_ids: [1, 2, 3] });
    expect(answer.choices[0].logprobs!.tokens).toEqual(expected.map((id) => `token_id:${id}`));
    const streamed: number[] = [];
    for await (const chunk of await client.completions.create({ ...body, stream: true })) {
      streamed.push(...(chunk.choices[0] as unknown as { token_ids: number[] }).token_ids);
    }
    expect(streamed).toEqual(expected);
    for (const [path, fields] of [
      ["completions", { prompt: "text" }],
      ["completions", { prompt: [1], stop: "x" }],
      ["chat/completions", { messages }],
    ] as const) {
      const refused = await post(`/v1/${path}`, { model: "tiny", ...fields });
      expect(refused.status).toBe(400);
      expect(await refused.json()).toMatchObject({ error: { code: "no_tokenizer" } });
    }
  });
});

describe("models", () => {
  it("are listed and found; an unknown one is a 404 that names those there are", async () => {
    const { client } = plain;
    const list = await client.models.list();
    expect(list.data).toMatchObject([{ id: "tiny", object: "model", owned_by: "millrace" }]);
    expect((await client.models.retrieve("tiny")).id).toBe("tiny");
    await expect(client.models.retrieve("hf:no/such")).rejects.toMatchObject({ status: 404, code: "model_not_found" });
    const missing = client.chat.completions.create({ model: "large", messages });
    await expect(missing).rejects.toMatchObject({ status: 404, param: "model" });
    await expect(missing).rejects.toThrow(/"large".*"tiny"/);
  });
});

describe("an engine that dies", () => {
  it("gives a streaming client an error event, a waiting one a 503, and serves the next request", async () => {
    const { client, engine } = await start({ script: letters, contextLength: 1 << 20 });
    engine.pace = 2;
    const stream = await client.chat.completions.create({ model: "tiny", messages, stream: true });
    const whole = client.chat.completions.create({ model: "tiny", messages });
    await until(() => engine.running === 2);
    const seen = (async () => {
      let tokens = 0;
      for await (const chunk of stream) {
        if (chunk.choices[0].delta.content) tokens += 1;
        if (tokens === 5) engine.die();
      }
    })();
    await Promise.all([
      expect(seen).rejects.toThrow(/process ended/),
      expect(whole).rejects.toMatchObject({ status: 503, code: "engine_died" }),
    ]);
    const next = await client.chat.completions.create({ model: "tiny", messages, max_tokens: 2 });
    expect(next.choices[0].finish_reason).toBe("length");
  });

  it("before the first event answers a stream with a status", async () => {
    const { client, engine } = await start();
    engine.paused = true;
    const stream = client.chat.completions.create({ model: "tiny", messages, stream: true });
    const outcome = expect(stream).rejects.toMatchObject({ status: 503 });
    await until(() => engine.running === 1);
    engine.die();
    await outcome;
  });
});

describe("a prompt that is longer than the context", () => {
  const turns = Array.from({ length: 9 }, (_, i) => [
    { role: "user" as const, content: `question ${i} ${"x".repeat(20)}` },
    { role: "assistant" as const, content: `answer ${i}` },
  ]).flat();
  const conversation = [
    { role: "system" as const, content: "Be brief." },
    ...turns,
    { role: "user" as const, content: "the last one" },
  ];
  interface Counted {
    usage: { context: { kept: number; cut: number; cached: number }; prompt_tokens: number };
  }
  const decoder = new TextDecoder();
  const textOf = (prompt: Int32Array) => [...prompt].map((id) => decoder.decode(tokenBytes(id))).join("");
  /** Keeps what the model is given. */
  const listening = (contextLength: number) => {
    const given: string[] = [];
    const script: Script = (request) => {
      given.push(textOf(request.promptIds));
      return eos;
    };
    return { given, options: { contextLength, script } };
  };

  const ask = async (context_overflow: string | undefined, more: object = {}) => {
    const { given, options } = listening(200);
    const { client } = await start(options);
    const body = { model: "tiny", messages: conversation, max_tokens: 20, context_overflow, ...more } as never;
    const { data, response } = await client.chat.completions.create(body).withResponse();
    const { usage } = data as never as Counted;
    return { prompt: given[0], usage, header: response.headers.get("x-context-cut") };
  };

  it("is refused unless the request says what may go", async () => {
    await expect(ask(undefined)).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
    await expect(ask("error")).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
    await expect(ask("forget")).rejects.toThrow(/context_overflow.*error, drop_oldest, middle_out/);
  });

  it("loses its oldest turns, as few as it takes, and says how much that was", async () => {
    const { prompt, usage, header } = await ask("drop_oldest");
    expect(prompt).toMatch(/Be brief\..*the last one/s);
    expect(prompt).toContain("question 8");
    expect(prompt).not.toContain("question 0");
    expect(usage.context.kept).toBe(usage.prompt_tokens);
    expect(usage.context.kept).toBeLessThanOrEqual(180);
    expect(usage.context.kept).toBeGreaterThan(130);
    const { usage: whole } = await startedWhole();
    expect(usage.context.kept + usage.context.cut).toBe(whole);
    expect(header).toBe(String(usage.context.cut));
  });

  async function startedWhole() {
    const { client } = await start({ contextLength: 4000 });
    const answer = await client.chat.completions.create({ model: "tiny", messages: conversation, max_tokens: 20 });
    return { usage: answer.usage!.prompt_tokens };
  }

  it("loses turns from its middle, and keeps how it began", async () => {
    const { prompt } = await ask("middle_out");
    expect(prompt).toContain("question 0");
    expect(prompt).toContain("question 8");
    expect(prompt).not.toContain("question 4");
    expect(prompt).toContain("the last one");
  });

  it("as a plain prompt loses its beginning or its middle", async () => {
    const { given, options } = listening(100);
    const { client } = await start(options);
    const prompt = `begin${"-".repeat(300)}end`;
    const complete = async (context_overflow: string) => {
      const answer = await client.completions.create({
        model: "tiny",
        prompt,
        max_tokens: 20,
        context_overflow,
      } as never);
      return { text: given.at(-1), context: (answer as never as Counted).usage.context };
    };
    const oldest = await complete("drop_oldest");
    expect(oldest.text).toMatch(/^<s>-+end$/);
    expect(oldest.context).toEqual({ kept: 80, cut: prompt.length + 1 - 80, cached: 0 });
    expect((await complete("middle_out")).text).toMatch(/^<s>begin-+end$/);
  });

  it("is refused where nothing that may go is enough", async () => {
    const messages = [{ role: "user", content: "y".repeat(500) }];
    await expect(ask("drop_oldest", { messages })).rejects.toMatchObject({ code: "context_length_exceeded" });
  });
});
