// Owns: batches and the outcomes of their lines in the database. An outcome and the counts change in one transaction, and
// each line has one outcome at most; so a server that dies leaves a batch that another goes on with: no line is told twice.
import { randomBytes } from "node:crypto";
import { UserError } from "../../base/errors.js";
import type { FileStore, Written } from "../files.js";
import type { Page } from "../paging.js";
import type { Records } from "../records.js";

export interface Batch {
  readonly id: string;
  readonly object: "batch";
  readonly endpoint: string;
  readonly input_file_id: string;
  readonly completion_window: string;
  readonly created_at: number;
  readonly expires_at: number;
  readonly metadata: object | null;
  model: string | null;
  status: "validating" | "failed" | "in_progress" | "finalizing" | "completed" | "expired" | "cancelling" | "cancelled";
  errors: { object: "list"; data: BatchError[] } | null;
  output_file_id: string | null;
  error_file_id: string | null;
  in_progress_at: number | null;
  finalizing_at: number | null;
  completed_at: number | null;
  failed_at: number | null;
  expired_at: number | null;
  cancelling_at: number | null;
  cancelled_at: number | null;
  request_counts: { total: number; completed: number; failed: number };
  usage: BatchUsage;
}

export interface BatchError {
  readonly code: string;
  readonly message: string;
  readonly line: number | null;
  readonly param: string | null;
}

export interface BatchUsage {
  input_tokens: number;
  input_tokens_details: { cached_tokens: number };
  output_tokens: number;
  output_tokens_details: { reasoning_tokens: number };
  total_tokens: number;
}

export interface BatchRow {
  readonly id: string;
  readonly client: string;
  readonly server: string | null;
  /** "": not known yet. */
  readonly model: string;
  readonly batch: Batch;
}

export interface Outcome {
  readonly line: number;
  readonly ok: boolean;
  /** A line of the output, or of the error file. */
  readonly output: string;
}

/** An output file, written but not added yet. */
export interface Results {
  readonly output: Written | null;
  readonly errors: Written | null;
  /** When they go. */
  readonly expires: number;
}

const keptSeconds = 90 * 24 * 3600;

export const now = (): number => Math.floor(Date.now() / 1000);

export function newBatch(
  asked: Pick<Batch, "endpoint" | "input_file_id" | "completion_window" | "metadata">,
  windowSeconds: number,
): Batch {
  const created_at = now();
  const never = { in_progress_at: null, finalizing_at: null, completed_at: null, failed_at: null, expired_at: null };
  return {
    id: `batch_${randomBytes(16).toString("hex")}`,
    object: "batch",
    ...asked,
    model: null,
    status: "validating",
    errors: null,
    output_file_id: null,
    error_file_id: null,
    created_at,
    expires_at: created_at + windowSeconds,
    ...never,
    cancelling_at: null,
    cancelled_at: null,
    request_counts: { total: 0, completed: 0, failed: 0 },
    usage: {
      input_tokens: 0,
      input_tokens_details: { cached_tokens: 0 },
      output_tokens: 0,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: 0,
    },
  };
}

interface Stored extends Omit<BatchRow, "batch"> {
  readonly body: string;
}

const read = ({ body, ...row }: Stored): BatchRow => ({ ...row, batch: JSON.parse(body) });

export class BatchStore {
  constructor(
    private readonly records: Records,
    private readonly files: FileStore,
  ) {}

  /** Not worked on yet. */
  add(client: string, batch: Batch): void {
    this.records.database.run(
      "INSERT INTO batches (id, client, created, server, model, open, body) VALUES (?, ?, ?, NULL, '', 1, ?)",
      ...[batch.id, client, batch.created_at, JSON.stringify(batch)],
    );
  }

  /** Throws UserError 404. */
  find(client: string, id: string): BatchRow {
    const sql = "SELECT * FROM batches WHERE id = ? AND client = ?";
    const row = this.records.database.get<Stored>(sql, id, client);
    if (row !== undefined) return read(row);
    throw new UserError(`There is no batch "${id}".`, { status: 404, code: "batch_not_found" });
  }

  get(id: string): BatchRow | undefined {
    const row = this.records.database.get<Stored>("SELECT * FROM batches WHERE id = ?", id);
    return row && read(row);
  }

