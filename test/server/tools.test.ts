// Tools, formats and reasoning by OpenAI's own client and its helpers, on a scripted engine: what reaches the engine, and how
// its answer comes back, whole and streamed.
import { afterEach, describe, expect, it } from "vitest";
import type { GenerateRequest } from "../../src/engine/types.js";
import { eos, ids, type Script } from "../session/fakes.js";
import { type Rig, rig } from "./support.js";

const open: Rig[] = [];
const requests: GenerateRequest[] = [];
const start = async (...answers: string[]) => {
  requests.length = 0;
  const script: Script = (request, _index, position) => {
    if (!requests.includes(request)) requests.push(request);
    const text = answers[Math.min(requests.indexOf(request), answers.length - 1)];
    return [...ids(text), eos][position] ?? eos;
  };
  const one = await rig({ script, contextLength: 4096 });
  open.push(one);
  return one;
};
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

const messages = [{ role: "user" as const, content: "What is 1 + 2?" }];
const tools = [
  {
    type: "function" as const,
    function: {
      name: "add",
      description: "Adds",
      parameters: {
        type: "object",
        properties: { a: { type: "integer" }, b: { type: "integer" } },
        required: ["a", "b"],
      },
      strict: true,
    },
  },
];
const call = (a: number, b: number) =>
  `<tool_call>\n{"name": "add", "arguments": {"a": ${a}, "b": ${b}}}\n</tool_call>`;

describe("tools", () => {
  it("come back as calls, with a reason of their own", async () => {
    const { client } = await start(call(1, 2));
    const { choices } = await client.chat.completions.create({ model: "tiny", messages, tools });
    expect(choices[0].finish_reason).toBe("tool_calls");
    expect(choices[0].message.content).toBeNull();
    const [made] = choices[0].message.tool_calls!;
    expect(made).toMatchObject({ type: "function", function: { name: "add", arguments: '{"a": 1, "b": 2}' } });
    expect(made.id).toMatch(/^call_\w{24}$/);
    expect(requests[0].grammar?.text).toContain("TagDispatch");
  });

  it("stream as deltas that the client's own helper puts together, as the whole answer is", async () => {
    const said = `Let me see.\n${call(1, 2)}\n${call(3, 4)}`;
    const { client } = await start(said, said);
    const body = { model: "tiny", messages, tools };
    const whole = (await client.chat.completions.create(body)).choices[0].message;
    const stream = client.chat.completions.stream(body);
    const pieces: string[] = [];
    stream.on("tool_calls.function.arguments.delta", ({ arguments_delta }) => pieces.push(arguments_delta));
    const { choices } = await stream.finalChatCompletion();
    expect(choices[0].finish_reason).toBe("tool_calls");
    expect(choices[0].message.content).toBe("Let me see.");
    expect(whole.content).toBe("Let me see.");
    const made = choices[0].message.tool_calls!.map((one) => (one.type === "function" ? one.function : undefined));
    expect(made).toMatchObject([
      { name: "add", arguments: '{"a": 1, "b": 2}' },
      { name: "add", arguments: '{"a": 3, "b": 4}' },
    ]);
    expect(whole.tool_calls!.map((one) => (one.type === "function" ? one.function.arguments : ""))).toEqual(
      made.map((one) => one!.arguments),
    );
    expect(pieces.length).toBeGreaterThan(4);
  });

  it("are run by the client's runner, whose results reach the model", async () => {
    const { client } = await start(call(1, 2), "It is 3.");
    const seen: unknown[] = [];
    const runner = client.chat.completions.runTools({
      model: "tiny",
      messages,
      tools: [
        {
          type: "function",
          function: {
            name: "add",
            description: "Adds",
            parameters: tools[0].function.parameters,
            parse: JSON.parse,
            function: ({ a, b }: { a: number; b: number }) => {
              seen.push([a, b]);
              return String(a + b);
            },
          },
        },
      ],
    });
    expect(await runner.finalContent()).toBe("It is 3.");
    expect(seen).toEqual([[1, 2]]);
    const prompt = new TextDecoder().decode(Uint8Array.from(requests[1].promptIds.slice(1)));
    expect(prompt).toContain('{"name": "add", "arguments": {"a": 1, "b": 2}}');
    expect(prompt).toContain("<tool_response>\n3\n</tool_response>");
  });

  it.each([
    ["none", undefined],
    ["required", /must_call/],
    ["auto", /TagDispatch/],
  ] as const)("tool_choice %s reaches the grammar", async (tool_choice, pattern) => {
    const { client } = await start("Hello");
    await client.chat.completions.create({ model: "tiny", messages, tools, tool_choice });
    if (pattern === undefined) expect(requests[0].grammar).toBeUndefined();
    else expect(requests[0].grammar?.text).toMatch(pattern);
    const prompt = new TextDecoder().decode(Uint8Array.from(requests[0].promptIds.slice(1)));
    expect(prompt.includes("add")).toBe(tool_choice !== "none");
  });

  it("of a name: only that one may be called, and one call where parallel ones are off", async () => {
    const { client } = await start(call(1, 2));
    const other = { type: "function" as const, function: { name: "other" } };
    const body = { model: "tiny", messages, tools: [...tools, other], parallel_tool_calls: false };
    await client.chat.completions.create({ ...body, tool_choice: { type: "function", function: { name: "add" } } });
    expect(requests[0].grammar?.text).toContain('"add');
    expect(requests[0].grammar?.text).not.toContain('"other');
  });

  it("cut short are reported as far as they came", async () => {
    const { client } = await start(call(1, 2));
    const { choices } = await client.chat.completions.create({ model: "tiny", messages, tools, max_tokens: 55 });
    expect(choices[0].finish_reason).toBe("length");
    const [made] = choices[0].message.tool_calls!;
    expect(made.type === "function" && made.function.name).toBe("add");
    expect(made.type === "function" && '{"a": 1, "b": 2}'.startsWith(made.function.arguments)).toBe(true);
  });
});

