// Owns: the envelopes of clouds around TGI's requests: SageMaker's /invocations, whose body is any of TGI's, and Vertex'
// instances, answered together.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type Static, Type } from "typebox";
import { UserError } from "../../base/errors.js";
import { collect } from "../../session/collect.js";
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

/** One text an instance, in their order. */
async function predictions(exchange: Exchange, instances: readonly Record<string, unknown>[]): Promise<void> {
  const { session } = exchange.model;
  const prepared = instances.map((instance, index) => {
    try {
      return session.prepare(jobOf(exchange, instance));
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
  await running(exchange, prepared, async (signal) => {
    const answers = await Promise.all(prepared.map((one) => collect(answered(exchange, one, signal))));
    if (signal.aborted) throw interrupted(exchange);
    exchange.reply.send({ predictions: answers.map(({ choices: [{ text }] }) => text) });
  });
}

function jobOf({ request, model }: Exchange, instance: Record<string, unknown>) {
  if ("messages" in instance) return chatJob(valid<ChatRequest>(request, ChatBody, instance));
  return asked(valid<GenerateRequest>(request, GenerateBody, instance), model.session, false).job;
}

/** The body, where the schema takes it. Throws UserError. */
function valid<Body>(request: FastifyRequest, schema: object, body: unknown): Body {
  const validate = request.compileValidationSchema(schema as Record<string, unknown>);
  if (validate(body)) return body as Body;
  throw explainInvalid(validate.errors as ValidationIssue[], schema, body);
}
