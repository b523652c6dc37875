// Owns: Ollama's routes and what they share: bodies of any content type, names in either field, models that are loaded
// for a request and stay for its keep_alive. Jobs, answers and what is told of models are in ollama/.
import type { Readable } from "node:stream";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { parseDuration } from "../base/duration.js";
import { UserError } from "../base/errors.js";
import type { Embeddings, EmbedJob } from "../session/embed.js";
import type { Prepared } from "../session/session.js";
import { catalogue } from "../store/catalogue.js";
import type { Store } from "../store/store.js";
import { isAllowed } from "./cors.js";
import { untilEnded } from "./ending.js";
import { type Exchange, embedded, type Serving } from "./exchange.js";
import { takeJson } from "./http.js";
import type { Lease } from "./models.js";
import { type Asked, nanoseconds, type Piece, respondStream, respondWhole } from "./ollama/answer.js";
import { prepareChat, prepareGenerate } from "./ollama/job.js";
import { running, show, tags } from "./ollama/models.js";
import { optionsOf } from "./ollama/options.js";
import { create, hasUpload, needStore, pull, push, respondProgress, upload } from "./ollama/packages.js";
import * as schema from "./ollama/schema.js";
import { checkOutbound, type PullHosts } from "./outbound.js";

/** The version of Ollama whose API this is: clients ask for what a version has. */
const apiVersion = "0.14.0";

export interface OllamaServer extends Serving {
  readonly pullHosts: PullHosts;
  /** null: the server has certain models and no others. */
  readonly store: Store | null;
  /** Web pages that may call, beside those of this machine. */
  readonly corsOrigins: readonly string[];
}

export function ollamaRoutes(app: FastifyInstance, server: OllamaServer): void {
  liveness(app);
  app.register(async (scope) => {
    refuseForeignPages(scope, server.corsOrigins);
    // curl without a header says application/x-www-form-urlencoded.
    scope.removeAllContentTypeParsers();
    takeJson(scope, "*");
    answerRoutes(scope, server);
    embedRoutes(scope, server);
    modelRoutes(scope, server);
    storeRoutes(scope, server);
  });
  app.register(async (scope) => {
    refuseForeignPages(scope, server.corsOrigins);
    blobRoutes(scope, server);
  });
}

function liveness(app: FastifyInstance): void {
  app.route({ method: ["GET", "HEAD"], url: "/", handler: async () => "Ollama is running" });
}

/** A page of another origin may send a request without asking first when its content type is plain. */
function refuseForeignPages(scope: FastifyInstance, allowed: readonly string[]): void {
  scope.addHook("onRequest", async ({ headers: { origin } }) => {
    if (origin === undefined || isAllowed(allowed, origin)) return;
    throw new UserError(`Pages of ${origin} may not call this server.`, { status: 403, code: "foreign_origin" });
  });
}

function answerRoutes(scope: FastifyInstance, server: OllamaServer): void {
  scope.post<{ Body: schema.GenerateRequest }>(
    "/api/generate",
    { schema: { body: schema.GenerateBody } },
    async (request, reply) => {
      const { body } = request;
      const empty = (body.prompt ?? "") === "" && !body.raw && !body.suffix;
      if (empty && (await loadedOrUnloaded(server, request, reply, body, { response: "" }))) return reply;
      return answering(server, request, reply, body, (lease) => ({
        prepared: prepareGenerate(body, lease.model),
        wrap: generatePiece,
        last: body.raw ? undefined : (context) => ({ context }),
      }));
    },
  );
  scope.post<{ Body: schema.ChatRequest }>(
    "/api/chat",
    { schema: { body: schema.ChatBody } },
    async (request, reply) => {
      const { body } = request;
      const nothing = { message: { role: "assistant", content: "" } };
      const empty = (body.messages ?? []).length === 0;
      if (empty && (await loadedOrUnloaded(server, request, reply, body, nothing))) return reply;
      return answering(server, request, reply, body, (lease) => ({
        prepared: prepareChat(body, lease.model),
        wrap: chatPiece,
      }));
    },
  );
}

const generatePiece = ({ text, thinking, calls }: Piece) => ({
  response: text,
  ...(thinking === undefined ? {} : { thinking }),
  ...(calls === undefined ? {} : { tool_calls: calls }),
});

const chatPiece = ({ text, thinking, calls }: Piece) => ({
  message: {
    role: "assistant",
    content: text,
    ...(thinking === undefined ? {} : { thinking }),
    ...(calls === undefined ? {} : { tool_calls: calls }),
  },
});

