// Owns: which web pages of other origins may call this server: those that it was told of, else none.
import type { FastifyInstance } from "fastify";

/** origins: "https://app.example" each, or "*" for any. */
export function allowOrigins(app: FastifyInstance, origins: readonly string[]): void {
  if (origins.length === 0) return;
  app.addHook("onRequest", async ({ method, headers }, reply) => {
    const { origin } = headers;
    reply.header("vary", "Origin");
    if (origin === undefined || !isAllowed(origins, origin)) return;
    reply.header("access-control-allow-origin", origin);
    reply.header("access-control-expose-headers", "x-request-id, retry-after");
    // A preflight carries no key, and asks for nothing but this.
    if (method !== "OPTIONS" || headers["access-control-request-method"] === undefined) return;
    reply.header("access-control-allow-methods", "GET, POST, DELETE, HEAD");
    reply.header(
      "access-control-allow-headers",
      headers["access-control-request-headers"] ?? "authorization, content-type",
    );
    reply.header("access-control-max-age", "600");
    return reply.code(204).send();
  });
}

export const isAllowed = (origins: readonly string[], origin: string): boolean =>
  origins.includes("*") || origins.includes(origin);