  list(client: string, { limit, after, descending }: Page): Batch[] {
    const [sign, order] = descending ? ["<", "DESC"] : [">", "ASC"];
    return this.records.database
      .all<Stored>(
        `SELECT * FROM batches WHERE client = ? AND (? IS NULL OR seq ${sign} (SELECT seq FROM batches WHERE id = ?))
         ORDER BY seq ${order} LIMIT ?`,
        ...[client, after ?? null, after ?? null, limit + 1],
      )
      .map((row) => read(row).batch);
  }

  /** Those that are long over. */
  forget(): void {
    this.records.database.run("DELETE FROM batches WHERE open = 0 AND created < ?", now() - keptSeconds);
  }

  /** Those that have not ended, oldest first. */
  open(): BatchRow[] {
    return this.records.database.all<Stored>("SELECT * FROM batches WHERE open = 1 ORDER BY seq").map(read);
  }

  /** Takes it over where nobody living has it; false: somebody does. */
  claim(id: string): boolean {
    return this.records.database.transaction(() => {
      const row = this.get(id);
      if (row === undefined || (row.server !== null && this.records.isAlive(row.server))) return false;
      this.records.database.run("UPDATE batches SET server = ? WHERE id = ?", this.records.id, id);
      return true;
    });
  }

  isOurs(row: BatchRow): boolean {
    return row.server === this.records.id;
  }

  /** Gives it back: another server, or this one's next start, goes on with it. */
  release(id: string): void {
    this.records.database.run("UPDATE batches SET server = NULL WHERE id = ? AND server = ?", id, this.records.id);
  }

  /** Changes it as it is now. */
  change(id: string, how: (batch: Batch) => void): Batch {
    return this.records.database.transaction(() => {
      const { batch } = this.get(id)!;
      how(batch);
      this.write(batch);
      return batch;
    });
  }

  /** Outcomes of lines, and the counts with them. A line that has one keeps it. */
  record(id: string, outcomes: readonly Outcome[], how: (batch: Batch) => void = () => {}): void {
    this.records.database.transaction(() => {
      const { batch } = this.get(id)!;
      for (const { line, ok, output } of outcomes) {
        const sql = "INSERT OR IGNORE INTO batch_lines VALUES (?, ?, ?, ?)";
        if (this.records.database.run(sql, id, line, ok ? 1 : 0, output) === 0) continue;
        batch.request_counts[ok ? "completed" : "failed"] += 1;
      }
      how(batch);
      this.write(batch);
    });
  }

  /** Lines that have an outcome. */
  done(id: string): Set<number> {
    const rows = this.records.database.all<{ line: number }>("SELECT line FROM batch_lines WHERE batch = ?", id);
    return new Set(rows.map(({ line }) => line));
  }

  /** In order of the lines. */
  *outcomes(id: string, ok: boolean): Generator<string> {
    const sql = "SELECT line, output FROM batch_lines WHERE batch = ? AND ok = ? AND line > ? ORDER BY line LIMIT 64";
    for (let last = 0; ; ) {
      const rows = this.records.database.all<Outcome>(sql, id, ok ? 1 : 0, last);
      if (rows.length === 0) return;
      for (const { output } of rows) yield `${output}\n`;
      last = rows.at(-1)!.line;
    }
  }

  /** The end: its files are there with it, and what they were made of is gone. */
  end(id: string, { output, errors, expires }: Results, how: (batch: Batch) => void): void {
    this.records.database.transaction(() => {
      const { batch, client } = this.get(id)!;
      const about = (what: string) => ({ client, purpose: "batch_output", filename: `${id}_${what}.jsonl`, expires });
      if (output !== null) batch.output_file_id = this.files.add(output, about("output")).id;
      if (errors !== null) batch.error_file_id = this.files.add(errors, about("error")).id;
      how(batch);
      this.records.database.run(
        "UPDATE batches SET body = ?, open = 0, server = NULL WHERE id = ?",
        JSON.stringify(batch),
        id,
      );
      this.records.database.run("DELETE FROM batch_lines WHERE batch = ?", id);
    });
  }

  private write(batch: Batch): void {
    this.records.database.run(
      "UPDATE batches SET body = ?, model = ? WHERE id = ?",
      JSON.stringify(batch),
      batch.model ?? "",
      batch.id,
    );
  }
}
