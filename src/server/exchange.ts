// Owns: one request while a model answers it, whatever API it came by: its places in the queue, what ends it early, and
// how an answer that failed becomes an error.
import type { FastifyReply, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import type { Prepared } from "../session/session.js";
import type { Delta } from "../session/types.js";
import { keepAccount } from "./account.js";
import type { Metrics } from "./metrics.js";
import type { ServedModel, ServedModels } from "./models.js";
import type { LocalModel } from "./source.js";
import { ClientGone, clientSignal, type StreamTimes } from "./stream.js";

/** What every API's routes are given. */
export interface Serving {
  readonly models: ServedModels<LocalModel>;
  readonly times: StreamTimes;
  /** Ends when the server does. */
  readonly closing: AbortSignal;
  readonly metrics: Metrics;
}

export interface Exchange {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  readonly model: ServedModel;
  readonly times: StreamTimes;
  /** Ends when the server does. */
  readonly closing: AbortSignal;
  readonly metrics: Metrics;
}

/** The model is loaded where it is not, and stays until the answer has ended. */
export async function exchanging(
  { models, times, closing, metrics }: Serving,
  request: FastifyRequest,
  reply: FastifyReply,
  modelName: string | undefined,
  answer: (exchange: Exchange) => Promise<void>,
): Promise<FastifyReply> {
  const lease = await models.acquire(named(models, modelName), {
    signal: AbortSignal.any([clientSignal(request, reply), closing]),
  });
  try {
    await answer({ request, reply, model: lease.model, times, closing, metrics });
  } finally {
    lease.release();
  }
  return reply;
}

/** TGI's clients say "tgi", and Hugging Face's the server's own address, where they name no model. */
function named(models: ServedModels<LocalModel>, name: string | undefined): string {
  const none =
    name === undefined || ((name === "tgi" || /^https?:\/\//.test(name)) && models.source.find(name) === null);
  return none ? onlyModel(models) : name;
}

function onlyModel(models: ServedModels<LocalModel>): string {
  const here = models.all.length === 1 ? models.all : models.loaded.map(({ model }) => model);
  if (here.length === 1) return here[0].id;
  throw new UserError(
    `This request names no model, and the server has ${models.all.length}: add "model" to it, or serve one model alone ` +
      "(millrace serve MODEL).",
    { code: "missing_field", param: "model" },
  );
}

/** Holds the jobs' places while they run, and aborts what a failure leaves. */
export async function running(
  { request, reply, model, closing }: Exchange,
  prepared: readonly Prepared[],
  run: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const leave = model.queue.enter(prepared.reduce((choices, { job }) => choices + job.n, 0));
  const failed = new AbortController();
  try {
    await run(AbortSignal.any([clientSignal(request, reply), closing, failed.signal]));
  } finally {
    failed.abort();
    leave();
  }
}

/** The model's answer, counted. Throws where a choice ends in an error. */
export async function* answered(exchange: Exchange, prepared: Prepared, signal: AbortSignal): AsyncGenerator<Delta> {
  const { request, reply, model, metrics } = exchange;
  const account = metrics.opened(model, prepared, performance.now() - reply.elapsedTime);
  keepAccount(request, account);
  try {
    for await (const delta of model.session.deltas(prepared, signal)) {
      account.add(delta);
      if (delta.type === "finish" && delta.reason === "error") {
        const { message, status, code } = delta.error ?? {};
        throw new UserError(message ?? "The model failed while it was answering.", {
          status: status ?? 500,
          code: code ?? "engine_error",
        });
      }
      yield delta;
    }
  } finally {
    metrics.closed(account);
  }
}

export function interrupted({ closing }: Exchange): Error {
  if (!closing.aborted) return new ClientGone();
  return new UserError("The server is shutting down.", { status: 503, code: "shutting_down", retryAfter: 10 });
}
