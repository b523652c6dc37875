// Owns: what POST /v1/responses accepts, field by field; what it cannot honour is listed with the one value that asks for
// nothing. Each description completes the sentence "must be …".
import { type Static, type TProperties, Type } from "typebox";

const noExtra = { additionalProperties: false } as const;

const flag = () => Type.Optional(Type.Boolean({ description: "true or false" }));
const text = () => Type.Optional(Type.String({ description: "a string" }));
const number = (minimum: number, maximum: number) =>
  Type.Optional(Type.Number({ minimum, maximum, description: `a number from ${minimum} to ${maximum}` }));
const integer = (minimum: number, maximum: number) =>
  Type.Optional(Type.Integer({ minimum, maximum, description: `an integer from ${minimum} to ${maximum}` }));
const literals = <const T extends string>(...values: T[]) =>
  Type.Union(
    values.map((value) => Type.Literal(value)),
    { description: `${values.map((value) => JSON.stringify(value)).join(" or ")} (other values are not supported)` },
  );
const anObject = Type.Record(Type.String(), Type.Unknown(), { description: "an object" });
const largest = Number.MAX_SAFE_INTEGER;

const label = Type.Optional(Type.Union([Type.String(), Type.Null()], { description: "a string" }));
const itemStatus = Type.Optional(
  Type.Union([Type.Literal("in_progress"), Type.Literal("completed"), Type.Literal("incomplete")], {
    description: '"in_progress", "completed" or "incomplete"',
  }),
);

const unusedList = Type.Optional(Type.Array(Type.Unknown()));

/** Of an answer of ours that comes back, what it says beside its text changes nothing. */
const Part = Type.Union(
  [
    Type.Object({ type: Type.Literal("input_text"), text: Type.String() }, noExtra),
    Type.Object(
      { type: Type.Literal("output_text"), text: Type.String(), annotations: unusedList, logprobs: unusedList },
      noExtra,
    ),
    Type.Object({ type: Type.Literal("refusal"), refusal: Type.String() }, noExtra),
  ],
  {
    description:
      'a text part such as {"type": "input_text", "text": "…"} (this server takes no images, audio or files)',
  },
);

const MessageItem = Type.Object(
  {
    type: Type.Optional(Type.Literal("message")),
    role: Type.Union([
      Type.Literal("user"),
      Type.Literal("assistant"),
      Type.Literal("system"),
      Type.Literal("developer"),
    ]),
    content: Type.Union([Type.String(), Type.Array(Part)]),
    id: label,
    status: itemStatus,
    phase: label,
  },
  noExtra,
);

const CallItem = Type.Object(
  {
    type: Type.Literal("function_call"),
    call_id: Type.String(),
    name: Type.String(),
    arguments: Type.String(),
    id: label,
    status: itemStatus,
  },
  noExtra,
);

const CallOutputItem = Type.Object(
  {
    type: Type.Literal("function_call_output"),
    call_id: Type.String(),
    output: Type.Union([Type.String(), Type.Array(Part)]),
    id: label,
    status: Type.Optional(Type.Union([itemStatus, Type.Null()])),
  },
  noExtra,
);

const ReasoningItem = Type.Object(
  {
    type: Type.Literal("reasoning"),
    id: label,
    summary: unusedList,
    content: Type.Optional(Type.Union([Type.Array(Type.Unknown()), Type.Null()])),
    encrypted_content: Type.Optional(Type.Null()),
    status: itemStatus,
  },
  noExtra,
);

const Item = Type.Union([MessageItem, CallItem, CallOutputItem, ReasoningItem], {
  description:
    "a message with a role and content, a function_call, a function_call_output or a reasoning item, with no fields of others",
});

const Tool = Type.Object(
  {
    type: Type.Literal("function", { description: '"function" (other values are not supported)' }),
    // Needed, which job.ts says: here it would be missed in a tool of another type before its type is.
    name: Type.Optional(Type.String({ minLength: 1, description: "a name" })),
    description: label,
    parameters: Type.Optional(Type.Union([anObject, Type.Null()], { description: "a JSON schema" })),
    strict: Type.Optional(Type.Union([Type.Boolean(), Type.Null()], { description: "true or false" })),
  },
  { ...noExtra, description: 'an object {"type": "function", "name": "…", "parameters": {…}}' },
);

