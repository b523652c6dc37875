// Owns: answering one OpenAI request, streamed or whole: the merging of several prompts' deltas, errors before and in
// mid-stream, and usage. How deltas look on the wire is the route's Shape.
import { randomUUID } from "node:crypto";
import { UserError } from "../../base/errors.js";
import { type Answer, collect } from "../../session/collect.js";
import { type Fitted, fitted, type Overflow } from "../../session/fit.js";
import type { Prepared, Session } from "../../session/session.js";
import type { ChatJob, Delta } from "../../session/types.js";
import { accountsOf } from "../account.js";
import { answered, type Exchange, interrupted, running } from "../exchange.js";
import type { ServedModel } from "../models.js";
import { EventStream, event } from "../stream.js";
import type { SharedFields } from "./schema.js";
import { wireTimings } from "./timings.js";

/** What every answer and every chunk of it begins with. */
export interface Heading {
  readonly id: string;
  readonly object: string;
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  /** Where one was asked for. */
  readonly service_tier?: string;
  /** Of a whole answer: what the caller gave. */
  readonly metadata?: Readonly<Record<string, string>>;
}

export interface Shape {
  /** The choices of a chunk for a delta of the prompt at `promptIndex`, with fields of the chunk's own; null: none. */
  chunk(promptIndex: number, delta: Delta): { choices: readonly object[] } | null;
  /** One Answer a prompt. */
  whole(answers: readonly Answer[]): { choices: readonly object[] };
}

export function heading(
  prefix: string,
  object: string,
  model: ServedModel,
  more: Pick<Heading, "service_tier" | "metadata"> = {},
): Heading {
  return {
    id: `${prefix}-${randomUUID().replaceAll("-", "")}`,
    object,
    created: Math.floor(Date.now() / 1000),
    model: model.id,
    system_fingerprint: model.fingerprint,
    ...more,
  };
}

export interface Wishes {
  /** Of a prompt that is longer than the context. */
  readonly overflow: Overflow | undefined;
  /** In the last chunk of a stream. */
  readonly includeUsage: boolean;
  /** Whether the answer, or the last chunk of it, says where its time went. */
  readonly timings: boolean;
}

export function wishesOf({ context_overflow, stream_options, timings }: SharedFields): Wishes {
  return {
    overflow: context_overflow,
    includeUsage: stream_options?.include_usage ?? false,
    timings: timings ?? false,
  };
}

/** Jobs of one request, one a prompt. */
export async function respondWhole(
  exchange: Exchange,
  jobs: readonly ChatJob[],
  head: Heading,
  shape: Shape,
  { overflow, timings }: Wishes,
) {
  const { request, reply } = exchange;
  // A refusal is thrown before anything runs.
  const prepared = prepare(exchange, jobs, overflow);
  await running(exchange, prepared, async (signal) => {
    const answers = await Promise.all(prepared.map((one) => collect(answered(exchange, one, signal))));
    if (signal.aborted) throw interrupted(exchange);
    const times = timings ? { timings: wireTimings(accountsOf(request)) } : {};
    reply.send({ ...head, ...shape.whole(answers), usage: usageOf(answers, cutOf(prepared)), ...times });
  });
}

export async function respondStream(
  exchange: Exchange,
  jobs: readonly ChatJob[],
  head: Heading,
  shape: Shape,
  { includeUsage, overflow, timings }: Wishes,
) {
  const { request, reply, times } = exchange;
  const prepared = prepare(exchange, jobs, overflow);
  await running(exchange, prepared, async (signal) => {
    const stream = new EventStream(request, reply, times);
    const usage = new UsageCounter(cutOf(prepared));
    // Written once: most of a chunk is the same as the one before.
    const begin = JSON.stringify(head).slice(0, -1);
    const end = includeUsage ? ',"usage":null}' : "}";
    let open = prepared.reduce((sum, one) => sum + one.request.n, 0);
    const give = (promptIndex: number, delta: Delta) => {
      usage.add(delta);
      const chunk = shape.chunk(promptIndex, delta);
      if (chunk === null) return undefined;
      if (delta.type === "finish" && --open === 0 && timings && !includeUsage) {
        return stream.send({ ...head, ...chunk, timings: wireTimings(accountsOf(request)) });
      }
      return stream.write(event(`${begin},${JSON.stringify(chunk).slice(1, -1)}${end}`));
    };
    try {
      if (prepared.length === 1) {
        for await (const delta of answered(exchange, prepared[0], signal)) await give(0, delta);
      } else {
        for await (const { promptIndex, delta } of merged(exchange, prepared, signal)) await give(promptIndex, delta);
      }
      if (signal.aborted) throw interrupted(exchange);
      if (includeUsage) {
        const last = { ...head, choices: [], usage: usage.total() };
        await stream.send(timings ? { ...last, timings: wireTimings(accountsOf(request)) } : last);
      }
      await stream.done();
    } catch (error) {
      await stream.fail(error);
    }
  });
}

