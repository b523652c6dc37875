// Owns: one request while a model answers it, whatever API it came by: its places in the queue, what ends it early, and
// how an answer that failed becomes an error.
import type { FastifyReply, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import { type Embeddings, type EmbedJob, embed } from "../session/embed.js";
import type { Prepared } from "../session/session.js";
import type { Delta } from "../session/types.js";
import { keepAccount } from "./account.js";
import { callerOf, clientOf, keyOf } from "./auth.js";
import type { Budgets } from "./budgets.js";
import { untilEnded } from "./ending.js";
import { innerOf } from "./inner.js";
import type { Metrics } from "./metrics.js";
import type { ServedModel, ServedModels } from "./models.js";
import type { LocalModel } from "./source.js";
import { ClientGone, type StreamTimes } from "./stream.js";

/** What every API's routes are given. */
export interface Serving {
  readonly models: ServedModels<LocalModel>;
  readonly times: StreamTimes;
  /** Ends when the server does. */
  readonly closing: AbortSignal;
  readonly metrics: Metrics;
  readonly budgets: Budgets;
}

export interface Exchange {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  readonly model: ServedModel;
  readonly times: StreamTimes;
  /** Ends it early; its reason says why. */
  readonly ending: AbortSignal;
  readonly metrics: Metrics;
  readonly budgets: Budgets;
}

/** The model is loaded where it is not, and stays until the answer has ended. */
export function exchanging(
  { models, times, closing, metrics, budgets }: Serving,
  request: FastifyRequest,
  reply: FastifyReply,
  modelName: string | undefined,
  answer: (exchange: Exchange) => Promise<void>,
): Promise<FastifyReply> {
  return untilEnded(request, reply, closing, async (ending) => {
    const lease = await models.acquire(named(models, modelName), { signal: ending });
    try {
      await answer({ request, reply, model: lease.model, times, ending, metrics, budgets });
    } finally {
      lease.release();
    }
    return reply;
  });
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

/** Made once: a reason of its own for each request would cost it a stack trace. */
const over = new Error("The request has ended.");

/** Holds the jobs' places while they run, and aborts what a failure leaves. Throws where the key's tokens are spent, or
 *  there are no places. */
export async function running(
  { request, model, ending, budgets }: Exchange,
  prepared: readonly Prepared[],
  run: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  let choices = 0;
  let tokens = 0;
  for (const { request: one } of prepared) {
    checkPriority(request, one.priority);
    choices += one.n;
    tokens += one.promptIds.length + one.n * one.maxTokens;
  }
  budgets.check(keyOf(request));
  const leave = model.queue.enter(choices, tokens, clientOf(request));
  const controller = new AbortController();
  const ended = () => controller.abort(ending.reason);
  ending.addEventListener("abort", ended, { once: true });
  if (ending.aborted) ended();
  try {
    await run(controller.signal);
  } finally {
    ending.removeEventListener("abort", ended);
    controller.abort(over);
    leave();
  }
}

/** Throws UserError for a request that would go before other keys' and may not. */
function checkPriority(request: FastifyRequest, priority: number): void {
  const caller = callerOf(request);
  if (caller === undefined || caller.alone) return;
  const best = caller.key.priority ?? 0;
  if (priority >= best) return;
  const message = `This API key may ask for the priority ${best} at best (lower ones go first), not ${priority}.`;
  throw new UserError(message, { status: 403, code: "insufficient_priority", param: "priority" });
}

/** The model's answer, counted, and paid by the caller's key. Throws where a choice ends in an error. */
export async function* answered(exchange: Exchange, prepared: Prepared, signal: AbortSignal): AsyncGenerator<Delta> {
  const { request, reply, model, metrics, budgets } = exchange;
  const key = keyOf(request);
  const priority = Math.max(prepared.request.priority, innerOf(request)?.priority ?? prepared.request.priority);
  const about = { label: request.id, client: key?.name, weight: key?.weight, priority };
  const whose = { ...prepared, request: { ...prepared.request, ...about } };
  const account = metrics.opened(model, whose, performance.now() - reply.elapsedTime);
  keepAccount(request, account);
  budgets.spend(key, account.promptTokens);
  try {
    for await (const delta of model.session.deltas(whose, signal)) {
      account.add(delta);
      if (delta.type !== "start") budgets.spend(key, delta.tokens.length);
      if (delta.type === "finish" && delta.reason === "error") throw failureOf(delta);
      yield delta;
    }
  } finally {
    metrics.closed(account);
  }
}

/** Texts to vectors, with a place in the queue, paid by the caller's key. */
export async function embedded(
  { request, model, budgets, ending }: Pick<Exchange, "request" | "model" | "budgets" | "ending">,
  job: EmbedJob,
): Promise<Embeddings> {
  const key = keyOf(request);
  budgets.check(key);
  const leave = model.queue.enter(1, 0, clientOf(request));
  try {
    const made = await embed(model.session, job, ending);
    budgets.spend(key, made.tokens);
    return made;
  } finally {
    leave();
  }
}

function failureOf({ error }: Delta & { type: "finish" }): UserError {
  const unknown = { message: "The model failed while it was answering.", status: 500, code: "engine_error" };
  const { message, ...about } = error ?? unknown;
  return new UserError(message, about);
}

export function interrupted({ ending }: Exchange): Error {
  return ending.aborted ? (ending.reason as Error) : new ClientGone();
}
