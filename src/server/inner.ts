// Owns: requests that the server makes of itself, for callers who do not wait: lines of batches and background responses. They
// go through every route's own checks, as the key that asked for them, and are known by a number that is used once.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import type { Caller } from "./auth.js";

export interface Inner {
  /** undefined: no key is asked for. */
  readonly caller: Caller | undefined;
  /** At least this number, which is at most this urgent. */
  readonly priority?: number;
  /** Ends it early. */
  readonly signal: AbortSignal;
  /** The response that it is the work of. */
  readonly responseId?: string;
}

export interface InnerAnswer {
  readonly status: number;
  readonly requestId: string;
  readonly body: unknown;
}

const header = "x-millrace-inner";
const expected = new Map<string, Inner>();
const recognised = new WeakMap<FastifyRequest, Inner>();

/** To be called once, before anything else looks at the request. */
export function recognise(request: FastifyRequest): Inner | undefined {
  const number = request.headers[header];
  if (typeof number !== "string") return undefined;
  const inner = expected.get(number);
  expected.delete(number);
  if (inner !== undefined) recognised.set(request, inner);
  return inner;
}

/** undefined: it came from outside. */
export const innerOf = (request: FastifyRequest): Inner | undefined => recognised.get(request);

/** Why an inner request's signal aborts: it is answered all the same. */
export const cancelled = () => new UserError("It was cancelled.", { status: 409, code: "cancelled" });

const longestWait = 30_000;
/** A full queue empties; what else cannot be answered now may never be. */
const mostRefusals = 12;

/**
 * Asks the route. Where the server is full or cannot answer now, asks again until it can; its last word where it is to give up.
 * @param giveUp begins when the server takes no new requests
 */
export async function askInner(
  app: FastifyInstance,
  url: string,
  body: object,
  inner: Inner,
  giveUp: AbortSignal,
): Promise<InnerAnswer> {
  for (let wait = 250, refusals = 0; ; wait = Math.min(2 * wait, longestWait)) {
    const answer = await askOnce(app, url, body, inner);
    const { status, retryAfter } = answer;
    if (status === 503) refusals += 1;
    if ((status !== 429 && status !== 503) || refusals >= mostRefusals) return answer;
    const until = AbortSignal.any([inner.signal, giveUp]);
    await sleep(Math.max(wait, Math.min(longestWait, retryAfter * 1000)), undefined, { signal: until }).catch(() => {});
    if (until.aborted) return answer;
  }
}

async function askOnce(app: FastifyInstance, url: string, body: object, inner: Inner) {
  const number = randomBytes(32).toString("base64url");
  expected.set(number, inner);
  try {
    const answer = await app.inject({ method: "POST", url, headers: { [header]: number }, payload: body });
    return {
      status: answer.statusCode,
      requestId: String(answer.headers["x-request-id"]),
      retryAfter: Number(answer.headers["retry-after"] ?? 0),
      body: answer.json() as unknown,
    };
  } finally {
    expected.delete(number);
  }
}