type AskBody = schema.GenerateRequest | schema.ChatRequest;

/** A request that asks nothing loads its model, or with keep_alive 0 unloads it. */
async function loadedOrUnloaded(
  server: OllamaServer,
  request: FastifyRequest,
  reply: FastifyReply,
  body: AskBody,
  nothing: object,
): Promise<boolean> {
  const name = nameOf(body);
  const unload = keepAliveOf(body) === 0;
  if (unload) await server.models.unload(server.models.find(name).id);
  else {
    await untilEnded(request, reply, server.closing, async (ending) => (await lease(server, body, ending)).release());
  }
  const done_reason = unload ? "unload" : "load";
  reply.type(body.stream === false ? "application/json; charset=utf-8" : "application/x-ndjson");
  reply.send(
    `${JSON.stringify({ model: name, created_at: new Date().toISOString(), ...nothing, done: true, done_reason })}\n`,
  );
  return true;
}

/** The model is loaded where it is not, and stays until the answer has ended. */
async function answering(
  server: OllamaServer,
  request: FastifyRequest,
  reply: FastifyReply,
  body: AskBody,
  ask: (lease: Lease) => Pick<Asked, "prepared" | "wrap" | "last">,
): Promise<FastifyReply> {
  const from = performance.now();
  return untilEnded(request, reply, server.closing, async (ending) => {
    const held = await lease(server, body, ending);
    try {
      const { times, metrics, budgets } = server;
      const exchange: Exchange = { request, reply, model: held.model, times, ending, metrics, budgets };
      const asked: Asked = { model: nameOf(body), loadMs: held.loadMs, from, ...ask(held) };
      if (body._debug_render_only) reply.send(rendered(exchange, asked.prepared, asked.model));
      else if (body.stream === false) await respondWhole(exchange, asked);
      else await respondStream(exchange, asked);
    } finally {
      held.release();
    }
    return reply;
  });
}

function rendered({ model }: Exchange, { request: { promptIds } }: Prepared, name: string): object {
  const rendered_template = model.session.detokenize(promptIds, { special: true });
  return { model: name, created_at: new Date().toISOString(), _debug_info: { rendered_template } };
}

type LoadingBody = Pick<AskBody, "model" | "name" | "options" | "keep_alive">;

function lease({ models }: OllamaServer, body: LoadingBody, signal: AbortSignal): Promise<Lease> {
  const name = nameOf(body);
  const { contextLength } = optionsOf(body.options ?? {}, models.find(name).package?.parameters);
  return models.acquire(name, {
    keepAliveMs: keepAliveOf(body),
    contextLength,
    signal,
  });
}

function keepAliveOf({ keep_alive }: { keep_alive?: string | number }): number | undefined {
  if (keep_alive === undefined || keep_alive === "") return undefined;
  const ms = parseDuration(keep_alive);
  if (ms !== undefined) return ms;
  throw new UserError(
    `The field "keep_alive" must be a duration such as "5m" or a number of seconds, not ${JSON.stringify(keep_alive)}.`,
    { code: "invalid_value", param: "keep_alive" },
  );
}

function nameOf({ model, name }: { model?: string; name?: string }): string {
  const given = model || name;
  if (given) return given;
  throw new UserError('The field "model" is missing: give the name of a model.', {
    code: "missing_field",
    param: "model",
  });
}

function embedRoutes(scope: FastifyInstance, server: OllamaServer): void {
  scope.post<{ Body: schema.EmbedRequest }>(
    "/api/embed",
    { schema: { body: schema.EmbedBody } },
    async (request, reply) => {
      const from = performance.now();
      const { body } = request;
      const inputs = [body.input ?? []].flat();
      const { truncate = true, dimensions } = body;
      const { vectors, tokens, loadMs } = await embedding(server, request, reply, body, {
        ...{ inputs, truncate, dimensions, normalize: true },
      });
      reply.send({
        model: nameOf(body),
        embeddings: vectors.map((vector) => [...vector]),
        total_duration: nanoseconds(performance.now() - from),
        load_duration: nanoseconds(loadMs),
        prompt_eval_count: tokens,
      });
      return reply;
    },
  );
  scope.post<{ Body: schema.EmbeddingsRequest }>(
    "/api/embeddings",
    { schema: { body: schema.EmbeddingsBody } },
    async (request, reply) => {
      const { body } = request;
      const inputs = body.prompt ? [body.prompt] : [];
      const job = { inputs, truncate: true, normalize: false };
      const { vectors } = await embedding(server, request, reply, body, job);
      reply.send({ embedding: [...(vectors[0] ?? [])] });
      return reply;
    },
  );
}