const ToolChoice = Type.Union(
  [
    Type.Literal("none"),
    Type.Literal("auto"),
    Type.Literal("required"),
    Type.Object({ type: Type.Literal("function"), name: Type.String() }, noExtra),
    Type.Object(
      {
        type: Type.Literal("allowed_tools"),
        mode: Type.Union([Type.Literal("auto"), Type.Literal("required")]),
        tools: Type.Array(Type.Object({ type: Type.Literal("function"), name: Type.String() }, noExtra), {
          minItems: 1,
          maxItems: 128,
        }),
      },
      noExtra,
    ),
  ],
  {
    description:
      '"none", "auto", "required", {"type": "function", "name": "…"} or {"type": "allowed_tools", "mode": "…", "tools": […]}',
  },
);

const Format = Type.Union(
  [
    Type.Object({ type: Type.Literal("text") }, noExtra),
    Type.Object({ type: Type.Literal("json_object") }, noExtra),
    Type.Object(
      {
        type: Type.Literal("json_schema"),
        name: Type.String(),
        schema: anObject,
        description: label,
        strict: Type.Optional(Type.Union([Type.Boolean(), Type.Null()])),
      },
      noExtra,
    ),
  ],
  {
    description: '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name": "…", "schema": {…}}',
  },
);

export const metadata = Type.Optional(
  Type.Record(Type.String({ maxLength: 64 }), Type.String({ maxLength: 512 }), {
    maxProperties: 16,
    description: "an object of at most 16 strings of up to 512 characters",
  }),
);

const fields = {
  model: Type.String({ description: "the id of a model (GET /v1/models lists them)" }),
  input: Type.Union([Type.String(), Type.Array(Item, { minItems: 1 })], {
    description: "a string or a list of at least one item",
  }),
  instructions: text(),
  previous_response_id: text(),
  tools: Type.Optional(Type.Array(Tool, { maxItems: 128, description: "a list of up to 128 tools" })),
  tool_choice: Type.Optional(ToolChoice),
  parallel_tool_calls: flag(),
  text: Type.Optional(
    Type.Object(
      {
        format: Type.Optional(Format),
        verbosity: Type.Optional(Type.Union([literals("medium"), Type.Null()])),
      },
      { ...noExtra, description: 'an object such as {"format": {"type": "text"}}' },
    ),
  ),
  reasoning: Type.Optional(
    Type.Object(
      {
        effort: Type.Optional(
          Type.Union([literals("none", "minimal", "low", "medium", "high", "xhigh", "max"), Type.Null()], {
            description: '"none", "minimal", "low", "medium", "high", "xhigh" or "max"',
          }),
        ),
        // Reasoning is given whole; there is no summary of it to have.
        summary: Type.Optional(Type.Union([literals("auto"), Type.Null()])),
      },
      { ...noExtra, description: 'an object such as {"effort": "low"}' },
    ),
  ),
  max_output_tokens: integer(1, largest),
  temperature: number(0, 2),
  top_p: number(0, 1),
  top_logprobs: integer(0, 20),
  include: Type.Optional(
    Type.Array(literals("message.output_text.logprobs"), {
      description: 'a list of "message.output_text.logprobs" (other values are not supported)',
    }),
  ),
  metadata,
  truncation: Type.Optional(literals("auto", "disabled")),
  store: flag(),
  background: flag(),
  stream: flag(),
  stream_options: Type.Optional(
    Type.Object(
      {
        include_obfuscation: Type.Optional(
          Type.Literal(false, { description: "false (other values are not supported)" }),
        ),
      },
      { ...noExtra, description: 'an object such as {"include_obfuscation": false}' },
    ),
  ),
  service_tier: Type.Optional(literals("auto", "default")),
  prompt_cache_key: text(),
  prompt_cache_retention: Type.Optional(literals("in_memory")),
  safety_identifier: text(),
  user: text(),
  // Beyond OpenAI, as /v1/chat/completions has them.
  seed: integer(-largest, largest),
  top_k: integer(-1, 2 ** 31 - 1),
  min_p: number(0, 1),
  frequency_penalty: number(-2, 2),
  presence_penalty: number(-2, 2),
  repetition_penalty: number(0.01, 100),
  priority: integer(-(2 ** 31), 2 ** 31 - 1),
  cache_salt: text(),
  timings: flag(),
  chat_template_kwargs: Type.Optional(anObject),
  timeout: Type.Optional(Type.Number({ exclusiveMinimum: 0, description: "a number of seconds above 0" })),
} satisfies TProperties;

export const ResponsesBody = Type.Object(fields, noExtra);

export type ResponsesRequest = Static<typeof ResponsesBody>;
export type InputItem = Static<typeof Item>;