/** Fields that are called otherwise here. */
const ownNames: Readonly<Record<string, string>> = { think: "reasoning_effort", format: "response_format" };

/** Where something was cut the answer's header says so before it begins. */
function prepare({ model, reply }: Exchange, jobs: readonly ChatJob[], overflow: Overflow = "error"): Fitted[] {
  const prepared = jobs.map((job) => prepareOne(model.session, job, overflow));
  const cut = cutOf(prepared);
  if (cut > 0) reply.header("x-context-cut", String(cut));
  return prepared;
}

const cutOf = (prepared: readonly Fitted[]) => prepared.reduce((sum, { cutTokens }) => sum + cutTokens, 0);

function prepareOne(session: Session, job: ChatJob, overflow: Overflow): Fitted {
  try {
    return fitted(session, job, overflow);
  } catch (error) {
    if (!(error instanceof UserError) || error.param === null || !(error.param in ownNames)) throw error;
    const { message, status, code, param } = error;
    throw new UserError(message, { status, code, param: ownNames[param], cause: error });
  }
}

/** Deltas of several prompts as they come. */
async function* merged(
  exchange: Exchange,
  prepared: readonly Prepared[],
  signal: AbortSignal,
): AsyncGenerator<{ promptIndex: number; delta: Delta }> {
  const streams = prepared.map((one) => answered(exchange, one, signal));
  const next = (promptIndex: number) => streams[promptIndex].next().then((result) => ({ promptIndex, result }));
  const waiting = new Map(streams.map((_, promptIndex) => [promptIndex, next(promptIndex)]));
  try {
    while (waiting.size > 0) {
      const { promptIndex, result } = await Promise.race(waiting.values());
      if (result.done) waiting.delete(promptIndex);
      else {
        yield { promptIndex, delta: result.value };
        waiting.set(promptIndex, next(promptIndex));
      }
    }
  } finally {
    // After a failure the others have no reader: their outcome is dropped, their requests are aborted.
    for (const pending of waiting.values()) pending.catch(() => {});
    for (const stream of streams) stream.return(undefined).catch(() => {});
  }
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
  readonly completion_tokens_details: { readonly reasoning_tokens: number };
  /** In tokens: of the prompt, what the model saw, what it did not, and what of the first was in the cache. */
  readonly context: { readonly kept: number; readonly cut: number; readonly cached: number };
}

class UsageCounter {
  constructor(private readonly cut: number) {}

  private prompt = 0;
  private cached = 0;
  private completion = 0;
  reasoning = 0;

  add(delta: Delta): void {
    if (delta.type === "start") {
      this.prompt += delta.promptIds.length;
      this.cached += delta.cachedTokens;
    } else if (delta.type === "finish") this.completion += delta.timings.generatedTokens;
    else if (delta.type === "reasoning") this.reasoning += delta.tokens.length;
  }

  total(): Usage {
    return {
      prompt_tokens: this.prompt,
      completion_tokens: this.completion,
      total_tokens: this.prompt + this.completion,
      prompt_tokens_details: { cached_tokens: this.cached },
      completion_tokens_details: { reasoning_tokens: this.reasoning },
      context: { kept: this.prompt, cut: this.cut, cached: this.cached },
    };
  }
}

function usageOf(answers: readonly Answer[], cut: number): Usage {
  const usage = new UsageCounter(cut);
  for (const { promptIds, cachedTokens, choices } of answers) {
    usage.add({ type: "start", promptIds, cachedTokens });
    for (const choice of choices) {
      usage.add({ type: "finish", ...choice });
      usage.reasoning += choice.reasoningTokens;
    }
  }
  return usage.total();
}
