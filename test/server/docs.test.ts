// What the server says of itself, against the routes that there are.
import { Validator } from "@seriousme/openapi-schema-validator";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { OpenApi } from "../../src/server/docs/openapi.js";
import { summaries } from "../../src/server/docs/summaries.js";
import { type Rig, rig } from "./support.js";

let running: Rig;
beforeAll(async () => {
  running = await rig();
});
afterAll(() => running.server.close());

const get = async (path: string): Promise<Response> => await fetch(running.server.url + path);

it("describes every route, and no other", () => {
  const described = Object.values(summaries).flatMap(Object.keys);
  const { routes } = running.server;
  // HEAD beside GET needs no words of its own.
  const there = routes.filter((one) => !(one.startsWith("HEAD ") && routes.includes(one.replace("HEAD", "GET"))));
  // These need a store of packages.
  const packages = /^(HEAD|POST|DELETE) \/api\/(blobs|create|copy|delete|pull|push)/;
  expect(described.filter((one) => !packages.test(one)).sort()).toEqual(
    there.filter((one) => !packages.test(one)).sort(),
  );
});

it("gives a valid OpenAPI document, whose bodies are what requests are checked against", async () => {
  const document = (await (await get("/openapi.json")).json()) as OpenApi;
  const result = await new Validator().validate(structuredClone(document) as never);
  expect(result.errors ?? []).toEqual([]);
  expect(result.valid).toBe(true);
  const chat = document.paths["/v1/chat/completions"].post.requestBody?.content["application/json"].schema;
  expect(chat).toMatchObject({ required: ["messages"], additionalProperties: false });
  expect(document.paths["/v1/files/{id}"].get.parameters).toMatchObject([{ name: "id", in: "path" }]);
  expect(await (await get("/api-doc/openapi.json")).json()).toEqual(document);
});

it("shows it as a page that loads nothing, with the fields below objects and lists", async () => {
  const answer = await get("/docs");
  expect(answer.headers.get("content-type")).toBe("text/html; charset=utf-8");
  expect(answer.headers.get("content-security-policy")).toContain("default-src 'none'");
  const page = await answer.text();
  for (const part of [
    "/v1/chat/completions",
    "messages[].role",
    "stream_options.include_usage",
    "multipart/form-data",
  ]) {
    expect(page).toContain(part);
  }
  expect(page).not.toMatch(/<script|src=|https?:/);
  expect(page).not.toContain('{"type": "text"'); // escaped
});
