// Owns: what ends a request before its answer is complete: its reader goes away, its time is up, or the server ends. One
// signal a request, whose reason says which; nothing of it stays behind on what lives longer.
import type { FastifyReply, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import { innerOf } from "./inner.js";
import { ClientGone } from "./stream.js";

/** Seconds: more is no deadline. */
const longest = 7 * 24 * 3600;

/** How long a request may take, from its arrival: the header x-request-timeout, or "timeout" in the body of APIs that have it. */
function secondsOf({ headers, body }: FastifyRequest): number | undefined {
  const header = headers["x-request-timeout"];
  const given = header ?? (body as { timeout?: number } | null | undefined)?.timeout;
  if (given === undefined) return undefined;
  const seconds = typeof given === "string" && given.trim() !== "" ? Number(given) : given;
  if (typeof seconds === "number" && seconds > 0) return Math.min(seconds, longest);
  const [where, param] =
    header === undefined ? ['field "timeout"', "timeout"] : ["header x-request-timeout", undefined];
  throw new UserError(`The ${where} must be a number of seconds above 0.`, { code: "invalid_value", param });
}

/** Runs what answers the request under the signal that ends it. Throws UserError for a deadline that is none. */
export async function untilEnded<T>(
  request: FastifyRequest,
  reply: FastifyReply,
  closing: AbortSignal,
  run: (ending: AbortSignal) => Promise<T>,
): Promise<T> {
  const seconds = secondsOf(request);
  const controller = new AbortController();
  const gone = () => {
    if (!reply.raw.writableFinished) controller.abort(new ClientGone());
  };
  const closed = () => controller.abort(closing.reason);
  const inner = innerOf(request)?.signal;
  const called = () => controller.abort(inner?.reason);
  reply.raw.once("close", gone);
  closing.addEventListener("abort", closed, { once: true });
  inner?.addEventListener("abort", called, { once: true });
  let timer: NodeJS.Timeout | undefined;
  if (seconds !== undefined) {
    timer = setTimeout(() => controller.abort(tooLate(seconds)), Math.max(0, seconds * 1000 - reply.elapsedTime));
  }
  if (closing.aborted) closed();
  if (inner?.aborted) called();
  if (request.socket.destroyed) gone();
  try {
    return await run(controller.signal);
  } finally {
    clearTimeout(timer);
    closing.removeEventListener("abort", closed);
    inner?.removeEventListener("abort", called);
    reply.raw.off("close", gone);
  }
}

const tooLate = (seconds: number) =>
  new UserError(`The request was not answered within its ${seconds} s.`, { status: 504, code: "deadline_exceeded" });
