// Owns: the OpenAI routes and what they share. Schemas, jobs and shapes are in openai/.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type Exchange, exchanging, type Serving } from "./exchange.js";
import type { ServedModels } from "./models.js";
import { chatCompletion } from "./openai/chat.js";
import { completion } from "./openai/completions.js";
import { EmbeddingsBody, type EmbeddingsRequest, embeddings } from "./openai/embeddings.js";
import { ChatBody, type ChatRequest, CompletionBody, type CompletionRequest } from "./openai/schema.js";
import type { LocalModel } from "./source.js";

export function openaiRoutes(app: FastifyInstance, serving: Serving): void {
  const { models } = serving;
  const answering = <Body extends { model: string }>(
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
