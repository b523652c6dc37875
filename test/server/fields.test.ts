// Every field that the vendors' own clients declare for what they ask: each either does something (or asks for what happens
// anyway), or is a 400 that names it. The list is read from the clients' type declarations, so a new one is noticed.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Rig, rig } from "./support.js";

/** The fields of an interface in a declaration file of a package. */
function declared(file: string, name: string): string[] {
  const text = readFileSync(new URL(`../../node_modules/${file}`, import.meta.url), "utf8");
  const start = text.search(new RegExp(`export interface ${name}( extends \\w+)? \\{`));
  const body = text.slice(start, text.indexOf("\n}", start));
  // Within a namespace declarations stand deeper.
  const [, indent] = /\n( +)(?:\/\*\*|\w+\??:)/.exec(body)!;
  const end = body.indexOf(`\n${indent.slice(4)}}`);
  const own = end > 0 && indent.length > 4 ? body.slice(0, end) : body;
  return [...own.matchAll(new RegExp(`\\n${indent}(\\w+)\\??:`, "g"))].map(([, field]) => field);
}

const refused = Symbol("a 400 that names the field");
type Value = unknown | typeof refused;
/** A field with what is taken; [refused, value] where it is not. */
type Table = Readonly<Record<string, Value | readonly [typeof refused, unknown]>>;

const parameters = { type: "object", properties: { a: { type: "integer" } } };
const asTool = { type: "function", function: { name: "f", parameters } };
const metadata = { team: "a" };

const chat: Table = {
  messages: [{ role: "user", content: "Hi" }],
  model: "tiny",
  audio: [refused, { voice: "alloy", format: "mp3" }],
  frequency_penalty: 0.5,
  function_call: [refused, { name: "f" }],
  functions: [refused, [{ name: "f" }]],
  logit_bias: { "72": 5 },
  logprobs: true,
  max_completion_tokens: 8,
  max_tokens: 8,
  metadata,
  modalities: [refused, ["text", "audio"]],
  moderation: [refused, {}],
  n: 2,
  parallel_tool_calls: false,
  prediction: [refused, { type: "content", content: "Hello" }],
  presence_penalty: 0.5,
  prompt_cache_key: "k",
  prompt_cache_options: [refused, {}],
  prompt_cache_retention: [refused, "24h"],
  reasoning_effort: [refused, "high"],
  response_format: { type: "json_object" },
  safety_identifier: "me",
  seed: 1,
  service_tier: "default",
  stop: ["x"],
  store: [refused, true],
  stream: true,
  stream_options: [refused, { include_obfuscation: true }],
  temperature: 0.5,
  tool_choice: "none",
  tools: [asTool],
  top_logprobs: [refused, 3],
  top_p: 0.5,
  user: "me",
  verbosity: [refused, "high"],
  web_search_options: [refused, {}],
};

const completions: Table = {
  model: "tiny",
  prompt: "Hi",
  best_of: 3,
  echo: true,
  frequency_penalty: 0.5,
  logit_bias: { "72": 5 },
  logprobs: 3,
  max_tokens: 4,
  n: 2,
  presence_penalty: 0.5,
  seed: 1,
  stop: "x",
  stream: true,
  stream_options: [refused, { include_obfuscation: true }],
  // The scripted model's template has no place for it.
  suffix: [refused, "x"],
  temperature: 0.5,
  top_p: 0.5,
  user: "me",
};

const responses: Table = {
  background: [refused, "yes"],
  context_management: [refused, [{ type: "compaction" }]],
  conversation: [refused, "conv_1"],
  include: ["message.output_text.logprobs"],
  input: "Hi",
  instructions: "Be brief.",
  max_output_tokens: 16,
  max_tool_calls: [refused, 3],
  metadata,
  model: "tiny",
  moderation: [refused, {}],
  multi_agent: [refused, {}],
  parallel_tool_calls: false,
  previous_response_id: [refused, 5],
  prompt: [refused, { id: "p" }],
  prompt_cache_key: "k",
  prompt_cache_options: [refused, {}],
  prompt_cache_retention: "in_memory",
  reasoning: [refused, { effort: "high" }],
  safety_identifier: "me",
  service_tier: "default",
  store: false,
  stream: true,
  stream_options: [refused, { include_obfuscation: true }],
  temperature: 0.5,
  text: { format: { type: "json_object" } },
  tool_choice: "none",
  tools: [{ type: "function", name: "f", parameters }],
  top_logprobs: [refused, 3],
  top_p: 0.5,
  truncation: "auto",
  user: "me",
};

