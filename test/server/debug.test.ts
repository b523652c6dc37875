// /debug/timeline and its page: what an engine did, for whom, and who may see it.
import { createHash } from "node:crypto";
import { runInNewContext } from "node:vm";
import { afterEach, expect, it } from "vitest";
import { EngineClient } from "../../src/engine/client.js";
import { runHost } from "../../src/engine/host.js";
import { channel } from "../../src/engine/protocol.js";
import type { Timeline } from "../../src/engine/types.js";
import { digestOf } from "../../src/server/keys.js";
import { World } from "../engine/harness.js";
import { type Rig, type RigOptions, rig } from "./support.js";

const open: Rig[] = [];
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

async function start(options: RigOptions = {}): Promise<Rig> {
  const carrier = () => {
    const [client, host] = channel();
    const load = async () => {
      const { program, limits } = new World();
      const { contextLength, maxSequences } = limits;
      const memory = { weights: 0, workspace: 0, cache: 0 };
      const about = { contextLength, trainedContextLength: contextLength, maxSequences, device: "null", memory };
      return { program, limits, modelLimits: { ...about, vocabSize: 97 }, close: () => program.close() };
    };
    const pause = () => new Promise<void>((resolve) => setImmediate(resolve));
    void runHost(host, { load, pause, now: () => performance.now() });
    return client;
  };
  const generator = await EngineClient.open({ carrier, spec: {} });
  const one = await rig({ generator, text: null, ...options });
  open.push(one);
  return one;
}

type Told = { models: (Timeline & { model: string; date: string })[] };
const told = async ({ server }: Rig, query = "") =>
  (await (await fetch(`${server.url}/debug/timeline${query}`)).json()) as Told;

it("tells each request's steps under the id that its caller knows", async () => {
  const one = await start();
  const body = { model: "tiny", prompt: [1, 2, 3, 4, 5], max_tokens: 4, n: 2 };
  await (await one.post("/v1/completions", body, { "x-request-id": "call-7" })).text();
  const [timeline] = (await told(one)).models;
  expect(timeline.model).toBe("tiny");
  expect(timeline.choices.map(({ request, index, reason }) => [request, index, reason])).toEqual([
    ["call-7", 0, "length"],
    ["call-7", 1, "length"],
  ]);
  const drawn = timeline.steps.flatMap(({ actions }) => actions.filter(({ draws }) => draws));
  expect(drawn).toHaveLength(8);
  expect((await told(one, "?steps=1&model=tiny")).models[0].steps).toHaveLength(1);
});

it("refuses parameters that are none, and models that are not there", async () => {
  const one = await start();
  for (const [query, status] of [
    ["steps=0", 400],
    ["steps=4001", 400],
    ["last=3", 400],
    ["model=other", 404],
  ]) {
    expect((await fetch(`${one.server.url}/debug/timeline?${query}`)).status, String(query)).toBe(status);
  }
});

it("is for keys that may read metrics; the page itself holds nothing, and runs no script but its own", async () => {
  const keys = (["infer", "metrics"] as const).map((scope) => {
    return { name: scope, scopes: new Set([scope]), digest: digestOf(scope) };
  });
  const one = await start({ keys });
  const get = (path: string, key?: string) =>
    fetch(one.server.url + path, { headers: key === undefined ? {} : { authorization: `Bearer ${key}` } });
  expect((await get("/debug/timeline")).status).toBe(401);
  expect((await get("/debug/timeline", "infer")).status).toBe(403);
  expect((await get("/debug/timeline", "metrics")).status).toBe(200);
  const answer = await get("/debug");
  expect(answer.status).toBe(200);
  const page = await answer.text();
  const script = /<script>([\s\S]*)<\/script>/.exec(page)![1];
  const digest = createHash("sha256").update(script).digest("base64");
  expect(answer.headers.get("content-security-policy")).toContain(`script-src 'sha256-${digest}'`);
  expect(page).not.toMatch(/src=|https?:|innerHTML/);
});

/** As much of a browser as the page needs; what is drawn is gathered. */
function browser(fetch: (path: string, init: { headers: object }) => Promise<Response>) {
  const drawn: string[] = [];
  const element = () => ({
    value: "",
    checked: true,
    textContent: "",
    style: {},
    clientWidth: 800,
    onpointermove: undefined as unknown as (event: object) => void,
    getContext: () => pen,
    addEventListener: () => {},
    replaceChildren: () => {},
  });
  const pen = {
    fillStyle: "",
    fillRect: () => drawn.push(pen.fillStyle),
    setTransform: () => {},
    clearRect: () => {},
    fillText: () => {},
  };
  const elements = new Map<string, ReturnType<typeof element>>();
  const named = (id: string) => elements.get(id) ?? elements.set(id, element()).get(id)!;
  const context = {
    document: { getElementById: named, body: {}, hidden: true },
    getComputedStyle: () => ({ color: "black" }),
    devicePixelRatio: 1,
    Option: class {},
    fetch,
    addEventListener: () => {},
    setInterval: () => {},
  };
  return { context, named, drawn };
}

it("draws prompts and tokens of what the server tells, and reads out what is pointed at", async () => {
  const one = await start();
  await (await one.post("/v1/completions", { model: "tiny", prompt: [1, 2, 3], max_tokens: 20 })).text();
  const page = await (await fetch(`${one.server.url}/debug`)).text();
  const { context, named, drawn } = browser((path, init) => fetch(`${one.server.url}/${path}`, init as RequestInit));
  runInNewContext(/<script>([\s\S]*)<\/script>/.exec(page)![1], context);
  await expect.poll(() => named("state").textContent).toMatch(/^20 steps, 1 choices$/);
  expect(drawn.filter((color) => color === "#22a35a")).toHaveLength(19);
  expect(drawn.filter((color) => color === "#3b82f6")).toHaveLength(1);
  named("canvas").onpointermove({ buttons: 0, offsetX: 780, offsetY: 65 });
  expect(named("about").textContent).toContain('"promptTokens":3');
});
