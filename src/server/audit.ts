// Owns: the audit log: who asked what, when, and how it ended, refusals included; a JSON object a line, in a file that only
// its owner reads. No prompts, no answers, no keys.
import { createWriteStream } from "node:fs";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { log } from "../base/log.js";
import { accountsOf } from "./account.js";
import { keyOf } from "./auth.js";

export function auditTo(app: FastifyInstance, path: string): void {
  const file = createWriteStream(path, { flags: "a", mode: 0o600 });
  file.on("error", (error) => log.error(`the audit log cannot be written: ${error.message}`));
  app.addHook("onResponse", async (request, reply) => {
    const accounts = accountsOf(request);
    const record = {
      time: new Date().toISOString(),
      id: request.id,
      key: keyOf(request)?.name ?? null,
      address: request.socket.remoteAddress ?? null,
      method: request.method,
      route: request.routeOptions.url ?? null,
      status: reply.raw.statusCode,
      model: accounts[0]?.model ?? null,
      subject: subjectOf(request),
      promptTokens: accounts.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
      generatedTokens: accounts.reduce((sum, { generatedTokens }) => sum + generatedTokens, 0),
    };
    file.write(`${JSON.stringify(record)}\n`);
  });
  app.addHook("onClose", () => new Promise<void>((resolve) => file.end(() => resolve())));
}

/** Most of what callers write, of their own names. */
const longest = 200;

/** What was asked for, pulled, removed, copied…: a model's name, an id or a digest, as the caller wrote it. */
function subjectOf({ params, body }: FastifyRequest): string | null {
  const { id, digest } = (params ?? {}) as Record<string, unknown>;
  const { model, name, source, destination } = (body ?? {}) as Record<string, unknown>;
  const named = [id ?? digest ?? model ?? name ?? source, destination].filter((one) => typeof one === "string");
  return named.length === 0 ? null : named.join(" → ").slice(0, longest);
}
