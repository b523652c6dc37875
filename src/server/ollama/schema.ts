// Owns: what Ollama's routes accept, field by field. As on OpenAI's routes an unknown field, or a value that asks for what
// is not there, is a 400 that names it. Each description completes the sentence "must be …".
import { type Static, type TProperties, Type } from "typebox";

const strict = <P extends TProperties>(properties: P) => Type.Object(properties, { additionalProperties: false });

const flag = () => Type.Optional(Type.Boolean({ description: "true or false" }));
const text = () => Type.Optional(Type.String({ description: "a string" }));
const onlyEmpty = () =>
  Type.Optional(Type.String({ maxLength: 0, description: '"" (other values are not supported)' }));
const texts = (description: string) => Type.Union([Type.String(), Type.Array(Type.String())], { description });

/** A name in either of the two fields that clients use. */
const named = { model: text(), name: text() };

const images = Type.Optional(
  Type.Union([Type.Null(), Type.Array(Type.Unknown(), { maxItems: 0 })], {
    description: "empty (this server takes no images; other values are not supported)",
  }),
);

const options = Type.Optional(
  Type.Record(Type.String(), Type.Unknown(), { description: 'an object such as {"temperature": 0}' }),
);

const keepAlive = Type.Optional(
  Type.Union([Type.String(), Type.Number()], {
    description: 'a duration such as "5m", or a number of seconds; 0 unloads, a negative one keeps for ever',
  }),
);

const format = Type.Optional(
  Type.Union([Type.Literal("json"), Type.Literal(""), Type.Record(Type.String(), Type.Unknown())], {
    description: '"json", or a JSON schema as an object',
  }),
);

const think = Type.Optional(
  Type.Union([Type.Boolean(), Type.Enum(["low", "medium", "high", "max", ""])], {
    description: 'true, false, "low", "medium", "high" or "max"',
  }),
);

/** Of both ways to ask. */
const asking = {
  ...named,
  stream: flag(),
  format,
  keep_alive: keepAlive,
  options,
  think,
  truncate: flag(),
  shift: Type.Optional(
    Type.Literal(false, {
      description: "false: an answer ends at the context's end (other values are not supported)",
    }),
  ),
  logprobs: flag(),
  top_logprobs: Type.Optional(Type.Integer({ minimum: 0, maximum: 20, description: "an integer from 0 to 20" })),
  _debug_render_only: flag(),
} satisfies TProperties;

export const GenerateBody = strict({
  ...asking,
  prompt: text(),
  suffix: text(),
  system: text(),
  template: text(),
  raw: flag(),
  images,
  context: Type.Optional(
    Type.Array(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 }), {
      description: "a list of token ids, as an earlier answer gave it",
    }),
  ),
});

const ToolCall = Type.Object(
  {
    id: text(),
    type: Type.Optional(Type.Literal("function")),
    function: Type.Object(
      {
        index: Type.Optional(Type.Integer()),
        name: Type.String({ description: "a string" }),
        arguments: Type.Optional(Type.Record(Type.String(), Type.Unknown(), { description: "an object" })),
      },
      { additionalProperties: false, description: 'an object {"name": "…", "arguments": {…}}' },
    ),
  },
  { additionalProperties: false, description: 'an object {"function": {"name": "…", "arguments": {…}}}' },
);

export const Message = Type.Object(
  {
    role: Type.Union([Type.Literal("system"), Type.Literal("user"), Type.Literal("assistant"), Type.Literal("tool")], {
      description: '"system", "user", "assistant" or "tool"',
    }),
    content: text(),
    thinking: text(),
    images,
    tool_calls: Type.Optional(Type.Array(ToolCall, { description: "a list of tool calls" })),
    tool_name: text(),
    tool_call_id: text(),
  },
  { additionalProperties: false, description: 'an object such as {"role": "user", "content": "…"}' },
);

const Tool = Type.Object(
  {
    type: Type.Optional(Type.Literal("function", { description: '"function"' })),
    items: Type.Optional(Type.Unknown()),
    function: Type.Object(
      {
        name: Type.String({ minLength: 1, description: "a non-empty string" }),
        description: text(),
        parameters: Type.Optional(Type.Record(Type.String(), Type.Unknown(), { description: "a JSON schema" })),
      },
      { additionalProperties: false, description: 'an object {"name": "…", "parameters": {…}}' },
    ),
  },
  { additionalProperties: false, description: 'an object {"type": "function", "function": {…}}' },
);

export const ChatBody = strict({
  ...asking,
  messages: Type.Optional(Type.Array(Message, { description: "a list of messages" })),
  tools: Type.Optional(Type.Array(Tool, { description: "a list of tools" })),
});

const embedding = {
  ...named,
  keep_alive: keepAlive,
  options,
};

export const EmbedBody = strict({
  ...embedding,
  input: Type.Optional(texts("a string or a list of strings")),
  truncate: flag(),
  dimensions: Type.Optional(Type.Integer({ minimum: 1, description: "an integer of at least 1" })),
});

export const EmbeddingsBody = strict({ ...embedding, prompt: text() });

export const ShowBody = strict({
  ...named,
  verbose: flag(),
  system: onlyEmpty(),
  template: onlyEmpty(),
  options,
});

const digests = Type.Optional(
  Type.Record(Type.String(), Type.String({ pattern: "^sha256[:-][0-9a-f]{64}$" }), {
    description: 'an object of file names and digests: {"model.gguf": "sha256:…"}',
  }),
);

export const CreateBody = strict({
  ...named,
  from: text(),
  files: digests,
  adapters: digests,
  draft_files: digests,
  template: text(),
  system: text(),
  license: Type.Optional(texts("a string or a list of strings")),
  parameters: options,
  messages: Type.Optional(Type.Array(Message, { description: "a list of messages" })),
  quantize: text(),
  quantization: text(),
  draft_quantize: text(),
  renderer: text(),
  parser: text(),
  requires: text(),
  remote_host: onlyEmpty(),
  info: Type.Optional(Type.Object({}, { maxProperties: 0, description: "left out (it is not supported)" })),
  stream: flag(),
});

export const TransferBody = strict({
  ...named,
  insecure: flag(),
  stream: flag(),
  username: onlyEmpty(),
  password: onlyEmpty(),
});

export const CopyBody = strict({
  source: Type.String({ minLength: 1, description: "a model's name" }),
  destination: Type.String({ minLength: 1, description: "a model's name" }),
});

export const DeleteBody = strict(named);

export type GenerateRequest = Static<typeof GenerateBody>;
export type ChatRequest = Static<typeof ChatBody>;
export type ChatMessageBody = Static<typeof Message>;
export type EmbedRequest = Static<typeof EmbedBody>;
export type EmbeddingsRequest = Static<typeof EmbeddingsBody>;
export type ShowRequest = Static<typeof ShowBody>;
export type CreateRequest = Static<typeof CreateBody>;
export type TransferRequest = Static<typeof TransferBody>;
export type CopyRequest = Static<typeof CopyBody>;
export type DeleteRequest = Static<typeof DeleteBody>;
