// Who may do what: keys with scopes, TLS, pages of other origins, the audit log; and how a server ends.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { get } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { Budgets } from "../../src/server/budgets.js";
import { newKey, readKeys, scopes } from "../../src/server/keys.js";
import { checkOutbound } from "../../src/server/outbound.js";
import { byteText, letters } from "../session/fakes.js";
import { type Rig, type RigOptions, rig, until } from "./support.js";

const open: Rig[] = [];
const folders: string[] = [];
const start = async (options?: RigOptions) => {
  const one = await rig(options);
  open.push(one);
  return one;
};
const folder = () => {
  const path = mkdtempSync(join(tmpdir(), "millrace-"));
  folders.push(path);
  return path;
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
  for (const path of folders.splice(0)) rmSync(path, { recursive: true });
});

const chat = { model: "tiny", messages: [{ role: "user", content: "Hi" }] };

describe("keys", () => {
  it("do what their scopes say, however the path is spelled", async () => {
    const [asks, reads, keeps] = [newKey("asks", ["infer"]), newKey("reads", ["metrics"]), newKey("keeps", ["manage"])];
    const path = join(folder(), "keys");
    writeFileSync(path, `# ours\n${[asks, reads, keeps].map(({ line }) => line).join("\n")}\n`);
    for (const { key } of [asks, reads, keeps]) expect(readFileSync(path, "utf8")).not.toContain(key);
    const { server, post } = await start({ keys: readKeys(path) });
    const status = async (key: string, path: string, body?: object) => {
      const headers = { authorization: `Bearer ${key}` };
      return (body ? await post(path, body, headers) : await fetch(server.url + path, { headers })).status;
    };
    expect(await status(asks.key, "/v1/chat/completions", chat)).toBe(200);
    expect(await status(asks.key, "/metrics")).toBe(403);
    const pull = async (key: string, path: string) =>
      (await post(path, { model: "x" }, { authorization: `Bearer ${key}` })).text();
    for (const spelled of ["/api/pull", "/api/pull/", "/api/%70ull", "/api/pull?x=1"]) {
      expect(await pull(asks.key, spelled), spelled).toContain("lacks the scope");
      // Past the guard: this server has no store to pull into.
      expect(await pull(keeps.key, spelled), spelled).toMatch(/^(?!.*scope).*error/s);
    }
    expect(await status(keeps.key, "/v1/chat/completions", chat)).toBe(403);
    expect(await status(reads.key, "/metrics")).toBe(200);
    expect(await status(reads.key, "/v1/models")).toBe(403);
    expect(await status("mr-wrong", "/v1/models")).toBe(401);
  });

  it("are refused where their file is wrong, by line", () => {
    const path = join(folder(), "keys");
    const { line } = newKey("one", ["infer"]);
    writeFileSync(path, `${line}\ntwo everything ${"0".repeat(64)}\n`);
    expect(() => readKeys(path)).toThrow(`${path}:2 is no key`);
    writeFileSync(path, "\n");
    expect(() => readKeys(path)).toThrow("There is no key");
    expect(() => newKey("a b", ["infer"])).toThrow("cannot name a key");
  });
});

