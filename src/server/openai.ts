// Owns: the OpenAI routes and what they share. Schemas, jobs and shapes are in openai/.
import type { FastifyInstance } from "fastify";
import type { ServedModel, ServedModels } from "./models.js";
import { chatCompletion } from "./openai/chat.js";
import { completion } from "./openai/completions.js";
import { ChatBody, type ChatRequest, CompletionBody, type CompletionRequest } from "./openai/schema.js";
import type { StreamTimes } from "./stream.js";

export function openaiRoutes(
  app: FastifyInstance,
  models: ServedModels,
  times: StreamTimes,
  closing: AbortSignal,
): void {
  app.post<{ Body: ChatRequest }>("/v1/chat/completions", { schema: { body: ChatBody } }, async (request, reply) => {
    const model = models.get(request.body.model);
    await chatCompletion({ request, reply, model, times, closing }, request.body);
    return reply;
  });
  app.post<{ Body: CompletionRequest }>(
    "/v1/completions",
    { schema: { body: CompletionBody } },
    async (request, reply) => {
      const model = models.get(request.body.model);
      await completion({ request, reply, model, times, closing }, request.body);
      return reply;
    },
  );
  app.get("/v1/models", async () => ({ object: "list", data: models.all.map(modelCard) }));
  // An id may contain slashes (hf:owner/repo).
  app.get<{ Params: { "*": string } }>("/v1/models/*", async (request) => modelCard(models.get(request.params["*"])));
}

function modelCard({ id, created, session }: ServedModel): object {
  return { id, object: "model", created, owned_by: "millrace", max_model_len: session.limits.contextLength };
}
