// Owns: what a load balancer or a monitor asks: /health and /ping (are the engines alive), /ready (are more requests wanted),
// /load (how many are open) and /version in vLLM's words, /metrics. A dead engine is started again by the next request; so that none has to fail for it, asking for its health does
// the same.
import type { FastifyInstance } from "fastify";
import { version } from "../host/version.js";
import type { Metrics } from "./metrics.js";
import type { ServedModels } from "./models.js";

export function healthRoutes(
  app: FastifyInstance,
  models: ServedModels,
  metrics: Metrics,
  draining: AbortSignal,
): void {
  const health = async () => {
    const reports = models.loaded.map(({ served: { id, queue, session } }) => {
      const alive = session.engine.alive ?? true;
      if (!alive) session.engine.stats?.().catch(() => {});
      return { id, alive, running: queue.running, waiting: queue.waiting, full: queue.isFull };
    });
    return { reports, alive: reports.every(({ alive }) => alive) };
  };
  for (const url of ["/health", "/ping"]) {
    app.route({
      method: ["GET", "HEAD"],
      url,
      handler: async (_request, reply) => {
        const { reports, alive } = await health();
        if (alive) return { status: draining.aborted ? "draining" : "ok", models: reports };
        // In TGI's words, beside ours.
        reply.code(503).header("retry-after", "5");
        return { status: "unhealthy", error: "unhealthy", error_type: "healthcheck", models: reports };
      },
    });
  }
  app.route({
    method: ["GET", "HEAD"],
    url: "/ready",
    handler: async (_request, reply) => {
      const { reports, alive } = await health();
      const full = reports.length > 0 && reports.every((one) => one.full);
      const status = draining.aborted ? "draining" : !alive ? "unhealthy" : full ? "full" : "ready";
      if (status !== "ready") reply.code(503).header("retry-after", "5");
      return { status, models: reports };
    },
  });
  app.get("/load", async () => ({
    server_load: models.loaded.reduce((sum, { served: { queue } }) => sum + queue.running + queue.waiting, 0),
  }));
  app.get("/version", async () => ({ version: version() }));
  app.get("/metrics", async (_request, reply) => {
    const { contentType, text } = await metrics.render();
    return reply.type(contentType).send(text);
  });
  app.addHook("onResponse", async (request, reply) => metrics.answered(request, reply));
}
