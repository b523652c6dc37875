// Owns: the routes of OpenAI's responses: made, followed, retrieved, listed, cancelled, deleted. Schema, job, shapes and
// storage are in responses/. Conversations, prompts kept elsewhere and OpenAI's own tools are refused by name.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import { callerOf, keyOf } from "./auth.js";
import { untilEnded } from "./ending.js";
import { failureOf } from "./errors.js";
import { exchanging, type Serving } from "./exchange.js";
import { askInner, innerOf } from "./inner.js";
import { listOf, pageOf, queryOf } from "./paging.js";
import type { Records } from "./records.js";
import { events, respond, respondLive } from "./responses/answer.js";
import { newResponse, ResponseBuilder } from "./responses/build.js";
import { inputItems, responseJob } from "./responses/job.js";
import { LiveResponse, LiveResponses } from "./responses/live.js";
import { ResponsesBody, type ResponsesRequest } from "./responses/schema.js";
import { ResponseStore } from "./responses/store.js";
import { EventStream } from "./stream.js";

/** Whose things they are: those of one key are not another's. */
export const clientName = (request: FastifyRequest): string => keyOf(request)?.name ?? "";

type ById = FastifyRequest<{ Params: { id: string } }>;

/** @param draining begins when the server takes no new requests */
export function responseRoutes(app: FastifyInstance, serving: Serving, records: Records, draining: AbortSignal): void {
  const store = new ResponseStore(records);
  const lives = new LiveResponses();
  records.regularly(() => {
    store.tidy();
    lives.drop((id) => store.isOurs(id));
  });
  app.addHook("onClose", () => lives.settled());

  app.post("/v1/responses", { schema: { body: ResponsesBody } }, async (request, reply) => {
    const body = request.body as ResponsesRequest;
    const client = clientName(request);
    checkTogether(body);
    if (body.store !== false) store.check();
    const { previous_response_id: previous } = body;
    const job = responseJob(body, previous === undefined ? [] : store.conversation(client, previous));
    const live = lives.find(client, innerOf(request)?.responseId ?? "");
    if (live !== undefined) {
      return exchanging(serving, request, reply, body.model, (exchange) =>
        respondLive({ exchange, body, job }, live, store),
      );
    }
    if (!body.background) {
      return exchanging(serving, request, reply, body.model, (exchange) =>
        respond({ exchange, body, job }, store, client),
      );
    }
    const begun = beginInBackground(request, body, job.logprobs !== undefined);
    return body.stream ? follow(request, reply, begun, -1) : begun.builder.response;
  });

  function beginInBackground(request: FastifyRequest, body: ResponsesRequest, logprobs: boolean): LiveResponse {
    const id = serving.models.find(body.model).id;
    lives.checkRoom();
    // By the time that there are tokens to spell, the model is loaded.
    const session = () => serving.models.loaded.find(({ model }) => model.id === id)!.served.session;
    const live = new LiveResponse(
      new ResponseBuilder(newResponse(body, "queued"), logprobs ? session : undefined),
      clientName(request),
    );
    const { builder, client } = live;
    store.save(client, builder.response, inputItems(body.input), true);
    live.push(builder.created());
    const caller = callerOf(request);
    const inner = { caller, signal: live.signal, responseId: builder.response.id };
    lives.begin(live, async () => {
      const { stream: _, ...alone } = body;
      const outcome = await askInner(app, "/v1/responses", alone, inner, draining).catch(failed);
      if (builder.ended) return;
      // It had not begun: nobody has written its end.
      const made = live.signal.aborted ? builder.cancel() : builder.fail(refusalOf(outcome));
      store.update(builder.response, false);
      live.push(made);
    });
    return live;
  }

  function follow(
    request: FastifyRequest,
    reply: FastifyReply,
    live: LiveResponse,
    after: number,
  ): Promise<FastifyReply> {
    return untilEnded(request, reply, serving.closing, async (ending) => {
      const stream = new EventStream(request, reply, serving.times, events);
      try {
        for await (const event of live.follow(after, ending)) await stream.send(event);
        if (ending.aborted) throw ending.reason;
        await stream.done();
      } catch (error) {
        await stream.fail(error);
      }
      return reply;
    });
  }

  app.get("/v1/responses/:id", async (request: ById, reply) => {
    const query = queryOf(request, ["stream", "starting_after", "include_obfuscation"]);
    const client = clientName(request);
    const { id } = request.params;
    const { response } = store.find(client, id);
    if (query.stream !== "true") return response;
    const live = lives.find(client, id);
    if (live === undefined) {
      throw new UserError(
        "Only a background response can be followed, while this server works on it and for five minutes after; " +
          'retrieve it without "stream".',
        { code: "response_not_streamable", param: "stream" },
      );
    }
    const after = query.starting_after === undefined ? -1 : Number(query.starting_after);
    if (!Number.isInteger(after)) {
      throw new UserError('The parameter "starting_after" must be the number of an event.', {
        param: "starting_after",
      });
    }
    return follow(request, reply, live, after);
  });

  app.get("/v1/responses/:id/input_items", async (request: ById) => {
    const { limit, after, descending } = pageOf(queryOf(request, ["limit", "after", "order"]), 100, 20);
    const { input } = store.find(clientName(request), request.params.id);
    const ordered = descending ? [...input].reverse() : input;
    const from = after === undefined ? 0 : ordered.findIndex(({ id }) => id === after) + 1;
    return listOf(ordered.slice(from, from + limit + 1), limit);
  });

  app.post("/v1/responses/:id/cancel", async (request: ById) => {
    const client = clientName(request);
    const { id } = request.params;
    const { response, server } = store.find(client, id);
    if (response.background !== true) {
      throw new UserError("Only a background response can be cancelled; this one ends with its request.", {
        code: "not_cancellable",
      });
    }
    if (server === null) return response;
    const live = lives.find(client, id);
    if (live === undefined) {
      store.end({ ...response, status: "cancelled" });
      return store.find(client, id).response;
    }
    live.cancel();
    await live.ended();
    return live.builder.response;
  });

  app.delete("/v1/responses/:id", async (request: ById) => {
    const client = clientName(request);
    const { id } = request.params;
    store.delete(client, id);
    lives.find(client, id)?.cancel();
    return { id, object: "response", deleted: true };
  });
}

function checkTogether({ background, store, stream, stream_options }: ResponsesRequest): void {
  if (background && store === false) {
    throw new UserError('A background response must be stored: leave out "store": false.', { param: "store" });
  }
  if (stream_options !== undefined && stream !== true) {
    throw new UserError('The field "stream_options" needs "stream": true.', { param: "stream_options" });
  }
}

interface Refusal {
  readonly status: number;
  readonly body: unknown;
}

const failed = (error: unknown): Refusal => {
  const { status, message, code } = failureOf(error, "");
  return { status, body: { error: { message, code } } };
};

function refusalOf({ status, body }: Refusal): { status: number; code: string; message: string } {
  const { message, code } = (body as { error?: { message?: string; code?: string } }).error ?? {};
  return { status, code: code ?? "server_error", message: message ?? "The server failed while it was answering." };
}
