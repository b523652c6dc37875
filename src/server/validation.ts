// Owns: turning a schema's refusal of a body into one sentence that names the field and says what would be right. The
// schemas carry that second half themselves, as each property's description.
import { UserError } from "../base/errors.js";

/** What ajv reports, as far as it is read here. */
export interface ValidationIssue {
  readonly keyword: string;
  /** JSON pointer: "/messages/0/role". */
  readonly instancePath: string;
  readonly message?: string;
  readonly params: Record<string, unknown>;
}

interface Described {
  readonly description?: string;
  readonly properties?: Record<string, Described>;
  readonly items?: Described;
}

export function explainInvalid(issues: readonly ValidationIssue[], schema: unknown, body: unknown): UserError {
  if (body === null || typeof body !== "object" || Array.isArray(body)) {
    return new UserError("The body must be a JSON object.", { code: "invalid_type" });
  }
  const issue = mostTelling(issues);
  const path = issue.instancePath.split("/").slice(1).map(plainKey);
  if (issue.keyword === "additionalProperties") {
    const param = fieldName([...path, String(issue.params.additionalProperty)]);
    return new UserError(`The field "${param}" is not supported by this server; leave it out.`, {
      code: "unsupported_field",
      param,
    });
  }
  if (issue.keyword === "required") {
    const missing = [...path, String(issue.params.missingProperty)];
    const wanted = describe(schema, missing);
    const param = fieldName(missing);
    return new UserError(`The field "${param}" is missing${wanted === null ? "" : `: give ${wanted}`}.`, {
      code: "missing_field",
      param,
    });
  }
  const wanted = describe(schema, path) ?? issue.message ?? "another value";
  const param = fieldName(path);
  const given = preview(valueAt(body, path));
  return new UserError(`The field "${param}" must be ${wanted.replace(/^must be /, "")}, not ${given}.`, {
    code: wanted.includes("other values are not supported") ? "unsupported_field" : "invalid_value",
    param,
  });
}

/** ajv stops at the first fault, but where alternatives all fail it reports each one's: then a value that is none of
 *  those listed says most, else that no alternative fits. */
function mostTelling(issues: readonly ValidationIssue[]): ValidationIssue {
  const none = issues.find(({ keyword }) => keyword === "anyOf");
  return none === undefined ? issues[0] : (issues.find(({ keyword }) => keyword === "const") ?? none);
}

/** "messages[0].role" */
function fieldName(path: readonly string[]): string {
  return path.reduce((name, key) => (/^\d+$/.test(key) ? `${name}[${key}]` : name === "" ? key : `${name}.${key}`), "");
}

/** The description nearest to the path's end. */
function describe(schema: unknown, path: readonly string[]): string | null {
  let here = schema as Described | undefined;
  let found: string | null = null;
  for (const key of path) {
    here = here?.properties?.[key] ?? here?.items;
    if (here === undefined) break;
    found = here.description ?? found;
  }
  return found;
}

function valueAt(body: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((value, key) => (value as Record<string, unknown> | undefined)?.[key], body);
}

function preview(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

const plainKey = (key: string): string => key.replace(/~1/g, "/").replace(/~0/g, "~");
