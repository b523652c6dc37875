// Owns: Anthropic's routes: messages and their tokens counted. Jobs, answers and schemas are in anthropic/.
import type { FastifyInstance } from "fastify";
import { checkTextLength } from "../session/fit.js";
import { respondStream, respondWhole } from "./anthropic/answer.js";
import { messagesJob, promptJob } from "./anthropic/job.js";
import * as schema from "./anthropic/schema.js";
import { exchanging, type Serving } from "./exchange.js";

export function anthropicRoutes(app: FastifyInstance, serving: Serving): void {
  app.post<{ Body: schema.MessagesRequest }>(
    "/v1/messages",
    { schema: { body: schema.MessagesBody } },
    (request, reply) => {
      const { body } = request;
      reply.header("request-id", request.id);
      return exchanging(serving, request, reply, body.model, async (exchange) => {
        const job = messagesJob(body);
        if (body.stream) await respondStream(exchange, job);
        else await respondWhole(exchange, job);
      });
    },
  );
  app.post<{ Body: schema.CountRequest }>(
    "/v1/messages/count_tokens",
    { schema: { body: schema.CountBody } },
    (request, reply) =>
      exchanging(serving, request, reply, request.body.model, async ({ model: { session } }) => {
        const job = promptJob(request.body);
        checkTextLength(job, "messages");
        reply.send({ input_tokens: session.promptIds(job).length });
      }),
  );
}
