// Owns: the OpenAI routes and what they share. Schemas, jobs and shapes are in openai/.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Exchange } from "./exchange.js";
import type { Metrics } from "./metrics.js";
import type { ServedModels } from "./models.js";
import { chatCompletion } from "./openai/chat.js";
import { completion } from "./openai/completions.js";
import { ChatBody, type ChatRequest, CompletionBody, type CompletionRequest } from "./openai/schema.js";
import type { LocalModel } from "./source.js";
import { clientSignal, type StreamTimes } from "./stream.js";

export function openaiRoutes(
  app: FastifyInstance,
  models: ServedModels<LocalModel>,
  times: StreamTimes,
  closing: AbortSignal,
  metrics: Metrics,
): void {
  /** The model is loaded where it is not, and stays until the answer has ended. */
  const answering = async <Body extends { model: string }>(
    request: FastifyRequest,
    reply: FastifyReply,
    answer: (exchange: Exchange, body: Body) => Promise<void>,
  ) => {
    const body = request.body as Body;
    const lease = await models.acquire(body.model, {
      signal: AbortSignal.any([clientSignal(request, reply), closing]),
    });
    try {
      await answer({ request, reply, model: lease.model, times, closing, metrics }, body);
    } finally {
      lease.release();
    }
    return reply;
  };
  app.post("/v1/chat/completions", { schema: { body: ChatBody } }, (request, reply) =>
    answering<ChatRequest>(request, reply, chatCompletion),
  );
  app.post("/v1/completions", { schema: { body: CompletionBody } }, (request, reply) =>
    answering<CompletionRequest>(request, reply, completion),
  );
  app.get("/v1/models", async () => ({ object: "list", data: models.all.map((model) => modelCard(models, model)) }));
  // An id may contain slashes (hf:owner/repo).
  app.get<{ Params: { "*": string } }>("/v1/models/*", async (request) =>
    modelCard(models, models.find(request.params["*"])),
  );
}

function modelCard(models: ServedModels<LocalModel>, { id, created }: LocalModel): object {
  const served = models.loaded.find(({ model }) => model.id === id)?.served;
  const card = { id, object: "model", created: served?.created ?? created, owned_by: "millrace" };
  return served === undefined ? card : { ...card, max_model_len: served.session.limits.contextLength };
}