/** Without inputs it only loads the model. */
async function embedding(
  server: OllamaServer,
  request: FastifyRequest,
  reply: FastifyReply,
  body: schema.EmbedRequest | schema.EmbeddingsRequest,
  job: EmbedJob,
): Promise<Embeddings & { loadMs: number }> {
  return untilEnded(request, reply, server.closing, async (ending) => {
    const { model, loadMs, release } = await lease(server, body, ending);
    try {
      if (job.inputs.length === 0) return { vectors: [], tokens: 0, loadMs };
      return { ...(await embedded({ request, model, budgets: server.budgets, ending }, job)), loadMs };
    } finally {
      release();
    }
  });
}

function modelRoutes(scope: FastifyInstance, { models }: OllamaServer): void {
  const version = async () => ({ version: apiVersion });
  scope.route({ method: ["GET", "HEAD"], url: "/api/version", handler: version });
  scope.route({ method: ["GET", "HEAD"], url: "/api/tags", handler: () => tags(models) });
  scope.get("/api/status", async () => ({ cloud: { disabled: true, source: "server" } }));
  scope.get("/api/ps", () => running(models));
  scope.get("/api/experimental/model-recommendations", async () => ({
    recommendations: catalogue.map(({ name, title }) => ({ model: name, description: title })),
  }));
  scope.post<{ Body: schema.ShowRequest }>("/api/show", { schema: { body: schema.ShowBody } }, ({ body }) =>
    show(models.find(nameOf(body)), body),
  );
}

function storeRoutes(scope: FastifyInstance, { models, store, times, pullHosts }: OllamaServer): void {
  const transfer = (url: string, run: typeof pull) =>
    scope.post<{ Body: schema.TransferRequest }>(
      url,
      { schema: { body: schema.TransferBody } },
      async (request, reply) => {
        const { stream = true, insecure = false, ...body } = request.body;
        const [from, name] = [needStore(store), nameOf(body)];
        checkOutbound(name, pullHosts);
        await respondProgress(request, reply, times, stream, (signal) => run(from, name, insecure, signal));
        return reply;
      },
    );
  transfer("/api/pull", pull);
  transfer("/api/push", push);
  scope.post<{ Body: schema.CreateRequest }>(
    "/api/create",
    { schema: { body: schema.CreateBody } },
    async (request, reply) => {
      const { body } = request;
      const [to, name] = [needStore(store), nameOf(body)];
      if (body.from !== undefined) checkOutbound(body.from, pullHosts);
      await respondProgress(request, reply, times, body.stream ?? true, (signal) => create(to, name, body, signal));
      return reply;
    },
  );
  scope.post<{ Body: schema.CopyRequest }>(
    "/api/copy",
    { schema: { body: schema.CopyBody } },
    async ({ body }, reply) => {
      await needStore(store).copy(body.source, body.destination);
      return reply.code(200).send();
    },
  );
  scope.delete<{ Body: schema.DeleteRequest }>(
    "/api/delete",
    { schema: { body: schema.DeleteBody } },
    async ({ body }, reply) => {
      const from = needStore(store);
      const { id } = models.find(nameOf(body));
      await from.remove(nameOf(body));
      // What is loaded still answers what it was asked.
      void models.unload(id);
      return reply.code(200).send();
    },
  );
}

/** Routes whose bodies are no JSON. */
function blobRoutes(scope: FastifyInstance, { store }: OllamaServer): void {
  scope.removeAllContentTypeParsers();
  scope.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
  scope.post("/v1/audio/transcriptions", async () => {
    throw new UserError("This server has no model that hears: it transcribes nothing.", {
      status: 501,
      code: "unsupported_modality",
    });
  });
  const url = "/api/blobs/:digest";
  type Params = { Params: { digest: string } };
  scope.head<Params>(url, async ({ params }, reply) =>
    reply.code(hasUpload(needStore(store), params.digest) ? 200 : 404).send(),
  );
  scope.post<Params>(url, async ({ params, body }, reply) => {
    await upload(needStore(store), params.digest, body as Readable);
    return reply.code(201).send();
  });
}
