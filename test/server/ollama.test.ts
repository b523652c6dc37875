// Ollama's routes on a scripted engine: what its own client gets, and the wire to the letter.
import { Ollama } from "ollama";
import { afterEach, describe, expect, it } from "vitest";
import { byteText, eos, letters, type Script, words } from "../session/fakes.js";
import { type Rig, type RigOptions, rig, until } from "./support.js";

const open: Rig[] = [];
afterEach(async () => {
  for (const one of open.splice(0)) await one.server.close();
});

async function start(options?: RigOptions) {
  const one = await rig(options);
  open.push(one);
  return { ...one, ollama: new Ollama({ host: one.server.url }) };
}

const model = "tiny";
const hello = { role: "user", content: "Hi" };

async function lines(response: Response): Promise<Record<string, unknown>[]> {
  return (await response.text())
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** Notes prompts and says nothing. */
const sees =
  (prompts: number[][]): Script =>
  ({ promptIds }) => {
    prompts.push([...promptIds]);
    return eos;
  };

describe("chat", () => {
  it("gives a whole answer with figures in nanoseconds", async () => {
    const { ollama } = await start();
    const answer = await ollama.chat({ model, messages: [hello] });
    expect(answer).toMatchObject({
      model,
      message: { role: "assistant", content: "Hello world" },
      done: true,
      done_reason: "stop",
      prompt_eval_count: 21,
      prompt_eval_duration: 1_000_000,
      eval_count: 4,
      eval_duration: 1_000_000,
    });
    expect(Number.isInteger(answer.total_duration)).toBe(true);
    expect(Number.isInteger(answer.load_duration)).toBe(true);
    expect(Math.abs(Date.now() - Date.parse(answer.created_at as never))).toBeLessThan(10_000);
  });

  it("streams lines that bring nothing through a long prefill", async () => {
    const { engine, ollama, post } = await start({ keepAliveMs: 20 });
    const late = () => {
      engine.paused = true;
      void until(() => engine.running > 0).then(() => setTimeout(() => (engine.paused = false), 150));
    };
    late();
    const all = await lines(await post("/api/generate", { model, prompt: "Hi", raw: true }));
    const before = all.findIndex(({ response }) => response !== "");
    expect(before).toBeGreaterThan(2);
    expect(all[0]).toEqual({ model, created_at: expect.any(String), response: "", done: false });
    late();
    let text = "";
    let count = 0;
    for await (const { message } of await ollama.chat({ model, messages: [hello], stream: true })) {
      text += message.content;
      count++;
    }
    expect(text).toBe("Hello world");
    expect(count).toBeGreaterThan(4);
  });

  it("streams lines unless asked not to, the last one with the reason", async () => {
    const { ollama, post } = await start();
    const pieces: string[] = [];
    for await (const part of await ollama.chat({ model, messages: [hello], stream: true })) {
      if (!part.done) expect(part.eval_count).toBeUndefined();
      pieces.push(part.message.content);
    }
    expect(pieces).toEqual(["Hello", " wor", "ld", ""]);
    const response = await post("/api/chat", { model, messages: [hello] });
    expect(response.headers.get("content-type")).toBe("application/x-ndjson");
    expect((await lines(response)).at(-1)).toMatchObject({ done: true, done_reason: "stop", eval_count: 4 });
  });

  it("takes tools' calls and answers as history, and leaves out a null", async () => {
    const { ollama, engine, post } = await start();
    const call = { function: { name: "add", arguments: { a: 1 } } };
    await ollama.chat({
      model,
      messages: [
        hello,
        { role: "assistant", content: "", tool_calls: [call] },
        { role: "tool", content: "2", tool_name: "add" } as never,
      ],
    });
    expect(engine.running).toBe(0);
    const whole = { model, messages: [{ role: "user", content: "Hi" }], stream: false, format: null, think: null };
    expect((await post("/api/chat", whole)).status).toBe(200);
    const wrong = await post("/api/chat", { model, messages: [{ role: "user", content: "", tool_calls: [call] }] });
    expect(wrong.status).toBe(400);
    expect(await wrong.json()).toEqual({ error: expect.stringContaining("Only an assistant's message") });
  });

  it("drops the oldest messages where they do not fit, unless told not to", async () => {
    const seen: number[] = [];
    const { ollama } = await start({
      contextLength: 128,
      script: (request, _index, position) => {
        seen.push(request.promptIds.length);
        return position < 3 ? 97 : eos;
      },
    });
    const messages = [
      { role: "system", content: "Be brief." },
      ...Array.from({ length: 8 }, (_, i) => ({ role: "user", content: `message ${i} of eight in all` })),
    ];
    const answer = await ollama.chat({ model, messages });
    expect(answer.message.content).toBe("aaa");
    expect(seen[0]).toBeLessThan(128);
    const rendered = await ollama.chat({ model, messages, _debug_render_only: true } as never);
    const text = (rendered as never as { _debug_info: { rendered_template: string } })._debug_info.rendered_template;
    expect(text).toContain("Be brief.");
    expect(text).toContain("message 7");
    expect(text).not.toContain("message 0");
    const whole = ollama.chat({ model, messages, truncate: false } as never);
    await expect(whole).rejects.toMatchObject({ status_code: 400, error: expect.stringContaining("128 tokens") });
  });

  it("asks the tokenizer a few times only, however many messages there are, and keeps all that fit", async () => {
    let asked = 0;
    const template = { ...byteText.template!, encode: counted(byteText.template!.encode) };
    function counted<T extends unknown[], R>(encode: (...given: T) => R): (...given: T) => R {
      return (...given) => {
        asked++;
        return encode(...given);
      };
    }
    const prompts: number[][] = [];
    const { ollama } = await start({ contextLength: 1024, script: sees(prompts), text: { ...byteText, template } });
    const messages = Array.from({ length: 3000 }, (_, i) => ({ role: "user", content: `number ${i}` }));
    await ollama.chat({ model, messages, options: { num_predict: 24 } });
    expect(asked).toBeLessThan(20);
    const text = String.fromCharCode(...prompts[0].slice(1));
    const first = Number(/^user: number (\d+)\n/.exec(text)![1]);
    expect(text).toBe(
      `${messages
        .slice(first)
        .map(({ content }) => `user: ${content}\n`)
        .join("")}assistant: `,
    );
    const room = 1024 - 24;
    expect(prompts[0].length).toBeLessThanOrEqual(room);
    expect(prompts[0].length + "user: number 1234\n".length).toBeGreaterThan(room);
  });
});

describe("generate", () => {
  it("puts the system message before the prompt, and gives the context to go on with", async () => {
    const { ollama, engine } = await start();
    const first = await ollama.generate({ model, prompt: "Hi", system: "Be kind." });
    expect(first.response).toBe("Hello world");
    const text = (tokens: number[]) => tokens.map((id) => (id < 256 ? String.fromCharCode(id) : `<${id}>`)).join("");
    expect(text(first.context)).toBe(`<256>system: Be kind.\nuser: Hi\nassistant: <258><259><260><${eos}>`);
    const prompts: number[][] = [];
    engine.script = sees(prompts);
    await ollama.generate({ model, prompt: "And?", context: first.context });
    expect(text(prompts[0])).toBe(`${text(first.context)}user: And?\nassistant: `);
  });

  it("takes a raw prompt as it is", async () => {
    const prompts: number[][] = [];
    const { ollama } = await start({ script: sees(prompts) });
    const answer = await ollama.generate({ model, prompt: "Hi", raw: true });
    expect(prompts[0]).toEqual([256, 72, 105]);
    expect(answer.context).toBeUndefined();
    await expect(ollama.generate({ model, prompt: "Hi", raw: true, system: "x" })).rejects.toThrow(/raw prompt/);
  });

  it("cuts a prompt that is too long in its middle", async () => {
    const prompts: number[][] = [];
    const { ollama } = await start({ contextLength: 64, script: sees(prompts) });
    await ollama.generate({ model, raw: true, prompt: "0123456789".repeat(10), options: { num_keep: 5 } });
    const [cut] = prompts;
    expect(cut.length).toBe(48);
    expect(String.fromCharCode(...cut.slice(1, 8))).toBe("0123" + "789");
    expect(String.fromCharCode(...cut.slice(-10))).toBe("0123456789");
  });

  it("without a prompt loads and unloads", async () => {
    const { post } = await start();
    const loaded = await lines(await post("/api/generate", { model }));
    expect(loaded).toMatchObject([{ model, response: "", done: true, done_reason: "load" }]);
    const one = await post("/api/chat", { model, messages: [], keep_alive: 0, stream: false });
    expect(one.headers.get("content-type")).toContain("application/json");
    expect(await one.json()).toMatchObject({ message: { content: "" }, done_reason: "unload" });
  });
});

describe("options", () => {
  it("have Ollama's defaults and names", async () => {
    const requests: Parameters<typeof letters>[0][] = [];
    const { ollama } = await start({
      script: (...args) => {
        requests.push(args[0]);
        return letters(...args);
      },
    });
    const answer = await ollama.generate({ model, prompt: "Hi", options: { num_predict: 3, seed: 7 } });
    expect(answer).toMatchObject({ done_reason: "length", eval_count: 3 });
    expect(requests[0]).toMatchObject({
      maxTokens: 3,
      sampling: { temperature: 0.8, topK: 40, topP: 0.9, minP: 0, repetitionPenalty: 1, seed: 7n },
    });
    requests.length = 0;
    const options = {
      temperature: 0,
      top_k: 1,
      top_p: 0.5,
      min_p: 0.1,
      repeat_penalty: 1.1,
      stop: ["x"],
      num_predict: 9,
    };
    await ollama.generate({ model, prompt: "Hi", options });
    expect(requests[0].sampling).toMatchObject({
      temperature: 0,
      topK: 1,
      topP: 0.5,
      minP: 0.1,
      repetitionPenalty: 1.1,
    });
    requests.length = 0;
    const limited = await ollama.generate({ model, raw: true, prompt: "Hi", options: { num_ctx: 8, num_predict: 90 } });
    expect(limited.eval_count).toBe(5);
  });

  it("that say how to compute, and those that Ollama no longer heeds, change nothing", async () => {
    const { ollama } = await start();
    const ask = async (options: object) => (await ollama.generate({ model, prompt: "Hi", options })).response;
    const hints = { num_thread: 3, num_gpu: 99, main_gpu: 1, num_batch: 64, use_mmap: false, draft_num_predict: 2 };
    expect(await ask({ ...hints, mirostat: 1, use_mlock: true, num_predict: 3 })).toBe(await ask({ num_predict: 3 }));
  });

  it("that are not done are refused by name", async () => {
    const { post } = await start();
    const refused = async (body: object) => {
      const response = await post("/api/generate", { model, prompt: "Hi", ...body });
      return [response.status, ((await response.json()) as { error: string }).error] as const;
    };
    expect(await refused({ options: { typical_p: 0.5 } })).toEqual([400, expect.stringContaining("typical_p")]);
    expect(await refused({ options: { repeat_last_n: 8 } })).toEqual([400, expect.stringContaining("repeat_last_n")]);
    expect(await refused({ options: { temprature: 1 } })).toEqual([400, expect.stringContaining("temprature")]);
    expect(await refused({ options: { nonsense: 1 } })).toEqual([400, expect.stringContaining("nonsense")]);
    expect(await refused({ options: { top_k: "many" } })).toEqual([400, expect.stringContaining("top_k")]);
    expect(await refused({ nonsense: 1 })).toEqual([400, expect.stringContaining("nonsense")]);
    expect(await refused({ images: ["aGk="] })).toEqual([400, expect.stringContaining("images")]);
    expect(await refused({ shift: true })).toEqual([400, expect.stringContaining("shift")]);
    expect(await refused({ suffix: "}" })).toEqual([400, expect.stringContaining("insert")]);
    expect(await refused({ keep_alive: "soon" })).toEqual([400, expect.stringContaining("keep_alive")]);
    expect(await refused({ top_logprobs: 2 })).toEqual([400, expect.stringContaining("logprobs")]);
  });

  it("logprobs come with the tokens", async () => {
    const { ollama } = await start();
    const answer = await ollama.generate({ model, prompt: "Hi", logprobs: true, top_logprobs: 2 });
    expect(answer.logprobs?.map(({ token }) => token)).toEqual(words.slice(0, 3));
    expect(answer.logprobs?.[0]).toMatchObject({ logprob: -0.5, bytes: [72, 101, 108, 108, 111] });
    expect(answer.logprobs?.[0].top_logprobs).toHaveLength(2);
  });
});

describe("around the routes", () => {
  it("there is life, a version, and no cloud", async () => {
    const { server, ollama } = await start();
    expect(await (await fetch(server.url)).text()).toBe("Ollama is running");
    for (const path of ["/", "/api/version", "/api/tags"]) {
      expect((await fetch(server.url + path, { method: "HEAD" })).status).toBe(200);
    }
    expect((await ollama.version()).version).toMatch(/^\d+\.\d+\.\d+$/);
    expect(await (await fetch(`${server.url}/api/status`)).json()).toEqual({
      cloud: { disabled: true, source: "server" },
    });
    const suggested = await fetch(`${server.url}/api/experimental/model-recommendations`);
    expect(await suggested.json()).toEqual({
      recommendations: [{ model: "smollm2", description: "SmolLM2-135M-Instruct, Q4_1" }],
    });
    const heard = await fetch(`${server.url}/v1/audio/transcriptions`, { method: "POST", body: new FormData() });
    expect([heard.status, await heard.text()]).toEqual([501, expect.stringMatching(/transcribes nothing/)]);
  });

  it("bodies are JSON whatever curl calls them", async () => {
    const { post } = await start();
    const body = { model, prompt: "Hi", stream: false };
    for (const type of ["application/x-www-form-urlencoded", "text/plain"]) {
      expect((await post("/api/generate", body, { "content-type": type })).status).toBe(200);
    }
    const broken = await post("/api/generate", "{");
    expect([broken.status, await broken.json()]).toEqual([400, { error: expect.stringContaining("not valid JSON") }]);
  });

  it("pages of other origins are refused, local ones are not", async () => {
    const { post } = await start();
    const from = async (origin: string) =>
      (await post("/api/generate", { model, prompt: "Hi", stream: false }, { origin })).status;
    expect(await from("https://example.org")).toBe(403);
    expect(await from("http://localhost.example.org")).toBe(403);
    expect(await from("null")).toBe(403);
    expect(await from("http://localhost:3000")).toBe(200);
  });

  it("errors are {error: text}: unknown models, unknown paths, a missing name, a missing key", async () => {
    const { ollama, post, server } = await start({ apiKeys: ["secret"] });
    const key = { authorization: "Bearer secret" };
    await expect(ollama.chat({ model, messages: [hello] })).rejects.toMatchObject({ status_code: 401 });
    const told = async (response: Response) => [response.status, await response.json()];
    const text = { error: expect.any(String) };
    expect(await told(await post("/api/chat", { model: "other", messages: [hello] }, key))).toEqual([404, text]);
    expect(await told(await post("/api/chat", { messages: [hello] }, key))).toEqual([400, text]);
    expect(await told(await post("/api/nothing", {}, key))).toEqual([404, text]);
    expect(await told(await fetch(`${server.url}/api/chat`, { headers: key }))).toEqual([405, text]);
  });

  it("an engine that dies in mid-stream is an error line; a client that leaves ends its request", async () => {
    const { ollama, engine } = await start({ script: letters });
    engine.pace = 5;
    const read = async (stop: (parts: number) => void) => {
      let parts = 0;
      for await (const _ of await ollama.chat({ model, messages: [hello], stream: true })) stop(++parts);
    };
    await expect(read((parts) => parts === 3 && engine.die())).rejects.toThrow("process ended");
    const leaving = read((parts) => parts === 3 && ollama.abort());
    await expect(leaving).rejects.toThrow();
    await until(() => engine.running === 0);
  });

  it("a server that was started for certain models changes none", async () => {
    const { ollama, server } = await start();
    await expect(ollama.copy({ source: "tiny", destination: "other" })).rejects.toMatchObject({ status_code: 403 });
    await expect(ollama.delete({ model })).rejects.toMatchObject({ status_code: 403 });
    await expect(ollama.pull({ model })).rejects.toMatchObject({ status_code: 403 });
    const blob = await fetch(`${server.url}/api/blobs/sha256:${"0".repeat(64)}`, { method: "POST", body: "x" });
    expect(blob.status).toBe(403);
  });
});
