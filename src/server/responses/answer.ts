// Owns: working on one response: the model's deltas through the builder, to whoever reads (a stream, one answer, or the live
// record of a background response), and into the database before its end is told.
import { UserError } from "../../base/errors.js";
import type { ChatJob } from "../../session/types.js";
import { accountsOf } from "../account.js";
import { failureOf, logFault } from "../errors.js";
import { answered, type Exchange, interrupted, running } from "../exchange.js";
import { wireTimings } from "../openai/timings.js";
import { ClientGone, EventStream, type Framing, serverSentEvents } from "../stream.js";
import { newResponse, ResponseBuilder, type ResponseEvent } from "./build.js";
import { inputItems, prepareResponse } from "./job.js";
import type { LiveResponse } from "./live.js";
import type { ResponsesRequest } from "./schema.js";
import type { ResponseStore } from "./store.js";

/** Every event is named by its type. */
export const events: Framing = {
  contentType: serverSentEvents.contentType,
  frame: (data) => `event: ${(data as { type?: string }).type ?? "error"}\ndata: ${JSON.stringify(data)}\n\n`,
  end: "",
  keepAlive: serverSentEvents.keepAlive,
};

interface Work {
  readonly exchange: Exchange;
  readonly body: ResponsesRequest;
  readonly job: ChatJob;
}

/** @param save writes it; called once, when it has ended and before that is told */
async function produce(
  { exchange, body, job }: Work,
  builder: ResponseBuilder,
  send: (events: readonly ResponseEvent[]) => Promise<void>,
  save: () => void,
): Promise<void> {
  const prepared = prepareResponse(exchange.model.session, job, body.truncation);
  const { cutTokens } = prepared;
  builder.cutTokens = cutTokens;
  if (body.timings) builder.timings = () => wireTimings(accountsOf(exchange.request));
  if (cutTokens > 0) exchange.reply.header("x-context-cut", String(cutTokens));
  let told = false;
  await running(exchange, [prepared], async (signal) => {
    try {
      for await (const delta of answered(exchange, prepared, signal)) {
        if (delta.type === "start") {
          await send(builder.begun());
          told = true;
        }
        // One that was aborted has no end of its own: what aborted it says what became of it.
        if (delta.type === "finish" && signal.aborted) break;
        const made = builder.add(delta);
        if (builder.ended) save();
        await send(made);
      }
      if (!builder.ended) throw interrupted(exchange);
    } catch (error) {
      if (builder.ended || !told) throw error;
      const gone = error instanceof ClientGone || exchange.ending.reason?.code === "cancelled";
      const failure = failureOf(error, exchange.request.id);
      if (failure.status === 500 && !gone) logFault(exchange.request, error);
      const made = gone ? builder.cancel() : builder.fail(failure);
      save();
      await send(made);
      if (gone) throw error;
    }
  });
}

export async function respond(work: Work, store: ResponseStore, client: string): Promise<void> {
  const { exchange, body, job } = work;
  const { request, reply, model, times } = exchange;
  const builder = new ResponseBuilder(
    newResponse(body, "in_progress"),
    job.logprobs === undefined ? undefined : () => model.session,
  );
  const save = () => {
    if (body.store !== false) store.save(client, builder.response, inputItems(body.input), false);
  };
  if (!body.stream) {
    await produce(work, builder, async () => {}, save);
    if (builder.response.status !== "failed") reply.send(builder.response);
    else throw failedAnswer(builder);
    return;
  }
  const stream = new EventStream(request, reply, times, events);
  try {
    const send = async (made: readonly ResponseEvent[]) => {
      for (const event of made) await stream.send(event);
    };
    await produce(work, builder, send, save);
    await stream.done();
  } catch (error) {
    await stream.fail(error);
  }
}

/** Whoever waits for the whole gets an error as every other route gives it. */
function failedAnswer({ response: { error } }: ResponseBuilder): UserError {
  const { code, message } = error!;
  const status = code === "deadline_exceeded" ? 504 : code === "shutting_down" ? 503 : 500;
  return new UserError(message, { status, code });
}

/** The work of a background response; nobody waits for its reply. */
export async function respondLive(work: Work, live: LiveResponse, store: ResponseStore): Promise<void> {
  const { builder } = live;
  let begun = false;
  const send = async (made: readonly ResponseEvent[]) => {
    live.push(made);
    // That it has begun is written, and its end; what comes between would be written for nobody.
    if (!begun && !builder.ended) store.update(builder.response, true);
    begun = true;
  };
  await produce(work, builder, send, () => store.update(builder.response, false));
  work.exchange.reply.send({});
}
