// Owns: what Anthropic's routes accept, field by field. Each description completes the sentence "must be …". cache_control
// is a label here: every prompt is looked up in the prefix cache and kept there without it.
import { type Static, type TProperties, Type } from "typebox";

const noExtra = { additionalProperties: false } as const;
const largest = Number.MAX_SAFE_INTEGER;

const text = () => Type.Optional(Type.String({ description: "a string" }));
const number = (maximum: number) =>
  Type.Optional(Type.Number({ minimum: 0, maximum, description: `a number from 0 to ${maximum}` }));
const anObject = Type.Record(Type.String(), Type.Unknown(), { description: "an object" });
const cache_control = Type.Optional(
  Type.Union([Type.Object({ type: Type.Literal("ephemeral"), ttl: text() }, noExtra), Type.Null()], {
    description: 'an object {"type": "ephemeral"}',
  }),
);

const TextBlock = Type.Object({ type: Type.Literal("text"), text: Type.String(), cache_control }, noExtra);

const ToolUseBlock = Type.Object(
  { type: Type.Literal("tool_use"), id: Type.String(), name: Type.String(), input: anObject, cache_control },
  noExtra,
);

const ToolResultBlock = Type.Object(
  {
    type: Type.Literal("tool_result"),
    tool_use_id: Type.String(),
    content: Type.Optional(Type.Union([Type.String(), Type.Array(TextBlock)])),
    is_error: Type.Optional(Type.Boolean()),
    cache_control,
  },
  noExtra,
);

const ThinkingBlock = Type.Object(
  { type: Type.Literal("thinking"), thinking: Type.String(), signature: text() },
  noExtra,
);

const Message = Type.Object(
  {
    role: Type.Union([Type.Literal("user"), Type.Literal("assistant")], { description: '"user" or "assistant"' }),
    content: Type.Union(
      [Type.String(), Type.Array(Type.Union([TextBlock, ToolUseBlock, ToolResultBlock, ThinkingBlock]))],
      { description: "a string or a list of text, tool_use, tool_result and thinking blocks" },
    ),
  },
  { ...noExtra, description: "an object with a role and content" },
);

const Tool = Type.Object(
  {
    type: Type.Optional(Type.Literal("custom", { description: '"custom" (other values are not supported)' })),
    name: Type.String({ minLength: 1, description: "a name" }),
    description: text(),
    input_schema: anObject,
    strict: Type.Optional(Type.Boolean()),
    cache_control,
  },
  { ...noExtra, description: "an object with name, description and input_schema" },
);

const parallel = { disable_parallel_tool_use: Type.Optional(Type.Boolean()) } satisfies TProperties;

const ToolChoice = Type.Union(
  [
    Type.Object({ type: Type.Literal("auto"), ...parallel }, noExtra),
    Type.Object({ type: Type.Literal("any"), ...parallel }, noExtra),
    Type.Object({ type: Type.Literal("tool"), name: Type.String(), ...parallel }, noExtra),
    Type.Object({ type: Type.Literal("none") }, noExtra),
  ],
  { description: 'an object whose type is "auto", "any", "tool" (with a name) or "none"' },
);

/** The reasoning's length is bounded by max_tokens alone; a budget is what a caller expects at most. */
const Thinking = Type.Union(
  [
    Type.Object({ type: Type.Literal("enabled"), budget_tokens: Type.Integer({ minimum: 1 }) }, noExtra),
    Type.Object({ type: Type.Literal("adaptive") }, noExtra),
    Type.Object({ type: Type.Literal("disabled") }, noExtra),
  ],
  { description: 'an object such as {"type": "enabled", "budget_tokens": 1024} or {"type": "disabled"}' },
);

const OutputConfig = Type.Object(
  {
    effort: Type.Optional(
      Type.Union([...["low", "medium", "high", "xhigh", "max"].map((effort) => Type.Literal(effort)), Type.Null()], {
        description: '"low", "medium", "high", "xhigh" or "max"',
      }),
    ),
    format: Type.Optional(
      Type.Union([Type.Object({ type: Type.Literal("json_schema"), schema: anObject }, noExtra), Type.Null()], {
        description: 'an object {"type": "json_schema", "schema": {…}}',
      }),
    ),
  },
  { ...noExtra, description: 'an object such as {"format": {"type": "json_schema", "schema": {…}}}' },
);

const prompt = {
  model: Type.String({ description: "the id of a model (GET /v1/models lists them)" }),
  messages: Type.Array(Message, { minItems: 1, description: "a list of at least one message" }),
  system: Type.Optional(
    Type.Union([Type.String(), Type.Array(TextBlock)], { description: "a string or a list of text blocks" }),
  ),
  tools: Type.Optional(Type.Array(Tool, { maxItems: 128, description: "a list of up to 128 tools" })),
  tool_choice: Type.Optional(ToolChoice),
  thinking: Type.Optional(Thinking),
  output_config: Type.Optional(OutputConfig),
} satisfies TProperties;

export const CountBody = Type.Object(prompt, noExtra);

export const MessagesBody = Type.Object(
  {
    ...prompt,
    max_tokens: Type.Integer({ minimum: 1, maximum: largest, description: "an integer of at least 1" }),
    temperature: number(1),
    top_p: number(1),
    top_k: Type.Optional(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1, description: "an integer of at least 0" })),
    stop_sequences: Type.Optional(
      Type.Array(Type.String({ minLength: 1 }), { maxItems: 64, description: "a list of up to 64 non-empty strings" }),
    ),
    stream: Type.Optional(Type.Boolean({ description: "true or false" })),
    metadata: Type.Optional(Type.Object({ user_id: Type.Optional(Type.Union([Type.String(), Type.Null()])) }, noExtra)),
    service_tier: Type.Optional(
      Type.Union([Type.Literal("auto"), Type.Literal("standard_only")], {
        description: '"auto" or "standard_only" (other values are not supported)',
      }),
    ),
  },
  noExtra,
);

export type CountRequest = Static<typeof CountBody>;
export type MessagesRequest = Static<typeof MessagesBody>;
export type MessageBody = Static<typeof Message>;
