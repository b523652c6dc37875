// Owns: what the schedulers have lately done, as JSON (/debug/timeline, for keys that may read metrics) and as a page that
// draws it (/debug: without data, so that a browser can open it and ask for the key).
import { createHash } from "node:crypto";
import type { FastifyInstance } from "fastify";
import { UserError } from "../base/errors.js";
import { script, timelinePage } from "./debug/page.js";
import { inTime } from "./metrics.js";
import type { ServedModels } from "./models.js";
import { queryOf } from "./paging.js";

/** Of each model. */
const usualSteps = 500;
const mostSteps = 4000;

export function debugRoutes(app: FastifyInstance, models: ServedModels): void {
  app.get("/debug/timeline", async (request) => {
    const { model, steps: given } = queryOf(request, ["model", "steps"]);
    const steps = given === undefined ? usualSteps : Number(given);
    if (!Number.isInteger(steps) || steps < 1 || steps > mostSteps) {
      const message = `The parameter "steps" must be an integer from 1 to ${mostSteps}.`;
      throw new UserError(message, { code: "invalid_value", param: "steps" });
    }
    const id = model === undefined ? undefined : models.find(model).id;
    const asked = models.loaded.filter(({ served }) => id === undefined || served.id === id);
    const timelines = await Promise.all(
      asked.map(async ({ served: { id, session } }) => {
        const timeline = await inTime(session.engine.timeline?.(steps));
        return timeline === undefined ? [] : [{ model: id, date: new Date().toISOString(), ...timeline }];
      }),
    );
    return { models: timelines.flat() };
  });
  const digest = createHash("sha256").update(script).digest("base64");
  const policy = `default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; script-src 'sha256-${digest}'`;
  app.get("/debug", async (_request, reply) => {
    reply.header("content-security-policy", policy);
    return reply.type("text/html; charset=utf-8").send(timelinePage);
  });
}
