// Owns: what the server says of itself: /openapi.json and the page /docs, made of the routes as they are registered.
import type { FastifyInstance } from "fastify";
import { openApi, type Route } from "./docs/openapi.js";
import { docsPage } from "./docs/page.js";

/** Before all other routes. Returns them, as they come. */
export function docsRoutes(app: FastifyInstance): readonly Route[] {
  const routes: Route[] = [];
  app.addHook("onRoute", ({ method, url, schema }) => {
    for (const one of [method].flat()) routes.push({ method: one, url, body: schema?.body as object | undefined });
  });
  for (const url of ["/openapi.json", "/api-doc/openapi.json"]) app.get(url, async () => openApi(routes));
  app.get("/docs", async (_request, reply) => {
    reply.header("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'");
    return reply.type("text/html; charset=utf-8").send(docsPage(openApi(routes)));
  });
  return routes;
}