describe("budgets", () => {
  it("are kept a day, across restarts and between servers", () => {
    const path = folder();
    let now = Date.parse("2030-01-01T23:00:00Z");
    const clock = () => now;
    const key = { name: "one", scopes: new Set(scopes), digest: Buffer.alloc(32), budget: 100 };
    const [first, second] = [new Budgets(path, clock), new Budgets(path, clock)];
    first.spend(key, 60);
    first.check(key);
    first.flush();
    second.check(key);
    second.spend(key, 41);
    second.flush();
    const refused = (() => {
      try {
        first.check(key);
      } catch (error) {
        return error;
      }
      return undefined;
    })();
    expect(refused).toMatchObject({ status: 429, code: "budget_exceeded", retryAfter: 3600 });
    const third = new Budgets(path, clock);
    expect(() => third.check(key)).toThrow("101 were used");
    third.check({ ...key, name: "other" });
    now += 3600_000;
    third.check(key);
    expect(readdirSync(path)).toEqual([]);
  });

  it("are charged for prompts and answers, and refuse what comes after", async () => {
    const { key, line } = newKey("small", ["infer"], { budget: 20, weight: 2 });
    const path = join(folder(), "keys");
    writeFileSync(path, `${line}\n`);
    const usageFolder = folder();
    const seen = new Set<unknown>();
    const script: typeof letters = (request, index, position) => {
      seen.add(`${request.client} ${request.weight}`);
      return letters(request, index, position);
    };
    const first = await start({ keys: readKeys(path), usageFolder, script });
    const ask = (one: Rig) =>
      one.post("/v1/completions", { model: "tiny", prompt: "abc", max_tokens: 9 }, { authorization: `Bearer ${key}` });
    expect((await ask(first)).status).toBe(200);
    expect((await ask(first)).status).toBe(200);
    const refused = await ask(first);
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await refused.text()).toContain("budget_exceeded");
    // Whose they are is known to the scheduler.
    expect([...seen]).toEqual(["small 2"]);
    await first.server.close();
    expect((await ask(await start({ keys: readKeys(path), usageFolder }))).status).toBe(429);
  });

  it("may put their requests before others' only as far as they were allowed to", async () => {
    const path = join(folder(), "keys");
    const [plain, urgent] = [newKey("plain", ["infer"]), newKey("urgent", ["infer"], { priority: -10 })];
    writeFileSync(path, `${plain.line}\n${urgent.line}\n`);
    const { post } = await start({ keys: readKeys(path), apiKeys: ["all"] });
    const ask = async (key: string, priority: number) =>
      (await post("/v1/chat/completions", { ...chat, priority }, { authorization: `Bearer ${key}` })).status;
    expect([await ask(plain.key, 0), await ask(plain.key, 5), await ask(plain.key, -1)]).toEqual([200, 200, 403]);
    expect([await ask(urgent.key, -10), await ask(urgent.key, -11)]).toEqual([200, 403]);
    expect(await ask("all", -1000)).toBe(200);
    writeFileSync(path, plain.line);
    const alone = await start({ keys: readKeys(path) });
    const headers = { authorization: `Bearer ${plain.key}` };
    expect((await alone.post("/v1/chat/completions", { ...chat, priority: -5 }, headers)).status).toBe(200);
  });

  it("and weights that are none are refused, by line", () => {
    const path = join(folder(), "keys");
    const { line } = newKey("one", ["infer"]);
    for (const terms of [
      "weight=0",
      "weight=1000",
      "budget=1.5",
      "budget=-1",
      "priority=-0.5",
      "priority=1",
      "speed=2",
    ]) {
      writeFileSync(path, `${line} ${terms}\n`);
      expect(() => readKeys(path), terms).toThrow(`${path}:1 is no key`);
    }
    writeFileSync(path, `${line}\n${newKey("one", ["infer"]).line}\n`);
    expect(() => readKeys(path)).toThrow("two keys called one");
  });
});

it("asks for a key on every route but those that are listed as public", async () => {
  const { server } = await start({ apiKeys: ["secret"] });
  const { routes } = server;
  expect(routes.length).toBeGreaterThan(40);
  expect(routes).toContain("POST /v1/chat/completions");
  const open = new Set<string>();
  for (const route of routes) {
    const [method, path] = route.split(" ");
    const url = server.url + path.replace("*", "x").replace(/:\w+/g, "x");
    const answer = await fetch(url, { method, body: method === "POST" ? "{}" : undefined });
    if (answer.status !== 401) open.add(route);
    // However the path is spelled.
    for (const spelled of [`${url}/`, `${url}?key=secret`, url.replace(/[a-z](?=[^/]*$)/, "%61")]) {
      const again = await fetch(spelled, { method, body: method === "POST" ? "{}" : undefined });
      expect([401, 404], `${method} ${spelled}`).toContain(open.has(route) ? 401 : again.status);
    }
    await answer.arrayBuffer();
  }
  const watched = ["/health", "/ping", "/ready"].flatMap((path) => [`GET ${path}`, `HEAD ${path}`]);
  const described = ["GET /debug", "GET /docs", "GET /openapi.json", "GET /api-doc/openapi.json"];
  expect([...open].sort()).toEqual([...watched, ...described].sort());
});

