// Owns: the envelopes of clouds around TGI's requests: SageMaker's /invocations, whose body is any of TGI's, and Vertex'
// instances, answered together.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type Static, Type } from "typebox";
import { UserError } from "../../base/errors.js";
import { collect, ranked } from "../../session/collect.js";
import { fitted } from "../../session/fit.js";
import { answered, type Exchange, exchanging, interrupted, running, type Serving } from "../exchange.js";
import { chatCompletion, chatJob } from "../openai/chat.js";
import { completion } from "../openai/completions.js";
import { ChatBody, type ChatRequest, CompletionBody, type CompletionRequest } from "../openai/schema.js";
import { explainInvalid, type ValidationIssue } from "../validation.js";
import { asked } from "./job.js";
import { CompatBody, type CompatRequest, GenerateBody, type GenerateRequest } from "./schema.js";

const anyObject = Type.Record(Type.String(), Type.Unknown(), { description: "an object" });

const VertexBody = Type.Object(
  {
    instances: Type.Array(anyObject, {
      ...{ minItems: 1, maxItems: 128 },
      description: 'a list of up to 128 requests, each {"inputs": …} or {"messages": …}',
    }),
    parameters: Type.Optional(
      Type.Object({}, { additionalProperties: false, description: "empty: each instance has its own" }),
    ),
  },
  { additionalProperties: false },
);

export function envelopeRoutes(
  app: FastifyInstance,
  serving: Serving,
  generate: (request: FastifyRequest, reply: FastifyReply) => Promise<FastifyReply>,
): void {
  app.post<{ Body: Record<string, unknown> }>("/invocations", { schema: { body: anyObject } }, (request, reply) => {
    const { body } = request;
    const answering = (answer: (exchange: Exchange) => Promise<void>) =>
      exchanging(serving, request, reply, body.model as string | undefined, answer);
    if ("messages" in body) {
      const chat = valid<ChatRequest>(request, ChatBody, body);
      return answering((exchange) => chatCompletion(exchange, chat));
    }
    if ("prompt" in body) {
      const one = valid<CompletionRequest>(request, CompletionBody, body);
      return answering((exchange) => completion(exchange, one));
    }
    valid<CompatRequest>(request, CompatBody, body);
    return generate(request, reply);
  });
  app.post<{ Body: Static<typeof VertexBody> }>("/vertex", { schema: { body: VertexBody } }, (request, reply) =>
    exchanging(serving, request, reply, undefined, (exchange) => predictions(exchange, request.body.instances)),
  );
}

/** One text an instance, in their order: what /generate gives as generated_text, or a chat's first answer. */
async function predictions(exchange: Exchange, instances: readonly Record<string, unknown>[]): Promise<void> {
  const all = instances.map((instance, index) => {
    try {
      return preparedOf(exchange, instance);
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      const { status, code } = error;
      throw new UserError(`Instance ${index}: ${error.message}`, {
        status,
        code,
        param: `instances[${index}]`,
        cause: error,
      });
    }
  });
  await running(
    exchange,
    all.map(({ prepared }) => prepared),
    async (signal) => {
      const predictions = await Promise.all(
        all.map(async ({ prepared, before }) => {
          const { choices } = await collect(answered(exchange, prepared, signal));
          return before + ranked(choices)[0].text;
        }),
      );
      if (signal.aborted) throw interrupted(exchange);
      exchange.reply.send({ predictions });
    },
  );
}

/** What asks for more than a text, which is all that a prediction is. */
const beyondText = {
  messages: ["stream", "n", "logprobs", "timings", "return_token_ids"],
  inputs: ["details", "decoder_input_details", "top_n_tokens"],
};

function refuseMore(given: object, names: readonly string[]): void {
  const values = given as Readonly<Record<string, unknown>>;
  const name = names.find((one) => (one === "n" ? Number(values.n ?? 1) > 1 : Boolean(values[one])));
  if (name === undefined) return;
  throw new UserError(`The field "${name}" asks for more than a prediction's text; leave it out.`, {
    code: "unsupported_field",
    param: name,
  });
}

/** before: what stands before the answer in its text. */
function preparedOf({ request, model: { session } }: Exchange, instance: Record<string, unknown>) {
  if ("messages" in instance) {
    const body = valid<ChatRequest>(request, ChatBody, instance);
    refuseMore(body, beyondText.messages);
    return { prepared: fitted(session, chatJob(body), body.context_overflow ?? "error"), before: "" };
  }
  const body = valid<GenerateRequest>(request, GenerateBody, instance);
  refuseMore(body.parameters ?? {}, beyondText.inputs);
  const { job, inputs, fullText } = asked(body, session, false);
  return { prepared: session.prepare(job), before: fullText ? inputs : "" };
}

/** The body, where the schema takes it. Throws UserError. */
function valid<Body>(request: FastifyRequest, schema: object, body: unknown): Body {
  const validate = request.compileValidationSchema(schema as Record<string, unknown>);
  if (validate(body)) return body as Body;
  throw explainInvalid(validate.errors as ValidationIssue[], schema, body);
}
