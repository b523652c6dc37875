// Owns: what the OpenAI routes accept, field by field. A field that this server cannot honour is listed with the one value
// that asks for nothing (so that clients which spell out defaults work); any other value, like any unknown field, is a 400
// that names it. Each description completes the sentence "must be …". null anywhere at the top level is "left out".

import { type Static, type TProperties, Type } from "typebox";
import { overflows } from "../../session/fit.js";
import { metadata } from "../responses/schema.js";
import { formatFields } from "./format.js";

const noExtra = { additionalProperties: false } as const;

/** Only this value: what it asks for is what happens anyway. */
const only = (value: string | boolean | number) =>
  Type.Optional(Type.Literal(value, { description: `${JSON.stringify(value)} (other values are not supported)` }));

const emptyList = Type.Optional(
  Type.Array(Type.Unknown(), { maxItems: 0, description: "empty (other values are not supported)" }),
);

const number = (minimum: number, maximum: number) =>
  Type.Optional(Type.Number({ minimum, maximum, description: `a number from ${minimum} to ${maximum}` }));

const integer = (minimum: number, maximum: number) =>
  Type.Optional(Type.Integer({ minimum, maximum, description: `an integer from ${minimum} to ${maximum}` }));

const flag = () => Type.Optional(Type.Boolean({ description: "true or false" }));
const text = () => Type.Optional(Type.String({ description: "a string" }));

const largest = Number.MAX_SAFE_INTEGER;
const tokenId = Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 });

/** Fields of both routes: sampling, stopping, streaming, and labels that change nothing. */
const shared = {
  // Left out: the only one there is, as vLLM and TGI have it.
  model: Type.Optional(Type.String({ description: "the id of a model (GET /v1/models lists them)" })),
  temperature: number(0, 2),
  top_p: number(0, 1),
  top_k: Type.Optional(
    Type.Integer({ minimum: -1, maximum: 2 ** 31 - 1, description: "an integer of at least -1 (-1 and 0: no limit)" }),
  ),
  min_p: number(0, 1),
  repetition_penalty: number(0.01, 100),
  frequency_penalty: number(-2, 2),
  presence_penalty: number(-2, 2),
  logit_bias: Type.Optional(
    Type.Record(Type.String({ pattern: "^[0-9]+$" }), Type.Number({ minimum: -100, maximum: 100 }), {
      ...noExtra,
      description: "an object of token ids (as strings) and numbers from -100 to 100",
    }),
  ),
  seed: integer(-largest, largest),
  stop: Type.Optional(
    Type.Union([Type.String({ minLength: 1 }), Type.Array(Type.String({ minLength: 1 }), { maxItems: 64 })], {
      description: "a non-empty string, or a list of up to 64 of them",
    }),
  ),
  stop_token_ids: Type.Optional(Type.Array(tokenId, { maxItems: 256, description: "a list of up to 256 token ids" })),
  min_tokens: integer(0, largest),
  ignore_eos: flag(),
  include_stop_str_in_output: flag(),
  skip_special_tokens: flag(),
  n: integer(1, 128),
  stream: flag(),
  stream_options: Type.Optional(
    Type.Object(
      { include_usage: flag(), include_obfuscation: only(false) },
      { ...noExtra, description: 'an object such as {"include_usage": true}' },
    ),
  ),
  return_token_ids: flag(),
  // Adds llama.cpp's object of that name to the answer: timings.ts.
  timings: flag(),
  priority: integer(-(2 ** 31), 2 ** 31 - 1),
  cache_salt: text(),
  // What becomes of a prompt that is longer than the context: session/fit.ts.
  context_overflow: Type.Optional(
    Type.Union(
      overflows.map((one) => Type.Literal(one)),
      { description: `one of ${overflows.join(", ")}` },
    ),
  ),
  // Seconds from the request's arrival; then it ends with an error.
  timeout: Type.Optional(Type.Number({ exclusiveMinimum: 0, description: "a number of seconds above 0" })),
  user: text(),
  ...formatFields,
} satisfies TProperties;

const TextParts = Type.Array(
  Type.Object(
    {
      type: Type.Literal("text", { description: '"text" (this server takes no images, audio or files)' }),
      text: Type.String({ description: "a string" }),
    },
    { description: 'an object {"type": "text", "text": "…"}' },
  ),
  { description: "a list of text parts" },
);

