// Owns: TGI's routes but those of tokens (tokens.ts). TGI serves one model and its requests name none; where this server has several, they carry "model".
// Jobs, answers and schemas are in tgi/.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { version } from "../host/version.js";
import { exchanging, type Serving } from "./exchange.js";
import { respondStream, respondWhole } from "./tgi/answer.js";
import { envelopeRoutes } from "./tgi/envelopes.js";
import { asked } from "./tgi/job.js";
import * as schema from "./tgi/schema.js";

export function tgiRoutes(app: FastifyInstance, serving: Serving): void {
  const generate = (
    request: FastifyRequest,
    reply: FastifyReply,
    stream: boolean,
    wrap: (answer: object) => object = (answer) => answer,
  ) => {
    const body = request.body as schema.GenerateRequest;
    return exchanging(serving, request, reply, body.model, async (exchange) => {
      const job = asked(body, exchange.model.session, stream);
      if (stream) await respondStream(exchange, job);
      else await respondWhole(exchange, job, wrap);
    });
  };
  app.post("/generate", { schema: { body: schema.GenerateBody } }, (request, reply) => generate(request, reply, false));
  app.post("/generate_stream", { schema: { body: schema.StreamBody } }, (request, reply) =>
    generate(request, reply, true),
  );
  const compat = (request: FastifyRequest, reply: FastifyReply) =>
    generate(request, reply, (request.body as schema.CompatRequest).stream ?? false, (answer) => [answer]);
  app.post("/", { schema: { body: schema.CompatBody } }, compat);
  envelopeRoutes(app, serving, compat);
  app.get("/info", (request, reply) =>
    exchanging(serving, request, reply, undefined, async ({ model }) => {
      reply.send(info(model.id, model.session.limits, model.queue));
    }),
  );
}

function info(
  model_id: string,
  { contextLength }: { contextLength: number },
  queue: { concurrent: number; maxWaiting: number },
): object {
  return {
    model_id,
    model_sha: null,
    model_pipeline_tag: "text-generation",
    max_concurrent_requests: queue.concurrent + queue.maxWaiting,
    max_best_of: schema.limits.bestOf,
    max_stop_sequences: schema.limits.stopSequences,
    max_input_tokens: contextLength - 1,
    max_total_tokens: contextLength,
    validation_workers: 1,
    max_client_batch_size: 1,
    router: "millrace",
    version: version(),
    sha: null,
    docker_label: null,
  };
}