it("talks to no host that a caller with a key names, unless it was told of it", () => {
  for (const name of [
    "http://169.254.169.254/latest.gguf",
    "https://10.0.0.1/model.gguf",
    "localhost:5000/library/model",
    "http://127.0.0.1:8080/library/model",
    "evil.example/library/model",
  ]) {
    expect(() => checkOutbound(name, []), name).toThrow("does not talk to");
    checkOutbound(name, null);
    checkOutbound(name, ["*"]);
  }
  for (const name of ["smollm2", "llama3.2:1b", "hf:owner/repo", "hf.co/owner/repo:Q4_K_M"]) checkOutbound(name, []);
  checkOutbound("registry.example/library/model", ["registry.example"]);
});

it("speaks HTTPS with a certificate, and ends though a connection is silent", async () => {
  const pem = (name: string) => readFileSync(new URL(`tls/${name}.pem`, import.meta.url), "utf8");
  const { server } = await start({ tls: { cert: pem("cert"), key: pem("key") } });
  expect(server.url).toMatch(/^https:/);
  const status = await new Promise((resolve, reject) => {
    get(`${server.url}/v1/models`, { ca: pem("cert") }, (answer) => resolve(answer.resume().statusCode)).on(
      "error",
      reject,
    );
  });
  expect(status).toBe(200);
  await expect(fetch(server.url.replace("https", "http"))).rejects.toThrow();
});

describe("pages of other origins", () => {
  const preflight = (url: string, origin: string) =>
    fetch(url, {
      method: "OPTIONS",
      headers: { origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization" },
    });

  it("may call where they are named, preflights without a key", async () => {
    const { server, post } = await start({ corsOrigins: ["https://app.example"], apiKeys: ["secret"] });
    const allowed = await preflight(`${server.url}/v1/chat/completions`, "https://app.example");
    expect([allowed.status, allowed.headers.get("access-control-allow-origin")]).toEqual([204, "https://app.example"]);
    expect(allowed.headers.get("access-control-allow-headers")).toBe("authorization");
    const origin = { origin: "https://app.example", authorization: "Bearer secret" };
    const answer = await post("/v1/chat/completions", { ...chat, stream: true }, origin);
    expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([200, "https://app.example"]);
    expect((await post("/api/show", { model: "tiny" }, origin)).status).not.toBe(403);
    const foreign = await preflight(`${server.url}/v1/chat/completions`, "https://evil.example");
    expect([foreign.status, foreign.headers.get("access-control-allow-origin")]).toEqual([401, null]);
  });

  it("may call from this machine, from programs' own pages, and where a pattern has them", async () => {
    const { server } = await start({ corsOrigins: ["https://*.example.org", "chrome-extension://*"] });
    const answer = async (origin: string) => (await preflight(`${server.url}/api/chat`, origin)).status;
    const may = ["http://localhost:3000", "http://127.0.0.1", "app://obsidian.md", "vscode-webview://abc"];
    for (const origin of [...may, "https://a.example.org", "chrome-extension://abcdef"]) {
      expect(await answer(origin)).toBe(204);
    }
    for (const origin of [
      "http://localhost.evil.org",
      "https://a.example-org",
      "https://example.org.evil.net",
      "null",
    ]) {
      expect(await answer(origin)).not.toBe(204);
    }
  });

  it("are told nothing otherwise", async () => {
    const { server, post } = await start();
    const answer = await preflight(`${server.url}/v1/chat/completions`, "https://app.example");
    expect([answer.ok, answer.headers.get("access-control-allow-origin")]).toEqual([false, null]);
    expect((await post("/api/show", { model: "tiny" }, { origin: "https://app.example" })).status).toBe(403);
  });
});

it("writes who asked what, refusals too, and not what was said", async () => {
  const path = join(folder(), "audit.jsonl");
  const one = await start({ apiKeys: ["secret"], auditLog: path });
  await (await one.post("/v1/chat/completions", chat, { authorization: "Bearer secret" })).text();
  await one.post("/v1/chat/completions", chat, { authorization: "Bearer wrong" });
  const headers = { authorization: "Bearer secret" };
  await fetch(`${one.server.url}/v1/files/file-7`, { method: "DELETE", headers });
  await one.post("/api/show", { model: "n".repeat(5000) }, headers);
  await one.server.close();
  const text = readFileSync(path, "utf8");
  const lines = text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines).toMatchObject([
    {
      key: "key-1",
      route: "/v1/chat/completions",
      status: 200,
      model: "tiny",
      generatedTokens: 4,
      address: "127.0.0.1",
    },
    { key: null, route: "/v1/chat/completions", status: 401, model: null },
    { key: "key-1", route: "/v1/files/:id", status: 404, subject: "file-7" },
    { key: "key-1", route: "/api/show", status: 404, subject: "n".repeat(200) },
  ]);
  expect(text).not.toMatch(/secret|Hello|Hi/);
  expect(statSync(path).mode & 0o077).toBe(0);
});

