// Owns: the errors that a caller may see. A UserError is the caller's to mend: it says what was wrong and what would be
// right, and carries the HTTP status and the machine-readable code that every API surface shares.

export class UserError extends Error {
  /** HTTP status: 400, 401, 404, 413, 429, 503... */
  readonly status: number;
  /** Stable, machine-readable: "context_length_exceeded", "model_not_found", "unsupported_field"... */
  readonly code: string;
  /** The offending field's name, where there is one. */
  readonly param: string | null;
  /** Seconds after which a retry can succeed (429, 503). */
  readonly retryAfter: number | null;

  constructor(
    message: string,
    o: { status?: number; code?: string; param?: string; retryAfter?: number; cause?: unknown } = {},
  ) {
    super(message, o.cause === undefined ? undefined : { cause: o.cause });
    this.name = "UserError";
    this.status = o.status ?? 400;
    this.code = o.code ?? "invalid_request";
    this.param = o.param ?? null;
    this.retryAfter = o.retryAfter ?? null;
  }
}

/** A file that is not what it claims to be: truncated, corrupt, hostile or of an unknown kind. */
export class FormatError extends UserError {
  constructor(message: string, cause?: unknown) {
    super(message, { status: 422, code: "bad_model_file", cause });
    this.name = "FormatError";
  }
}

/** A broken promise inside millrace: a bug here, never the caller's fault. */
export class InternalError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "InternalError";
  }
}

export function check(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InternalError(message);
}
