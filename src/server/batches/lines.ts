// Owns: the lines of a batch's input: read one by one, and each checked for being a request of that batch. A line that is none
// is told by its number, and harms no other.
import { createReadStream } from "node:fs";

export interface BatchLine {
  /** From 1. */
  readonly line: number;
  readonly customId: string;
  readonly body: Readonly<Record<string, unknown>>;
}

export interface BadLine {
  readonly line: number;
  /** null: it does not say. */
  readonly customId: string | null;
  readonly code: string;
  readonly message: string;
  readonly param: string | null;
}

export const isBad = (line: BatchLine | BadLine): line is BadLine => "code" in line;

export interface LineLimits {
  readonly lines: number;
  /** Of one, as of any request's body. */
  readonly lineBytes: number;
}

/** Empty lines are none. A line beyond the limit of bytes is not kept in memory. */
export async function* readLines(
  path: string,
  endpoint: string,
  limits: LineLimits,
): AsyncGenerator<BatchLine | BadLine> {
  const seen = new Map<string, number>();
  for await (const { line, text } of textLines(path, limits.lineBytes)) {
    if (text === null) {
      const message = `Line ${line} is longer than ${limits.lineBytes} bytes.`;
      yield { line, customId: null, code: "line_too_long", message, param: null };
      continue;
    }
    if (text.trim() === "") continue;
    const read = parse(line, text, endpoint);
    const before = isBad(read) ? undefined : seen.get(read.customId);
    if (before !== undefined) {
      const message = `Line ${line} has the custom_id of line ${before}; each must be another.`;
      yield { line, customId: read.customId, code: "duplicate_custom_id", message, param: "custom_id" };
      continue;
    }
    if (!isBad(read)) seen.set(read.customId, line);
    yield read;
  }
}

function parse(line: number, text: string, endpoint: string): BatchLine | BadLine {
  const bad = (code: string, what: string, param: string | null, customId: string | null = null): BadLine => ({
    line,
    customId,
    code,
    message: `Line ${line} ${what}.`,
    param,
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return bad("invalid_json_line", `is not valid JSON: ${(error as Error).message}`, null);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    return bad("invalid_json_line", "is not a JSON object", null);
  }
  const { custom_id, method, url, body, ...rest } = value as Record<string, unknown>;
  if (typeof custom_id !== "string" || custom_id === "" || custom_id.length > 512) {
    return bad("missing_custom_id", "needs a custom_id, a string of up to 512 characters", "custom_id");
  }
  const wrong = (code: string, what: string, param: string) => bad(code, what, param, custom_id);
  if (method !== "POST") return wrong("invalid_method", 'must have the method "POST"', "method");
  if (url !== endpoint)
    return wrong("mismatched_url", `must have the batch's endpoint as its url, "${endpoint}"`, "url");
  if (body === null || typeof body !== "object" || Array.isArray(body)) {
    return wrong("invalid_body", "needs a body, which is an object", "body");
  }
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) return wrong("unsupported_field", `has an unknown field "${unknown}"`, unknown);
  const request = body as Record<string, unknown>;
  for (const field of ["stream", "background"]) {
    if (request[field] === true)
      return wrong("unsupported_field", `asks for "${field}", which a batch has not`, `body.${field}`);
  }
  if (typeof request.model !== "string") return wrong("missing_model", "needs a model in its body", "body.model");
  return { line, customId: custom_id, body: request };
}

/** text: null where there is too much of it. */
async function* textLines(path: string, most: number): AsyncGenerator<{ line: number; text: string | null }> {
  let line = 1;
  let pieces: Buffer[] = [];
  let length = 0;
  const keep = (piece: Buffer) => {
    length += piece.length;
    if (length <= most) pieces.push(piece);
    else pieces = [];
  };
  const take = () => {
    const text = length > most ? null : Buffer.concat(pieces).toString("utf8");
    pieces = [];
    length = 0;
    return { line: line++, text };
  };
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 18 }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, from)) {
      keep(chunk.subarray(from, at));
      from = at + 1;
      yield take();
    }
    keep(chunk.subarray(from));
  }
  if (length > 0) yield take();
}