describe("formats", () => {
  const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"] };
  const inner = { type: "tag", begin: "<f>", content: { type: "json_schema", json_schema: schema }, end: "</f>" };
  const structure = {
    type: "structural_tag",
    format: { type: "triggered_tags", triggers: ["<f>"], tags: [inner] },
  };
  const oldStructure = {
    type: "structural_tag",
    structures: [{ begin: "<f>", schema, end: "</f>" }],
    triggers: ["<f>"],
  };

  it.each([
    [{ response_format: { type: "json_object" } }, /json_object/],
    [
      { response_format: { type: "json_schema", json_schema: { name: "x", schema, strict: true } } },
      /"\\"ok\\": " json_boolean/,
    ],
    [{ structured_outputs: { choice: ["yes", "no"] } }, /"yes" \| "no"/],
    [{ structured_outputs: { regex: "a+" } }, /\[a\]/],
    [{ structured_outputs: { json: schema } }, /json_boolean/],
    [{ structured_outputs: { grammar: 'root ::= "x"' } }, /own_root ::= "x"/],
    [{ structured_outputs: { json: JSON.stringify(schema), disable_any_whitespace: true } }, /json_boolean/],
    [{ structured_outputs: { json_object: true } }, /json_object/],
    [{ structured_outputs: { structural_tag: JSON.stringify(structure) } }, /TagDispatch\(\("<f>"/],
    [{ response_format: structure }, /TagDispatch\(\("<f>"/],
    [{ response_format: oldStructure }, /TagDispatch\(\("<f>"/],
    [{ structural_tag: oldStructure }, /TagDispatch\(\("<f>"/],
    [{ guided_json: schema }, /json_boolean/],
    [{ guided_json: JSON.stringify(schema) }, /json_boolean/],
    [{ guided_regex: "a+" }, /\[a\]/],
    [{ guided_choice: ["yes", "no"] }, /"yes" \| "no"/],
    [{ guided_grammar: 'root ::= "x"' }, /own_root ::= "x"/],
  ])("%o reaches the engine, in chat and in completions", async (fields, pattern) => {
    const { post } = await start('{"ok": true}');
    const answer = await post("/v1/chat/completions", { model: "tiny", messages, ...fields });
    const plain = await post("/v1/completions", { model: "tiny", prompt: "Is it?", ...fields });
    expect([answer.status, plain.status]).toEqual([200, 200]);
    expect(requests.map(({ grammar }) => pattern.test(grammar?.text ?? ""))).toEqual([true, true]);
  });

  it.each([
    [
      { guided_regex: "a", guided_choice: ["b"] },
      "guided_choice",
      /guided_regex and guided_choice say different things/,
    ],
    [{ structured_outputs: { regex: "a", choice: ["b"] } }, "structured_outputs", /exactly one of json, regex/],
    [{ structured_outputs: {} }, "structured_outputs", /exactly one of json, regex/],
    [{ structured_outputs: { json: "{" } }, "structured_outputs.json", /must be a JSON schema/],
    [{ structured_outputs: { whitespace_pattern: "x" } }, "structured_outputs.whitespace_pattern", /not supported/],
    [{ guided_json: "5" }, "guided_json", /must be a JSON schema/],
    [{ guided_decoding_backend: "outlines" }, "guided_decoding_backend", /not supported/],
    [{ response_format: structure, tools }, "tools", /cannot be combined with tools/],
    [{ response_format: { ...oldStructure, triggers: ["<g>"] } }, "response_format", /does with 0/],
  ])("%o is refused by name", async (fields, param, message) => {
    const { post } = await start("x");
    const answer = await post("/v1/chat/completions", { model: "tiny", messages, ...fields });
    expect(answer.status).toBe(400);
    const { error } = (await answer.json()) as { error: { param: string; message: string } };
    expect(error.message).toMatch(message);
    expect(error.param).toBe(param);
  });

  it("are parsed by the client's own helper", async () => {
    const { client } = await start('{"ok": true}');
    const response_format = { type: "json_schema" as const, json_schema: { name: "x", schema, strict: true } };
    const { choices } = await client.chat.completions.parse({ model: "tiny", messages, response_format });
    expect(choices[0].message.content).toBe('{"ok": true}');
  });

  it("and what would break them are refused together", async () => {
    const { post } = await start("x");
    const answer = await post("/v1/chat/completions", {
      ...{ model: "tiny", messages, min_tokens: 3, response_format: { type: "json_object" } },
    });
    expect(answer.status).toBe(400);
    expect(await answer.json()).toMatchObject({ error: { param: "min_tokens" } });
  });
});
