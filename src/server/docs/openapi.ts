// Owns: the OpenAPI document of the routes: their bodies are the very schemas that requests are checked against.
import { version } from "../../host/version.js";
import { summaries } from "./summaries.js";

export interface Route {
  readonly method: string;
  /** As registered: "/v1/files/:id", "/v1/models/*". */
  readonly url: string;
  /** A JSON schema; undefined: no JSON body. */
  readonly body: object | undefined;
}

export interface Operation {
  readonly tags: readonly string[];
  readonly summary: string;
  readonly operationId: string;
  readonly parameters?: readonly object[];
  readonly requestBody?: { readonly required: boolean; readonly content: Readonly<Record<string, { schema: object }>> };
  readonly responses: object;
}

export interface OpenApi {
  readonly openapi: "3.1.0";
  readonly info: { readonly title: string; readonly version: string; readonly description: string };
  readonly tags: readonly { readonly name: string }[];
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: object;
  readonly security: readonly object[];
}

/** Bodies that no schema describes. */
const otherBodies: Readonly<Record<string, Readonly<Record<string, { schema: object }>>>> = {
  "POST /v1/files": {
    "multipart/form-data": {
      schema: {
        type: "object",
        required: ["file", "purpose"],
        properties: { file: { type: "string", contentMediaType: "application/jsonl" }, purpose: { const: "batch" } },
      },
    },
  },
  "POST /api/blobs/:digest": { "application/octet-stream": { schema: {} } },
};

export function openApi(routes: readonly Route[]): OpenApi {
  const paths: Record<string, Record<string, Operation>> = {};
  for (const [tag, lines] of Object.entries(summaries)) {
    for (const [name, summary] of Object.entries(lines)) {
      const route = routes.find(({ method, url }) => `${method} ${url}` === name);
      if (route === undefined) continue;
      const path = templated(route.url);
      paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route, tag, summary) };
    }
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "millrace",
      version: version(),
      description:
        "A field that is not listed is answered with an error that names it. null at the top level: left out.",
    },
    tags: Object.keys(summaries).map((name) => ({ name })),
    paths,
    components: { securitySchemes: { key: { type: "http", scheme: "bearer" } } },
    security: [{}, { key: [] }],
  };
}

/** "/v1/files/{id}" */
const templated = (url: string): string => url.replace(/:(\w+)/g, "{$1}").replace("*", "{model}");

function operation({ method, url, body }: Route, tag: string, summary: string): Operation {
  const content = body === undefined ? otherBodies[`${method} ${url}`] : { "application/json": { schema: body } };
  const names = [...templated(url).matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
  return {
    tags: [tag],
    summary,
    operationId: `${method.toLowerCase()}${url.replace(/\W+/g, "_")}`,
    ...(names.length > 0 && {
      parameters: names.map((name) => ({ name, in: "path", required: true, schema: { type: "string" } })),
    }),
    ...(content !== undefined && { requestBody: { required: true, content } }),
    responses: { "200": { description: "Done." }, default: { description: "An error, as this API has them." } },
  };
}
