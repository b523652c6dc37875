// Owns: the OpenAI routes and what they share. Schemas, jobs and shapes are in openai/.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type Exchange, exchanging, type Serving } from "./exchange.js";
import { adapterOf, type ServedModels } from "./models.js";
import { chatCompletion } from "./openai/chat.js";
import { completion } from "./openai/completions.js";
import { EmbeddingsBody, type EmbeddingsRequest, embeddings } from "./openai/embeddings.js";
import { ChatBody, type ChatRequest, CompletionBody, type CompletionRequest } from "./openai/schema.js";
import type { LocalModel } from "./source.js";

export function openaiRoutes(app: FastifyInstance, serving: Serving): void {
  const { models } = serving;
  const answering = <Body extends { model?: string }>(
    request: FastifyRequest,
    reply: FastifyReply,
    answer: (exchange: Exchange, body: Body) => Promise<void>,
  ) => {
    const body = request.body as Body;
    return exchanging(serving, request, reply, body.model, (exchange) => answer(exchange, body));
  };
  app.post("/v1/chat/completions", { schema: { body: ChatBody } }, (request, reply) =>
    answering<ChatRequest>(request, reply, chatCompletion),
  );
  app.post("/v1/completions", { schema: { body: CompletionBody } }, (request, reply) =>
    answering<CompletionRequest>(request, reply, completion),
  );
  app.post("/v1/embeddings", { schema: { body: EmbeddingsBody } }, (request, reply) =>
    answering<EmbeddingsRequest>(request, reply, embeddings),
  );
  app.get("/v1/models", async () => ({
    object: "list",
    data: models.all.flatMap((model) => {
      const names = [model.id, ...(model.adapters ?? []).map(({ name }) => name)];
      return names.map((name) => modelCard(models, model, name));
    }),
  }));
  // An id may contain slashes (hf:owner/repo).
  app.get<{ Params: { "*": string } }>("/v1/models/*", async ({ params }) =>
    modelCard(models, models.find(params["*"]), params["*"]),
  );
}

/** Of the model, or of the adapter of that name, whose parent it is. */
function modelCard(models: ServedModels<LocalModel>, model: LocalModel, name: string): object {
  const served = models.loaded.find(({ model: { id } }) => id === model.id)?.served;
  const adapter = adapterOf(model, name);
  const card = {
    id: adapter ?? model.id,
    object: "model",
    created: served?.created ?? model.created,
    owned_by: "millrace",
    ...(adapter === undefined ? {} : { parent: model.id }),
  };
  return served === undefined ? card : { ...card, max_model_len: served.session.limits.contextLength };
}
