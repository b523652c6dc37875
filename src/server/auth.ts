// Owns: who may call. API keys compared in constant time; a server without a key binds to loopback only and answers only
// requests addressed to this machine by name (a web page that rebinds its DNS name to 127.0.0.1 is refused).
import { timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import { recognise } from "./inner.js";
import { type ApiKey, digestOf, type Scope } from "./keys.js";

/** Paths that need no key: what a load balancer asks, and what tells a newcomer how to ask. */
const open = new Set(["/health", "/ping", "/ready", "/docs", "/openapi.json", "/api-doc/openapi.json", "/debug"]);

/** Throws UserError where the address is reachable from outside and no key is set. */
export function checkBinding(host: string, apiKeys: readonly string[], keys: readonly ApiKey[] = []): void {
  if (apiKeys.some((key) => key === ""))
    throw new UserError("An API key is empty; give one of at least one character.");
  if (apiKeys.length + keys.length === 0 && !isLoopback(host)) {
    throw new UserError(
      `Refusing to listen on ${host} without an API key: anyone who reaches this address could use the model. ` +
        "Give a key (--api-key KEY, --key-file FILE), or stay on this machine (--host 127.0.0.1).",
      { code: "api_key_needed", param: "host" },
    );
  }
}

export function isLoopback(host: string): boolean {
  const name = host.replace(/^\[|\]$/g, "").toLowerCase();
  return name === "localhost" || name === "::1" || name === "0:0:0:0:0:0:0:1" || /^127(\.\d{1,3}){3}$/.test(name);
}

export function guard(app: FastifyInstance, keys: readonly ApiKey[]): void {
  if (keys.length === 0) {
    app.addHook("onRequest", async (request) => {
      recognise(request);
      if (!namesThisMachine(request.headers.host)) {
        throw new UserError(
          `This server answers only requests to localhost or an IP address, not to "${request.headers.host}". ` +
            "Start it with --api-key to serve other names.",
          { status: 403, code: "unknown_host" },
        );
      }
    });
    return;
  }
  app.addHook("onRequest", async (request, reply) => {
    if (open.has(request.url.split("?", 1)[0])) return;
    const inner = recognise(request);
    if (inner?.caller !== undefined) {
      callers.set(request, inner.caller);
      return;
    }
    const given = givenKey(request);
    // Every key is compared, each in constant time: neither which one matched nor how much of it shows in the timing.
    const presented = digestOf(given ?? "");
    let found: ApiKey | undefined;
    for (const key of keys) if (timingSafeEqual(key.digest, presented)) found = key;
    if (given === undefined || found === undefined) {
      reply.header("www-authenticate", "Bearer");
      throw new UserError(
        given === undefined
          ? "No API key was given; send it as the header Authorization: Bearer KEY (or x-api-key: KEY)."
          : "The API key is not one of this server's.",
        { status: 401, code: "invalid_api_key" },
      );
    }
    callers.set(request, { key: found, alone: keys.length === 1 });
    const needed = scopeOf(request.routeOptions.url);
    if (found.scopes.has(needed)) return;
    throw new UserError(`This API key may not do that: it lacks the scope "${needed}".`, {
      status: 403,
      code: "insufficient_scope",
    });
  });
}

export interface Caller {
  readonly key: ApiKey;
  /** There is no other key. */
  readonly alone: boolean;
}

const callers = new WeakMap<FastifyRequest, Caller>();

/** undefined: no key was asked for, or it was wrong. */
export const callerOf = (request: FastifyRequest): Caller | undefined => callers.get(request);

/** The key that was given; undefined: none was asked for, or it was wrong. */
export const keyOf = (request: FastifyRequest): ApiKey | undefined => callers.get(request)?.key;

/** As whose its requests stand in the queue; undefined: there is only one who could. */
export function clientOf(request: FastifyRequest): string | undefined {
  const caller = callers.get(request);
  return caller === undefined || caller.alone ? undefined : caller.key.name;
}

const managing = new Set(["pull", "push", "create", "copy", "delete", "blobs"].map((what) => `/api/${what}`));

/** @param route the route's own path, not the caller's spelling of it */
function scopeOf(route: string | undefined): Scope {
  if (route === "/metrics" || route === "/debug/timeline") return "metrics";
  return managing.has(route?.split("/").slice(0, 3).join("/") ?? "") ? "manage" : "infer";
}

/** As OpenAI's clients send it, or as Anthropic's do. */
function givenKey({ headers }: FastifyRequest): string | undefined {
  const own = headers["x-api-key"];
  return /^Bearer +(\S+)$/i.exec(headers.authorization ?? "")?.[1] ?? (typeof own === "string" ? own : undefined);
}

function namesThisMachine(hostHeader: string | undefined): boolean {
  if (hostHeader === undefined) return true;
  const name = hostHeader
    .replace(/:\d+$/, "")
    .replace(/^\[|\]$/g, "")
    .toLowerCase();
  return name === "localhost" || name.endsWith(".localhost") || isIP(name) !== 0;
}
