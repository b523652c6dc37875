// Owns: the routes between text and tokens, TGI's and vLLM's: /tokenize (a body with "inputs" is TGI's, one with "prompt" or
// "messages" vLLM's), /chat_tokenize (TGI) and /detokenize (vLLM).
import type { FastifyInstance } from "fastify";
import { type Static, Type } from "typebox";
import { UserError } from "../base/errors.js";
import { checkTextLength } from "../session/fit.js";
import { exchanging, type Serving } from "./exchange.js";
import type { ServedModel } from "./models.js";
import { chatJob } from "./openai/chat.js";
import { ChatBody } from "./openai/schema.js";
import * as tgi from "./tgi/schema.js";
import { located } from "./tgi/tokens.js";

const noExtra = { additionalProperties: false } as const;
const flag = () => Type.Optional(Type.Boolean({ description: "true or false" }));
const { messages, tools, add_generation_prompt, chat_template_kwargs } = ChatBody.properties;

const TokenizeBody = Type.Object(
  {
    ...tgi.CompatBody.properties,
    inputs: Type.Optional(tgi.CompatBody.properties.inputs),
    prompt: Type.Optional(Type.String({ description: "a string" })),
    messages: Type.Optional(messages),
    tools,
    add_generation_prompt,
    chat_template_kwargs,
    add_special_tokens: flag(),
    return_token_strs: flag(),
  },
  noExtra,
);
type TokenizeRequest = Static<typeof TokenizeBody>;

const DetokenizeBody = Type.Object(
  {
    model: tgi.CompatBody.properties.model,
    tokens: Type.Array(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 }), {
      maxItems: 500_000,
      description: "a list of up to 500,000 token ids",
    }),
  },
  noExtra,
);

export function tokenRoutes(app: FastifyInstance, serving: Serving): void {
  app.post<{ Body: TokenizeRequest }>("/tokenize", { schema: { body: TokenizeBody } }, (request, reply) =>
    exchanging(serving, request, reply, request.body.model, async ({ model }) => {
      reply.send(tokenized(request.body, model));
    }),
  );
  app.post<{ Body: tgi.ChatTokenizeRequest }>(
    "/chat_tokenize",
    { schema: { body: tgi.ChatTokenizeBody } },
    (request, reply) =>
      exchanging(serving, request, reply, request.body.model, async ({ model: { id, session } }) => {
        const job = chatJob({ ...request.body, model: id });
        checkTextLength(job, "messages");
        const ids = session.promptIds(job);
        const templated_text = session.detokenize(ids, { special: true });
        reply.send({ tokenize_response: located(session, ids), templated_text });
      }),
  );
  app.post<{ Body: Static<typeof DetokenizeBody> }>(
    "/detokenize",
    { schema: { body: DetokenizeBody } },
    (request, reply) =>
      exchanging(serving, request, reply, request.body.model, async ({ model: { session } }) => {
        const { vocabSize } = session.limits;
        const beyond = request.body.tokens.find((id) => id >= vocabSize);
        if (beyond !== undefined) {
          const message = `Token ${beyond} is not in the vocabulary: ids are below ${vocabSize}.`;
          throw new UserError(message, { code: "invalid_value", param: "tokens" });
        }
        reply.send({ prompt: session.detokenize(request.body.tokens, { special: true }) });
      }),
  );
}

/** The fields beside "model" that go with each way of asking. */
const companions = {
  inputs: ["parameters", "stream"],
  prompt: ["add_special_tokens", "return_token_strs"],
  messages: ["tools", "add_generation_prompt", "chat_template_kwargs", "return_token_strs"],
} as const;

function asked(body: TokenizeRequest): keyof typeof companions {
  const [kind, ...more] = (["inputs", "prompt", "messages"] as const).filter((name) => body[name] !== undefined);
  if (kind === undefined || more.length > 0) {
    const message = 'A body for /tokenize has one of "inputs" (as TGI\'s), "prompt" and "messages" (as vLLM\'s).';
    throw new UserError(message, { code: "missing_field", param: more[0] ?? "prompt" });
  }
  const allowed: readonly string[] = ["model", kind, ...companions[kind]];
  const stray = Object.keys(body).find((name) => !allowed.includes(name));
  if (stray !== undefined) {
    throw new UserError(`${stray} does not go with ${kind}.`, { code: "unknown_field", param: stray });
  }
  return kind;
}

function tokenized(body: TokenizeRequest, { id, session }: ServedModel): object {
  const kind = asked(body);
  checkTextLength({ prompt: kind === "inputs" ? body.inputs : body.prompt }, kind);
  if (kind === "inputs") return located(session, session.tokenize(body.inputs!, { bos: true, special: true }));
  const { prompt, messages, tools, add_generation_prompt, chat_template_kwargs } = body;
  const chat = () => {
    const job = chatJob({ model: id, messages: messages!, tools, add_generation_prompt, chat_template_kwargs });
    checkTextLength(job, kind);
    return session.promptIds(job);
  };
  const ids =
    kind === "prompt" ? session.tokenize(prompt!, { bos: body.add_special_tokens ?? true, special: true }) : chat();
  return {
    count: ids.length,
    max_model_len: session.limits.contextLength,
    tokens: Array.from(ids),
    token_strs: body.return_token_strs ? Array.from(ids, (one) => session.detokenize([one], { special: true })) : null,
  };
}