const anthropic: Table = {
  max_tokens: 16,
  messages: [{ role: "user", content: "Hi" }],
  model: "tiny",
  cache_control: [refused, { type: "ephemeral" }],
  container: [refused, "c"],
  diagnostics: [refused, {}],
  inference_geo: [refused, "eu"],
  metadata: { user_id: "me" },
  output_config: { format: { type: "json_schema", schema: parameters } },
  service_tier: "auto",
  speed: [refused, "fast"],
  stop_sequences: ["x"],
  stream: true,
  system: "Be brief.",
  temperature: 0.5,
  thinking: [refused, { type: "enabled", budget_tokens: 1024 }],
  tool_choice: { type: "none" },
  tools: [{ name: "f", input_schema: parameters, strict: true }],
  top_k: 5,
  top_p: 0.5,
  user_profile_id: [refused, "u"],
  workspace_id: [refused, "w"],
};

const routes: [route: string, file: string, name: string, table: Table, needed: string[]][] = [
  [
    "/v1/chat/completions",
    "openai/resources/chat/completions/completions.d.ts",
    "ChatCompletionCreateParamsBase",
    chat,
    ["messages"],
  ],
  ["/v1/completions", "openai/resources/completions.d.ts", "CompletionCreateParamsBase", completions, ["prompt"]],
  ["/v1/responses", "openai/resources/responses/responses.d.ts", "ResponseCreateParamsBase", responses, ["input"]],
  [
    "/v1/messages",
    "@anthropic-ai/sdk/resources/messages/messages.d.ts",
    "MessageCreateParamsBase",
    anthropic,
    ["messages", "max_tokens"],
  ],
];

let one: Rig;
beforeAll(async () => {
  one = await rig({ contextLength: 4096 });
});
afterAll(() => one.server.close());

it.each(routes)("%s: every declared field is known here", (_route, file, name, table) => {
  const fields = declared(file, name);
  expect(fields.length).toBeGreaterThan(10);
  expect(fields.filter((field) => !(field in table))).toEqual([]);
});

const each = routes.flatMap(([route, , , table, needed]) =>
  Object.entries(table).map(([field, value]) => [route, field, value, table, needed] as const),
);

it.each(each)("%s: %s", async (route, field, value, table, needed) => {
  const base = Object.fromEntries(["model", ...needed].map((name) => [name, table[name]]));
  const no = Array.isArray(value) && value[0] === refused;
  const given = no ? value[1] : value;
  const store = route === "/v1/responses" ? { store: false } : {};
  const answer = await one.post(route, { ...store, ...base, [field]: given });
  const text = await answer.text();
  expect([answer.status, text.slice(0, 300)]).toEqual([no ? 400 : 200, expect.any(String)]);
  if (!no) return;
  const { error } = JSON.parse(text) as { error: { message: string; param?: string } };
  expect(error.message + (error.param ?? "")).toMatch(new RegExp(`${field}|think`));
});

it("embeddings: what the client declares is in the route's schema", () => {
  const fields = declared("openai/resources/embeddings.d.ts", "EmbeddingCreateParams");
  expect(fields.sort()).toEqual(["dimensions", "encoding_format", "input", "model", "user"]);
});

it("the best of several completions are those whose tokens are likeliest, in order", async () => {
  const { client } = one;
  const body = { model: "tiny", prompt: "Hi", max_tokens: 3, seed: 5 };
  const best = await client.completions.create({ ...body, n: 2, best_of: 4 });
  expect(best.choices.map(({ index }) => index)).toEqual([0, 1]);
  expect(best.choices[0].logprobs).toBeNull();
  expect(best.usage!.completion_tokens).toBe(12);
  await expect(client.completions.create({ ...body, n: 3, best_of: 2 })).rejects.toThrow(
    /"best_of" must be at least "n" \(3\)/,
  );
  await expect(client.completions.create({ ...body, best_of: 2, stream: true })).rejects.toThrow(
    /best_of.*in a stream/,
  );
});

it("metadata and the service tier stand in the answer; more than OpenAI takes is refused", async () => {
  const { client } = one;
  const body = { model: "tiny", messages: [{ role: "user" as const, content: "Hi" }] };
  const answer = await client.chat.completions.create({ ...body, metadata, service_tier: "auto" });
  expect(answer).toMatchObject({ metadata, service_tier: "default" });
  expect(await client.chat.completions.create(body)).not.toHaveProperty("service_tier");
  const many = Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`k${i}`, "v"]));
  await expect(client.chat.completions.create({ ...body, metadata: many })).rejects.toThrow(/metadata.*at most 16/);
});
