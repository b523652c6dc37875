// Owns: how a failure looks from outside: a status, and the error body of the API that was asked. Every route, Fastify's own refusals included,
// answers through here. Refuses to tell callers anything about a fault that is ours but the request's id.
import type { FastifyError, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";

export interface Failure {
  readonly status: number;
  readonly message: string;
  readonly param: string | null;
  readonly code: string;
  /** Seconds, for the Retry-After header. */
  readonly retryAfter: number | null;
}

/** Fastify's own refusals, in words that say what would be right. */
const fastifyRefusals: Record<string, { status: number; code: string; message: string }> = {
  FST_ERR_CTP_INVALID_JSON_BODY: { status: 400, code: "invalid_json", message: "The body is not valid JSON." },
  FST_ERR_CTP_EMPTY_JSON_BODY: { status: 400, code: "invalid_json", message: "The body is empty; send a JSON object." },
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: {
    status: 400,
    code: "invalid_request",
    message: "The body's size differs from Content-Length.",
  },
  FST_ERR_CTP_INVALID_MEDIA_TYPE: {
    status: 415,
    code: "unsupported_media_type",
    message: "Unknown content type; send a JSON body with Content-Type: application/json.",
  },
  FST_ERR_BAD_URL: { status: 400, code: "invalid_request", message: "The path of the URL is not validly encoded." },
};

export function failureOf(error: unknown, requestId: string): Failure {
  if (error instanceof UserError) {
    return {
      status: error.status,
      message: error.message,
      param: error.param,
      code: error.code,
      retryAfter: error.retryAfter,
    };
  }
  const plain = { param: null, retryAfter: null };
  const { code, statusCode, message } = (error ?? {}) as Partial<FastifyError>;
  if (code !== undefined && code in fastifyRefusals) {
    const refusal = fastifyRefusals[code];
    const detail = code === "FST_ERR_CTP_INVALID_JSON_BODY" && error instanceof Error ? jsonDetail(error) : "";
    return { ...plain, status: refusal.status, code: refusal.code, message: refusal.message + detail };
  }
  if (code === "FST_ERR_CTP_BODY_TOO_LARGE") {
    return { ...plain, status: 413, code: "body_too_large", message: "The body is larger than this server takes." };
  }
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return { ...plain, status: statusCode, code: "invalid_request", message: message ?? "Invalid request." };
  }
  return {
    ...plain,
    status: 500,
    code: "internal_error",
    message: `The server failed; its log has the cause under request id ${requestId}.`,
  };
}

function jsonDetail(error: Error): string {
  const cause = error.cause instanceof Error ? error.cause.message : "";
  return cause === "" ? "" : ` (${cause})`;
}

const tgiPaths = new Set([
  "/",
  "/generate",
  "/generate_stream",
  "/tokenize",
  "/chat_tokenize",
  "/info",
  "/invocations",
  "/vertex",
]);

/** Status and body, as the API that the path belongs to has them. */
export function errorAnswer(failure: Failure, url: string, requestId: string): { status: number; body: object } {
  const { status, message, param, code } = failure;
  const path = url.split("?", 1)[0];
  if (path.startsWith("/api/")) return { status, body: { error: message } };
  if (tgiPaths.has(path)) return tgiAnswer(failure);
  if (path.startsWith("/v1/messages")) {
    return { status, body: { type: "error", error: { type: anthropicType(status), message }, request_id: requestId } };
  }
  return { status, body: { error: { message, type: errorType(status), param, code } } };
}

function anthropicType(status: number): string {
  const types: Record<number, string> = {
    ...{ 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large" },
    ...{ 429: "rate_limit_error", 503: "overloaded_error" },
  };
  return types[status] ?? (status < 500 ? "invalid_request_error" : "api_error");
}

/** Of TGI: 422 for what is wrong with a request, 424 where the model failed on it. */
function tgiAnswer({ status, message }: Failure): { status: number; body: object } {
  const [wire, error_type] =
    status === 429
      ? [429, "overloaded"]
      : status === 503
        ? [503, "unhealthy"]
        : status >= 500
          ? [424, "generation"]
          : [status === 400 ? 422 : status, "validation"];
  return { status: wire, body: { error: message, error_type } };
}

function errorType(status: number): string {
  if (status === 429) return "rate_limit_error";
  if (status === 401) return "authentication_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

/** What the caller is not told. */
export function logFault(request: FastifyRequest, cause: unknown): void {
  const stack = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
  log.error(`${request.method} ${request.url} failed: ${stack}`, { id: request.id });
}
