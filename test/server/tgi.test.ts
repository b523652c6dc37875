// TGI's API with Hugging Face's own client, and in its details over the wire.
import { InferenceClient } from "@huggingface/inference";
import { afterEach, describe, expect, it } from "vitest";
import { eos, ids, letters } from "../session/fakes.js";
import { type Rig, type RigOptions, rig } from "./support.js";

const open: Rig[] = [];
const start = async (options?: RigOptions) => {
  const one = await rig(options);
  open.push(one);
  return one;
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

const endless = { script: letters, contextLength: 4096 };

// biome-ignore lint/suspicious/noExplicitAny: answers are compared field by field
async function json(answer: Response): Promise<any> {
  return answer.json();
}

// biome-ignore lint/suspicious/noExplicitAny: as above
async function events(answer: Response): Promise<any[]> {
  const text = await answer.text();
  return text
    .split("\n\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line.replace(/^data: ?/, "")));
}

describe("Hugging Face's client", () => {
  it("generates and chats by a server's address alone", async () => {
    const { server } = await start();
    const client = new InferenceClient(undefined, { endpointUrl: server.url });
    const answer = await client.textGeneration({ inputs: "Hi", parameters: { max_new_tokens: 20 } });
    expect(answer.generated_text).toBe("Hello world");
    const { choices } = await client.chatCompletion({ messages: [{ role: "user", content: "Hi" }] });
    expect(choices[0].message.content).toBe("Hello world");
    let text = "";
    for await (const chunk of client.chatCompletionStream({ messages: [{ role: "user", content: "Hi" }] })) {
      text += chunk.choices[0].delta.content ?? "";
    }
    expect(text).toBe("Hello world");
  });

  it("generates and streams by TGI's own routes", async () => {
    const { server } = await start();
    const client = new InferenceClient();
    const inputs = "Hi";
    const whole = await client.request({
      endpointUrl: `${server.url}/generate`,
      inputs,
      parameters: { details: true },
    });
    expect(whole).toMatchObject({ generated_text: "Hello world", details: { finish_reason: "eos_token" } });
    const texts: string[] = [];
    const stream = client.streamingRequest<{ token: { text: string }; generated_text: string | null }>({
      endpointUrl: `${server.url}/generate_stream`,
      inputs,
    });
    let last: string | null = null;
    for await (const { token, generated_text } of stream) {
      texts.push(token.text);
      last = generated_text;
    }
    expect([texts, last]).toEqual([["Hello", " wor", "ld", "</s>"], "Hello world"]);
  });

  it("is told what is wrong", async () => {
    const { server } = await start();
    const client = new InferenceClient();
    const parameters = { max_new_tokens: 100_000 };
    const asking = client.request({ endpointUrl: `${server.url}/generate`, inputs: "Hi", parameters });
    await expect(asking).rejects.toThrow("The context is 256 tokens long");
  });
});

describe("/generate", () => {
  it("gives the text alone unless asked for more, and tells times in headers", async () => {
    const { post } = await start();
    const answer = await post("/generate", { inputs: "Hi" });
    expect(await json(answer)).toEqual({ generated_text: "Hello world" });
    expect(answer.headers.get("x-generated-tokens")).toBe("4");
    expect(answer.headers.get("x-prompt-tokens")).toBe("3");
    for (const name of ["type", "time", "characters"]) expect(answer.headers.has(`x-compute-${name}`)).toBe(true);
    for (const name of ["total", "validation", "queue", "inference"]) {
      expect(Number(answer.headers.get(`x-${name}-time`))).toBeGreaterThanOrEqual(0);
    }
  });

  it("gives details, the prompt's tokens and the best at each position", async () => {
    const { post } = await start();
    const parameters = { details: true, decoder_input_details: true, top_n_tokens: 2 };
    const { details } = await json(await post("/generate", { inputs: "Hi", parameters }));
    expect(details).toMatchObject({ finish_reason: "eos_token", generated_tokens: 4, seed: null });
    expect(details.prefill).toEqual([
      { id: 256, text: "<s>", logprob: null },
      { id: 72, text: "H", logprob: -0.5 },
      { id: 105, text: "i", logprob: -0.5 },
    ]);
    expect(details.tokens).toEqual([
      { id: 258, text: "Hello", logprob: -0.5, special: false },
      { id: 259, text: " wor", logprob: -0.5, special: false },
      { id: 260, text: "ld", logprob: -0.5, special: false },
      { id: eos, text: "</s>", logprob: -0.5, special: true },
    ]);
    expect(details.top_tokens).toHaveLength(4);
    expect(details.top_tokens[0].map(({ text }: { text: string }) => text)).toEqual(["Hello", " wor"]);
  });

  it("gives a character of several tokens to the last of them", async () => {
    const script = (_: unknown, __: number, position: number) => [...ids("aé€"), eos][position] ?? eos;
    const { post } = await start({ script });
    const { details, generated_text } = await json(
      await post("/generate", { inputs: "Hi", parameters: { details: true } }),
    );
    const texts = details.tokens.slice(0, -1).map(({ text }: { text: string }) => text);
    expect(generated_text).toBe("aé€");
    expect(texts.join("")).toBe("aé€");
  });

  it("ends at a stop sequence, which is in the text, and at the length", async () => {
    const { post } = await start();
    const stopped = await json(await post("/generate", { inputs: "Hi", parameters: { details: true, stop: ["wor"] } }));
    expect(stopped.generated_text).toBe("Hello wor");
    expect(stopped.details.finish_reason).toBe("stop_sequence");
    const short = await json(
      await post("/generate", { inputs: "Hi", parameters: { details: true, max_new_tokens: 2 } }),
    );
    expect([short.generated_text, short.details.finish_reason]).toEqual(["Hello wor", "length"]);
  });

  it("samples where parameters are absent or a sampling one is given, and says the seed that repeats it", async () => {
    const { engine, post } = await start(endless);
    const seen: { temperature: number; seed: bigint }[] = [];
    engine.script = (request) => {
      seen.push(request.sampling);
      return eos;
    };
    await post("/generate", { inputs: "Hi" });
    await post("/generate", { inputs: "Hi", parameters: {} });
    await post("/generate", { inputs: "Hi", parameters: { temperature: 0.5 } });
    const parameters = { do_sample: true, details: true };
    const { details } = await json(await post("/generate", { inputs: "Hi", parameters }));
    expect(seen.map(({ temperature }) => temperature)).toEqual([1, 0, 0.5, 1]);
    expect(BigInt(details.seed)).toBe(seen[3].seed);
  });

  it("gives the likeliest of several, and the others after it", async () => {
    const { post } = await start(endless);
    const parameters = { best_of: 3, do_sample: true, details: true, max_new_tokens: 4 };
    const { details } = await json(await post("/generate", { inputs: "Hi", parameters }));
    expect(details.best_of_sequences).toHaveLength(2);
    expect(details.best_of_sequences[0]).toMatchObject({ finish_reason: "length", generated_tokens: 4 });
    expect(new Set([details, ...details.best_of_sequences].map(({ seed }) => seed)).size).toBe(3);
  });

  it("repeats the inputs and keeps their end where asked", async () => {
    const { engine, post } = await start();
    const { generated_text } = await json(
      await post("/generate", { inputs: "Hi", parameters: { return_full_text: true } }),
    );
    expect(generated_text).toBe("HiHello world");
    let prompt: number[] = [];
    engine.script = ({ promptIds }) => {
      prompt = [...promptIds];
      return eos;
    };
    await post("/generate", { inputs: "Hi there", parameters: { truncate: 3 } });
    expect(String.fromCharCode(...prompt)).toBe("ere");
  });

  it("refuses in TGI's words what does not go together or is not supported", async () => {
    const { post } = await start();
    const refusals: [object, RegExp][] = [
      [{ best_of: 2 }, /sampling/],
      [{ best_of: 2, do_sample: true, seed: 1 }, /seed/],
      [{ temperature: 0 }, /above 0/],
      [{ typical_p: 0.5 }, /typical_p.*not supported/],
      [{ watermark: true }, /watermark.*not supported/],
      [{ grammar: { type: "json", value: "not json" } }, /grammar/],
      [{ adapter_id: "none" }, /adapter/],
    ];
    for (const [parameters, wanted] of refusals) {
      const answer = await post("/generate", { inputs: "Hi", parameters });
      const body = await json(answer);
      expect([400, 404, 422], JSON.stringify(parameters)).toContain(answer.status);
      expect(body.error_type).toBe("validation");
      expect(body.error).toMatch(wanted);
    }
    expect((await post("/generate", {})).status).toBe(422);
    expect((await post("/generate_stream", { inputs: "Hi", parameters: { decoder_input_details: true } })).status).toBe(
      422,
    );
  });

  it("says so when it is full or its model failed", async () => {
    const full = await start({ maxSequences: 1, maxWaiting: 0, ...endless });
    const first = full.post("/generate", { inputs: "Hi", parameters: { do_sample: true } });
    while (full.engine.running === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    const refused = await full.post("/generate", { inputs: "Hi" });
    expect([refused.status, (await json(refused)).error_type]).toEqual([429, "overloaded"]);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    full.engine.die();
    const died = await first;
    expect([died.status, (await json(died)).error_type]).toEqual([503, "unhealthy"]);
  });
});

describe("/generate_stream", () => {
  it("sends an event a token, the last with the whole text and details", async () => {
    const { post } = await start();
    const seen = await events(
      await post("/generate_stream", { inputs: "Hi", parameters: { details: true, top_n_tokens: 1 } }),
    );
    expect(seen.map(({ index }) => index)).toEqual([1, 2, 3, 4]);
    expect(seen.slice(0, -1).every(({ generated_text, details }) => generated_text === null && details === null)).toBe(
      true,
    );
    expect(seen[0].top_tokens).toHaveLength(1);
    expect(seen[3]).toMatchObject({
      token: { id: eos, text: "</s>", special: true },
      generated_text: "Hello world",
      details: { finish_reason: "eos_token", generated_tokens: 4, seed: null, input_length: 3 },
    });
  });

  it("ends with the last token at the length and at a stop sequence", async () => {
    const { post } = await start();
    const short = await events(await post("/generate_stream", { inputs: "Hi", parameters: { max_new_tokens: 2 } }));
    expect(short.map(({ token }) => token.text)).toEqual(["Hello", " wor"]);
    expect(short[1].generated_text).toBe("Hello wor");
    const stopped = await events(await post("/generate_stream", { inputs: "Hi", parameters: { stop: ["lo wor"] } }));
    expect(stopped.map(({ token }) => token.text).join("")).toBe("Hello wor");
    expect(stopped.at(-1)?.generated_text).toBe("Hello wor");
  });
});

describe("other routes", () => {
  it("POST / answers with a list of one, or streams", async () => {
    const { post } = await start();
    expect(await json(await post("/", { inputs: "Hi" }))).toEqual([{ generated_text: "Hello world" }]);
    expect(await json(await post("/invocations", { inputs: "Hi", stream: false }))).toHaveLength(1);
    expect(await events(await post("/", { inputs: "Hi", stream: true }))).toHaveLength(4);
  });

  it("tokenize with places in the text", async () => {
    const { post } = await start();
    const tokens = await json(await post("/tokenize", { inputs: "H😀i" }));
    expect(tokens[0]).toMatchObject({ id: 256, start: 0, stop: 0 });
    expect(tokens.at(-1)).toEqual({ id: 105, text: "i", start: 2, stop: 3 });
    const chat = await json(await post("/chat_tokenize", { messages: [{ role: "user", content: "Hi" }] }));
    expect(chat.templated_text).toBe("<s>user: Hi\nassistant: ");
    expect(chat.tokenize_response).toHaveLength(chat.templated_text.length - "<s>".length + 1);
  });

  it("tokenize and detokenize as vLLM does", async () => {
    const { post } = await start();
    const tokens = [256, 72, 105];
    const whole = { count: 3, max_model_len: 256, tokens, token_strs: null };
    expect(await json(await post("/tokenize", { model: "tiny", prompt: "Hi" }))).toEqual(whole);
    const bare = { prompt: "Hi", add_special_tokens: false, return_token_strs: true };
    expect(await json(await post("/tokenize", bare))).toMatchObject({ tokens: [72, 105], token_strs: ["H", "i"] });
    const chat = await json(await post("/tokenize", { messages: [{ role: "user", content: "Hi" }] }));
    const back = await json(await post("/detokenize", { tokens: chat.tokens }));
    expect(back).toEqual({ prompt: "<s>user: Hi\nassistant: " });
  });

  it("say which fields of /tokenize do not go together, and which tokens are none", async () => {
    const { post } = await start();
    for (const [body, words] of [
      [{}, "has one of"],
      [{ inputs: "Hi", prompt: "Hi" }, "has one of"],
      [{ prompt: "Hi", tools: [] }, "tools does not go with prompt"],
      [{ messages: [{ role: "user", content: "Hi" }], add_special_tokens: true }, "does not go with messages"],
    ] as const) {
      const answer = await post("/tokenize", body);
      expect([answer.status, await json(answer)]).toMatchObject([422, { error: expect.stringContaining(words) }]);
    }
    const answer = await post("/detokenize", { tokens: [1_000_000] });
    expect([answer.status, await json(answer)]).toMatchObject([400, { error: { param: "tokens" } }]);
  });

  it("tell the version and the load", async () => {
    const { server } = await start();
    const { version } = await json(await fetch(`${server.url}/version`));
    expect(version).toMatch(/^\d+\.\d+\.\d+/);
    expect(await json(await fetch(`${server.url}/load`))).toEqual({ server_load: 0 });
  });

  it("tell of the model", async () => {
    const { server } = await start();
    const info = await json(await fetch(`${server.url}/info`));
    expect(info).toMatchObject({ model_id: "tiny", max_total_tokens: 256, router: "millrace" });
  });
});

describe("the envelopes of clouds", () => {
  const messages = [{ role: "user", content: "Hi" }];

  it("/invocations takes what each of TGI's routes takes", async () => {
    const { post } = await start();
    expect(await json(await post("/invocations", { inputs: "Hi" }))).toEqual([{ generated_text: "Hello world" }]);
    const chat = await json(await post("/invocations", { messages, max_tokens: 20 }));
    expect(chat).toMatchObject({ object: "chat.completion", choices: [{ message: { content: "Hello world" } }] });
    const plain = await json(await post("/invocations", { prompt: "Hi", max_tokens: 20 }));
    expect(plain).toMatchObject({ object: "text_completion", choices: [{ text: "Hello world" }] });
    const streamed = await (await post("/invocations", { messages, stream: true })).text();
    expect(streamed).toMatch(/chat\.completion\.chunk.*data: \[DONE\]/s);
    for (const [body, named] of [
      [{}, "inputs"],
      [{ messages: [] }, "messages"],
      [{ inputs: "Hi", speed: 1 }, "speed"],
      [{ prompt: 5 }, "prompt"],
    ] as const) {
      const refused = await post("/invocations", body);
      expect([refused.status, await json(refused)]).toEqual([
        422,
        { error: expect.stringContaining(named), error_type: "validation" },
      ]);
    }
  });

  it("/vertex answers all instances, in their order", async () => {
    const { post } = await start({ script: letters, contextLength: 4096 });
    const instance = (max_new_tokens: number) => ({ inputs: "Hi", parameters: { max_new_tokens, seed: 1 } });
    const { predictions } = await json(
      await post("/vertex", { instances: [instance(3), { messages, max_tokens: 5 }, instance(7)] }),
    );
    expect(predictions.map((text: string) => text.length)).toEqual([3, 5, 7]);
    expect(predictions[2].startsWith(predictions[0])).toBe(true);
    for (const [body, said] of [
      [{ instances: [] }, "instances"],
      [{ instances: [instance(3), { inputs: 5 }] }, "Instance 1"],
      [{ instances: [instance(3), {}] }, "inputs"],
      [{ instances: [{ inputs: "Hi", parameters: { details: true } }] }, '"details"'],
      [{ instances: [{ messages, n: 2 }] }, '"n"'],
      [{ instances: [{ messages, stream: true }] }, '"stream"'],
    ] as const) {
      const refused = await post("/vertex", body);
      expect([refused.status, (await json(refused)).error]).toEqual([422, expect.stringContaining(said)]);
    }
  });

  it("/vertex heeds what changes a text: the prompt before it, the best of several, what may be cut", async () => {
    const { post } = await start({ script: letters, contextLength: 40 });
    const parameters = { max_new_tokens: 3, best_of: 2, do_sample: true, return_full_text: true };
    const conversation = ["a".repeat(30), "b", "c"].map((content, i) => ({
      role: i === 1 ? "assistant" : "user",
      content,
    }));
    const chat = { messages: conversation, max_tokens: 2 };
    const refused = await post("/vertex", { instances: [chat] });
    expect([refused.status, (await json(refused)).error]).toEqual([422, expect.stringContaining("context")]);
    const instances = [
      { inputs: "Hi", parameters },
      { ...chat, context_overflow: "drop_oldest" },
    ];
    const { predictions } = await json(await post("/vertex", { instances }));
    expect(predictions).toEqual([expect.stringMatching(/^Hi[a-z]{3}$/), expect.stringMatching(/^[a-z]{2}$/)]);
  });
});

it("TGI's spellings in a chat mean what they do there", async () => {
  const { post } = await start();
  const messages = [{ role: "user", content: "Hi" }];
  // No model: the only one.
  expect((await post("/v1/chat/completions", { messages })).status).toBe(200);
  expect((await post("/v1/completions", { prompt: "Hi" })).status).toBe(200);
  const seen: unknown[] = [];
  const one = await start({
    script: (request, _index, position) => {
      seen.push(request.grammar?.text);
      return ids("{}")[position] ?? eos;
    },
  });
  for (const response_format of [
    { type: "json_object", value: { type: "object", properties: { a: { type: "integer" } } } },
    { type: "json_schema", value: { name: "x", schema: { type: "object", properties: { a: { type: "integer" } } } } },
    { type: "regex", value: "[0-9]{3}" },
  ]) {
    seen.length = 0;
    const answer = await one.post("/v1/chat/completions", { messages, response_format });
    expect(answer.status, JSON.stringify(response_format)).toBe(200);
    expect(seen[0]).toMatch(response_format.type === "regex" ? /0-9/ : /\\"a\\"/);
  }
});
