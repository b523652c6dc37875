// Owns: the HTTP application under every API surface: sizes, request ids, authentication, validation against schemas, and
// answers to whatever is not a valid request (unknown path, wrong method, bad JSON). Knows no model. CORS headers are
// sent to the origins it was told of alone (cors.ts).
import { randomUUID } from "node:crypto";
import type { Socket } from "node:net";
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { checkDepth } from "../base/depth.js";
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import { type Account, accountsOf } from "./account.js";
import { guard } from "./auth.js";
import { allowOrigins } from "./cors.js";
import { errorAnswer, failureOf, logFault } from "./errors.js";
import type { ApiKey } from "./keys.js";
import { ClientGone, sendFailure } from "./stream.js";
import { explainInvalid, type ValidationIssue } from "./validation.js";

export interface HttpOptions {
  readonly keys: readonly ApiKey[];
  /** PEM texts; undefined: plain HTTP. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** Web pages that may call. */
  readonly corsOrigins: readonly string[];
  readonly maxBodyBytes: number;
}

/** Typed as plain HTTP's: nothing here tells the two servers apart. */
function secured({ tls }: HttpOptions): object {
  return tls === undefined ? {} : { https: { cert: tls.cert, key: tls.key } };
}

/** What callers may send as x-request-id: it is echoed and logged. */
const validRequestId = /^[\x21-\x7e]{1,128}$/;

export function createHttp(options: HttpOptions): FastifyInstance {
  const app = Fastify({
    ...secured(options),
    bodyLimit: options.maxBodyBytes,
    logger: false,
    requestTimeout: 120_000,
    // A model's id may contain slashes and be long.
    routerOptions: { maxParamLength: 4096, ignoreTrailingSlash: true },
    requestIdHeader: false,
    genReqId: (raw) => {
      const given = raw.headers["x-request-id"];
      return typeof given === "string" && validRequestId.test(given) ? given : randomUUID();
    },
    return503OnClosing: false,
    forceCloseConnections: "idle",
    exposeHeadRoutes: false,
    // Types are as JSON has them: "5" is not 5. Unknown fields are errors, never dropped.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false, useDefaults: false } },
    schemaErrorFormatter: (issues, dataVar) => new InvalidField(issues as ValidationIssue[], dataVar),
    clientErrorHandler: refuseMalformed,
    frameworkErrors: (error, request, reply) => fail(error, request, reply),
  });
  app.removeContentTypeParser("text/plain");
  takeJson(app, "application/json");
  app.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
  });
  app.addHook("onResponse", async (request, reply) => logRequest(request, reply));
  allowOrigins(app, options.corsOrigins);
  guard(app, options.keys);
  app.addHook("preValidation", async (request) => {
    request.body = withoutNulls(request.body);
  });
  app.setErrorHandler(fail);
  refuseUnknownPaths(app);
  return app;
}

/** Bodies of this content type ("*": any) are JSON, not too deeply nested, and without keys that change what objects are. */
export function takeJson(app: FastifyInstance, contentType: string): void {
  const parse = app.getDefaultJsonParser("error", "error");
  app.addContentTypeParser(contentType, { parseAs: "string" }, (request, body, done) => {
    try {
      checkDepth(body as string);
    } catch (error) {
      done(error as Error);
      return;
    }
    parse(request, body as string, done);
  });
}

/** Carries ajv's findings from the formatter to the error handler, which knows the route's schema. */
class InvalidField extends Error {
  constructor(
    readonly issues: ValidationIssue[],
    readonly where: string,
  ) {
    super("The request does not match its schema.");
  }
}

function fail(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  if (error instanceof ClientGone) {
    reply.hijack();
    return;
  }
  const cause =
    error instanceof InvalidField
      ? explainInvalid(error.issues, request.routeOptions.schema?.body, request.body)
      : error;
  const failure = failureOf(cause, request.id);
  if (failure.status === 500) logFault(request, cause);
  sendFailure(request, reply, failure);
}

function logRequest(request: FastifyRequest, reply: FastifyReply): void {
  const accounts = accountsOf(request);
  const sum = (of: (account: Account) => number) => accounts.reduce((total, account) => total + of(account), 0);
  const used =
    accounts.length === 0
      ? {}
      : {
          model: accounts[0].model,
          promptTokens: sum(({ promptTokens }) => promptTokens),
          cachedTokens: sum(({ cachedTokens }) => cachedTokens),
          generatedTokens: sum(({ generatedTokens }) => generatedTokens),
          queueMs: rounded(Math.max(...accounts.map(({ queueMs }) => queueMs))),
          firstTokenMs: rounded(accounts[0].firstTokenMs),
          finished: accounts.flatMap(({ finished }) => finished).join(",") || "abort",
        };
  log.info(`${request.method} ${request.url} ${reply.raw.statusCode}`, {
    ms: Math.round(reply.elapsedTime),
    id: request.id,
    ...used,
  });
}

const rounded = (ms: number | undefined) => (ms === undefined ? undefined : Math.round(ms * 10) / 10);

/** null says the same as leaving the field out, in every API that we speak. */
function withoutNulls(body: unknown): unknown {
  // A stream or a list is no body of fields.
  if (body === null || typeof body !== "object" || Object.getPrototypeOf(body) !== Object.prototype) return body;
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

/** What is not HTTP, or comes too slowly: there is no request to answer through. */
function refuseMalformed({ code }: { code?: string }, socket: Socket): void {
  if (code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, message] =
    code === "HPE_HEADER_OVERFLOW"
      ? ["431 Request Header Fields Too Large", "The request's headers are too large."]
      : code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? ["408 Request Timeout", "The request did not arrive in time."]
        : ["400 Bad Request", "What was sent is not an HTTP/1.1 request."];
  const failure = { status: Number.parseInt(status, 10), message, param: null, code: "bad_request", retryAfter: null };
  const body = JSON.stringify(errorAnswer(failure, "", "").body);
  socket.end(
    `HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

/** 404, or 405 with Allow where the path exists under another method. */
function refuseUnknownPaths(app: FastifyInstance): void {
  const routes: { methods: readonly string[]; pattern: RegExp }[] = [];
  app.addHook("onRoute", ({ method, url }) => {
    routes.push({ methods: [method].flat(), pattern: pathPattern(url) });
  });
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?", 1)[0].replace(/(.)\/$/, "$1");
    const methods = [...new Set(routes.filter(({ pattern }) => pattern.test(path)).flatMap((route) => route.methods))];
    const missing =
      methods.length === 0
        ? new UserError(`There is no ${path} here.`, { status: 404, code: "not_found" })
        : new UserError(`${path} takes ${methods.join(" or ")}, not ${request.method}.`, {
            status: 405,
            code: "method_not_allowed",
          });
    if (methods.length > 0) reply.header("allow", methods.join(", "));
    const failure = failureOf(missing, request.id);
    reply.code(failure.status).send(errorAnswer(failure, path, request.id).body);
  });
}

function pathPattern(url: string): RegExp {
  const escaped = url.replace(/[.+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`^${escaped.replace(/\*/g, ".+").replace(/:[^/]+/g, "[^/]+")}$`);
}
