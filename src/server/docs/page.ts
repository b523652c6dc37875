// Owns: the OpenAPI document as a page for people. It has no scripts and loads nothing.
import type { OpenApi, Operation } from "./openapi.js";

/** What is read of a JSON schema. */
interface Schema {
  readonly type?: string;
  readonly const?: unknown;
  readonly description?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly anyOf?: readonly Schema[];
}

const style = `
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
details { border-top: 1px solid #8885; padding: .4rem 0 }
summary { cursor: pointer }
code { font: 14px ui-monospace, monospace }
table { border-collapse: collapse; margin: .5rem 0 1rem }
td { border-top: 1px solid #8883; padding: .2rem 1rem .2rem 0; vertical-align: top }
.method { display: inline-block; width: 4.5rem; font-weight: 600 }
`;

export function docsPage(document: OpenApi): string {
  const { info, tags, paths } = document;
  const sections = tags.map(({ name }) => {
    const routes = Object.entries(paths).flatMap(([path, methods]) =>
      Object.entries(methods)
        .filter(([, operation]) => operation.tags.includes(name))
        .map(([method, operation]) => routeOf(method, path, operation)),
    );
    return `<h2>${escaped(name)}</h2>\n${routes.join("\n")}`;
  });
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${escaped(info.title)} ${escaped(info.version)}</title><style>${style}</style></head>
<body><h1>${escaped(info.title)} ${escaped(info.version)}</h1>
<p>${escaped(info.description)} As OpenAPI 3.1: <a href="openapi.json">openapi.json</a>.</p>
${sections.join("\n")}
</body></html>
`;
}

function routeOf(method: string, path: string, { summary, requestBody }: Operation): string {
  const bodies = Object.entries(requestBody?.content ?? {}).map(([type, { schema }]) => {
    const rows = fieldRows(schema as Schema, "").join("");
    return `<p><code>${escaped(type)}</code></p>${rows === "" ? "" : `<table>${rows}</table>`}`;
  });
  const head = `<span class="method">${method.toUpperCase()}</span> <code>${escaped(path)}</code> ${escaped(summary)}`;
  return bodies.length === 0
    ? `<details open><summary>${head}</summary></details>`
    : `<details><summary>${head}</summary>${bodies.join("")}</details>`;
}

/** A row a field; those of objects below it: "messages[].role". */
function fieldRows(schema: Schema, prefix: string): string[] {
  return Object.entries(schema.properties ?? {}).flatMap(([key, field]) => {
    const name = `${prefix}${key}`;
    const needed = schema.required?.includes(key) ? "required" : "";
    const row = `<tr><td><code>${escaped(name)}</code></td><td>${needed}</td><td>${escaped(wanted(field))}</td></tr>`;
    return [row, ...below(field, name)];
  });
}

function below(field: Schema, name: string): string[] {
  return [
    ...fieldRows(field, `${name}.`),
    ...(field.items === undefined ? [] : below(field.items, `${name}[]`)),
    ...(field.anyOf ?? []).flatMap((one) => below(one, name)),
  ];
}

const wanted = ({ description, type, const: only }: Schema): string =>
  description ?? (only !== undefined ? JSON.stringify(only) : (type ?? ""));

const entities: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escaped = (text: string): string => text.replace(/[&<>"]/g, (one) => entities[one]);