it("ends by finishing what runs, while those who come are told to come back", async () => {
  const { engine, server, post } = await start({ script: letters, contextLength: 1 << 20, drainMs: 20_000 });
  engine.pace = 20;
  const running = post("/v1/chat/completions", { ...chat, max_tokens: 50 });
  await until(() => engine.running === 1);
  const closed = server.close();
  const refused = await post("/v1/chat/completions", chat);
  expect([refused.status, refused.headers.get("retry-after")]).toEqual([503, "10"]);
  const ready = await fetch(`${server.url}/ready`);
  expect([ready.status, ((await ready.json()) as { status: string }).status]).toEqual([503, "draining"]);
  const answer = (await (await running).json()) as { choices: { finish_reason: string }[] };
  expect(answer.choices[0].finish_reason).toBe("length");
  await closed;
});

it("too much text at once, or too many messages, is refused before anything is rendered or tokenized", async () => {
  const fails = () => expect.fail("it was rendered or tokenized");
  const text = {
    tokenizer: { ...byteText.tokenizer, encode: fails },
    template: { ...byteText.template!, encode: fails },
  };
  const { post } = await start({ text });
  const much = "x".repeat(2_000_001);
  const many = Array.from({ length: 20_000 }, () => ({ role: "user", content: "" }));
  for (const [path, body] of [
    ["/tokenize", { inputs: much }],
    ["/tokenize", { prompt: much }],
    ["/tokenize", { messages: many }],
    ["/chat_tokenize", { messages: many }],
    ["/generate", { inputs: much, parameters: { truncate: 5 } }],
    ["/v1/messages/count_tokens", { model: "tiny", messages: many }],
    ["/v1/messages", { model: "tiny", max_tokens: 1, messages: many }],
    ["/v1/chat/completions", { messages: many }],
    ["/v1/chat/completions", { messages: many, context_overflow: "drop_oldest" }],
    ["/api/chat", { model: "tiny", messages: [...many, { role: "user", content: much }] }],
  ] as const) {
    const answer = await post(path, body);
    const said = await answer.text();
    expect([answer.status === 400 || answer.status === 422, said], path).toEqual([true, said]);
    expect(said, path).toMatch(/too much text at once|there are \d+ messages|context/);
  }
}, 30_000);
