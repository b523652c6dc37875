// Owns: stored responses: what was asked, what was answered, and whose it is; each key sees its own. A response that is being
// worked on names its server; where that has died, it has failed. After 30 days a response is forgotten.
import { randomBytes } from "node:crypto";
import { UserError } from "../../base/errors.js";
import type { Records } from "../records.js";
import type { OutputItem, ResponseObject } from "./build.js";
import type { Item } from "./job.js";
import type { InputItem } from "./schema.js";

const keptSeconds = 30 * 24 * 3600;
/** Of responses that follow each other. */
const longestChain = 1000;

export interface Stored {
  readonly response: ResponseObject;
  /** Of this response alone, not of those before it. */
  readonly input: readonly (InputItem & { readonly id: string })[];
  /** That works on it; null: it has ended. */
  readonly server: string | null;
}

interface StoredRow {
  readonly id: string;
  readonly client: string;
  readonly server: string | null;
  readonly previous: string | null;
  readonly input: string;
  readonly body: string;
}

export class ResponseStore {
  constructor(private readonly records: Records) {}

  /** Throws UserError where nothing can be stored. */
  check(): void {
    this.records.database;
  }

  /** Replaces what is stored of it. */
  save(client: string, response: ResponseObject, input: readonly InputItem[], working: boolean): void {
    this.records.database.run(
      "INSERT INTO responses (id, client, created, server, previous, input, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
      response.id,
      client,
      response.created_at,
      working ? this.records.id : null,
      response.previous_response_id as string | null,
      JSON.stringify(input.map(withId)),
      JSON.stringify(response),
    );
  }

  /** Of one that this server works on; false: it no longer does, for somebody else has cancelled or deleted it. */
  update(response: ResponseObject, working: boolean): boolean {
    const server = working ? this.records.id : null;
    const sql = "UPDATE responses SET body = ?, server = ? WHERE id = ? AND server = ?";
    return this.records.database.run(sql, JSON.stringify(response), server, response.id, this.records.id) > 0;
  }

  isOurs(id: string): boolean {
    return (
      this.records.database.get("SELECT 1 FROM responses WHERE id = ? AND server = ?", id, this.records.id) !==
      undefined
    );
  }

  /** Throws UserError 404. */
  find(client: string, id: string): Stored {
    const row = this.row(client, id);
    if (row === undefined) {
      throw new UserError(`There is no response "${id}"; it may have been deleted, or was never stored.`, {
        status: 404,
        code: "response_not_found",
      });
    }
    return { response: JSON.parse(row.body), input: JSON.parse(row.input), server: row.server };
  }

  delete(client: string, id: string): void {
    this.find(client, id);
    this.records.database.run("DELETE FROM responses WHERE id = ? AND client = ?", id, client);
  }

  /** Ends one that another server works on, or that nobody does. */
  end(response: ResponseObject): void {
    this.records.database.run(
      "UPDATE responses SET body = ?, server = NULL WHERE id = ? AND server IS NOT NULL",
      JSON.stringify(response),
      response.id,
    );
  }

  /** Everything that was said up to and with this response, oldest first. Throws UserError where a part is missing. */
  conversation(client: string, last: string): Item[] {
    const turns: Item[][] = [];
    for (let id: string | null = last; id !== null; ) {
      const row = this.row(client, id);
      const gone = turns.length === 0 ? "" : `, which "${last}" follows,`;
      if (row === undefined) {
        throw new UserError(`The previous response "${id}"${gone} is not stored here.`, {
          code: "previous_response_not_found",
          param: "previous_response_id",
        });
      }
      const response = JSON.parse(row.body) as ResponseObject;
      if (row.server !== null) {
        throw new UserError(`The previous response "${id}" is not complete yet: it is ${response.status}.`, {
          code: "previous_response_incomplete",
          param: "previous_response_id",
        });
      }
      if (turns.length === longestChain) {
        throw new UserError(`More than ${longestChain} responses follow each other; begin anew.`, {
          param: "previous_response_id",
        });
      }
      turns.push([...(JSON.parse(row.input) as InputItem[]), ...(response.output as OutputItem[])]);
      id = row.previous;
    }
    return turns.reverse().flat();
  }

  /** What servers that have died were working on has failed; what is too old is forgotten. */
  tidy(): void {
    const { database } = this.records;
    for (const row of database.all<StoredRow>("SELECT * FROM responses WHERE server IS NOT NULL")) {
      if (this.records.isAlive(row.server!)) continue;
      const response = JSON.parse(row.body) as ResponseObject;
      response.status = "failed";
      response.error = { code: "server_error", message: "The server ended before the response was complete." };
      database.run(
        "UPDATE responses SET body = ?, server = NULL WHERE id = ? AND server = ?",
        JSON.stringify(response),
        row.id,
        row.server,
      );
    }
    const oldest = Math.floor(Date.now() / 1000) - keptSeconds;
    database.run("DELETE FROM responses WHERE created < ? AND server IS NULL", oldest);
  }

  private row(client: string, id: string): StoredRow | undefined {
    return this.records.database.get<StoredRow>("SELECT * FROM responses WHERE id = ? AND client = ?", id, client);
  }
}

const prefixes = { message: "msg", function_call: "fc", function_call_output: "fco", reasoning: "rs" } as const;

/** As it is listed: with an id, and text in parts. */
function withId(item: InputItem): InputItem & { id: string } {
  const id = item.id ?? `${prefixes[item.type ?? "message"]}_${randomBytes(24).toString("hex")}`;
  if (!("role" in item)) return { ...item, id };
  const type = item.role === "assistant" ? ("output_text" as const) : ("input_text" as const);
  const content = typeof item.content === "string" ? [{ type, text: item.content }] : item.content;
  return { ...item, type: "message", content, id };
}
