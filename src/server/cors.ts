// Owns: which web pages of other origins may call this server: those of this machine and of programs that show pages of their
// own, as with Ollama, and those that it was told of.
import type { FastifyInstance } from "fastify";

/** origins: "https://app.example" each, with "*" for any text, besides this machine's. */
export function allowOrigins(app: FastifyInstance, origins: readonly string[]): void {
  app.addHook("onRequest", async ({ method, headers }, reply) => {
    const { origin } = headers;
    reply.header("vary", "Origin");
    if (origin === undefined || !isAllowed(origins, origin)) return;
    reply.header("access-control-allow-origin", origin);
    reply.header("access-control-expose-headers", "x-request-id, x-context-cut, retry-after");
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

export function isAllowed(origins: readonly string[], origin: string): boolean {
  return isOwn(origin) || origins.some((one) => one === origin || (one.includes("*") && patternOf(one).test(origin)));
}

/** No page of the network has such an origin. */
function isOwn(origin: string): boolean {
  return (
    /^https?:\/\/(localhost|[^/:]+\.localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?$/i.test(origin) ||
    /^(app|tauri|vscode-webview|vscode-file):\/\//.test(origin)
  );
}

function patternOf(text: string): RegExp {
  const parts = text.split("*").map((part) => part.replace(/[\\^$.|?+()[\]{}]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`, "i");
}
