// Owns: OpenAI's lists: what a page is asked for by, and how one looks. Parameters that are none are refused by name.
import type { FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";

export interface Page {
  readonly limit: number;
  /** The id of the item that it begins behind. */
  readonly after: string | undefined;
  readonly descending: boolean;
}

/** The query's fields as texts. Throws UserError for one that is not in `known`. */
export function queryOf(
  { query }: FastifyRequest,
  known: readonly string[],
): Readonly<Record<string, string | undefined>> {
  const given = query as Record<string, string | string[]>;
  for (const [name, value] of Object.entries(given)) {
    if (!known.includes(name)) {
      throw new UserError(`The parameter "${name}" is not supported by this server; leave it out.`, {
        code: "unsupported_field",
        param: name,
      });
    }
    if (typeof value !== "string") {
      throw new UserError(`The parameter "${name}" was given more than once.`, { code: "invalid_value", param: name });
    }
  }
  return given as Record<string, string>;
}

export function pageOf(
  query: Readonly<Record<string, string | undefined>>,
  most: number,
  usual: number,
  descending = true,
): Page {
  const limit = query.limit === undefined ? usual : Number(query.limit);
  if (!Number.isInteger(limit) || limit < 1 || limit > most) {
    throw new UserError(`The parameter "limit" must be an integer from 1 to ${most}.`, {
      code: "invalid_value",
      param: "limit",
    });
  }
  const { order, after } = query;
  if (order !== undefined && order !== "asc" && order !== "desc") {
    throw new UserError('The parameter "order" must be "asc" or "desc".', { code: "invalid_value", param: "order" });
  }
  return { limit, after, descending: order === undefined ? descending : order === "desc" };
}

/** @param found one more than the limit where there are more */
export function listOf<T extends { readonly id: string }>(found: readonly T[], limit: number): object {
  const data = found.slice(0, limit);
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: found.length > limit,
  };
}