const Message = Type.Object(
  {
    role: Type.Union(
      [
        Type.Literal("developer"),
        Type.Literal("system"),
        Type.Literal("user"),
        Type.Literal("assistant"),
        Type.Literal("tool"),
      ],
      { description: "developer, system, user, assistant or tool" },
    ),
    content: Type.Optional(
      Type.Union([Type.String(), TextParts, Type.Null()], {
        description:
          'a string or a list of {"type": "text", "text": "…"} (this server takes no images, audio or files)',
      }),
    ),
    name: text(),
    refusal: Type.Optional(Type.Null({ description: "null (other values are not supported)" })),
    tool_call_id: text(),
    tool_calls: Type.Optional(
      Type.Array(
        Type.Object(
          {
            id: Type.String({ description: "a string" }),
            type: Type.Literal("function", { description: '"function"' }),
            function: Type.Object(
              {
                name: Type.String({ description: "a string" }),
                arguments: Type.String({ description: "a string of JSON" }),
              },
              { ...noExtra, description: "an object with a name and arguments" },
            ),
          },
          { ...noExtra, description: "a function call" },
        ),
        { description: "a list of function calls" },
      ),
    ),
  },
  { ...noExtra, description: "an object with a role and content" },
);

const anObject = Type.Record(Type.String(), Type.Unknown(), { description: "an object" });

const Tool = Type.Object(
  {
    type: Type.Literal("function", { description: '"function" (other values are not supported)' }),
    function: Type.Object(
      {
        name: Type.String({ minLength: 1, description: "a name" }),
        description: text(),
        parameters: Type.Optional(Type.Union([anObject, Type.Null()], { description: "a JSON schema" })),
        strict: Type.Optional(Type.Union([Type.Boolean(), Type.Null()], { description: "true or false" })),
      },
      { ...noExtra, description: "an object with name, description and parameters" },
    ),
  },
  { ...noExtra, description: 'an object {"type": "function", "function": {…}}' },
);

const ToolChoice = Type.Union(
  [
    Type.Literal("none"),
    Type.Literal("auto"),
    Type.Literal("required"),
    Type.Object({ type: Type.Literal("function"), function: Type.Object({ name: Type.String() }, noExtra) }, noExtra),
    Type.Object(
      {
        type: Type.Literal("allowed_tools"),
        allowed_tools: Type.Object(
          {
            mode: Type.Union([Type.Literal("auto"), Type.Literal("required")]),
            tools: Type.Array(
              Type.Object(
                { type: Type.Literal("function"), function: Type.Object({ name: Type.String() }, noExtra) },
                noExtra,
              ),
              { minItems: 1, maxItems: 128 },
            ),
          },
          noExtra,
        ),
      },
      noExtra,
    ),
  ],
  {
    description:
      '"none", "auto", "required", {"type": "function", "function": {"name": "…"}} or {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}',
  },
);

export const ChatBody = Type.Object(
  {
    ...shared,
    messages: Type.Array(Message, { minItems: 1, description: "a list of at least one message" }),
    max_tokens: integer(1, largest),
    max_completion_tokens: integer(1, largest),
    logprobs: flag(),
    top_logprobs: integer(0, 20),
    add_generation_prompt: flag(),
    chat_template_kwargs: Type.Optional(Type.Record(Type.String(), Type.Unknown(), { description: "an object" })),
    tools: Type.Optional(Type.Array(Tool, { maxItems: 128, description: "a list of up to 128 tools" })),
    tool_choice: Type.Optional(ToolChoice),
    reasoning_effort: Type.Optional(
      Type.Union(
        ["none", "minimal", "low", "medium", "high", "xhigh", "max"].map((effort) => Type.Literal(effort)),
        { description: '"none", "minimal", "low", "medium", "high", "xhigh" or "max"' },
      ),
    ),
    parallel_tool_calls: flag(),
    metadata,
    prompt_cache_key: text(),
    prompt_cache_retention: only("in_memory"),
    verbosity: only("medium"),
    safety_identifier: text(),
    functions: emptyList,
    function_call: only("none"),
    modalities: Type.Optional(
      Type.Array(Type.Literal("text"), {
        minItems: 1,
        maxItems: 1,
        description: '["text"] (other values are not supported)',
      }),
    ),
    service_tier: Type.Optional(
      Type.Union([Type.Literal("auto"), Type.Literal("default")], {
        description: '"auto" or "default" (other values are not supported)',
      }),
    ),
    store: only(false),
  },
  noExtra,
);

const ids = Type.Array(tokenId);

export const CompletionBody = Type.Object(
  {
    ...shared,
    prompt: Type.Optional(
      Type.Union(
        [
          Type.String(),
          Type.Array(Type.String(), { minItems: 1, maxItems: 1024 }),
          ids,
          Type.Array(ids, { minItems: 1, maxItems: 1024 }),
        ],
        { description: "a string, a list of strings, a list of token ids, or a list of lists of token ids" },
      ),
    ),
    max_tokens: integer(0, largest),
    logprobs: integer(0, 5),
    echo: flag(),
    // Spelled-out special tokens in a text prompt become those tokens; they stay text unless asked for.
    parse_special: flag(),
    best_of: integer(1, 128),
    suffix: Type.Optional(Type.String({ description: "a string: what comes after the answer" })),
  },
  noExtra,
);

export type ChatRequest = Static<typeof ChatBody>;
export type CompletionRequest = Static<typeof CompletionBody>;
export type SharedFields = Pick<CompletionRequest, Exclude<keyof typeof shared, "model">>;
