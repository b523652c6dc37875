// Owns: the embedded database (SQLite through libsql): opening it, its tables and how they grow, transactions, and what a
// caller is told where the file is damaged or this platform has no program for it. Several processes may use one file: SQLite
// locks it, and its log (WAL) makes what was committed outlive a process that was killed. What the tables mean is their users'.
import { chmodSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { UserError } from "../base/errors.js";

export type Value = string | number | Uint8Array | null;
export type Row = Readonly<Record<string, Value>>;

/** As much of libsql as is used here; its own types say "any". */
interface Statement {
  run(...values: Value[]): { changes: number };
  get(...values: Value[]): Row | undefined;
  all(...values: Value[]): Row[];
}

interface Connection {
  prepare(sql: string): Statement;
  exec(sql: string): void;
  close(): void;
}

/** Each brings the file one version further, and is never changed once it has been released. */
const migrations: readonly string[] = [
  `CREATE TABLE servers (id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, beat INTEGER NOT NULL);
   CREATE TABLE responses (
     seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, created INTEGER NOT NULL,
     server TEXT, previous TEXT, input TEXT NOT NULL, body TEXT NOT NULL);
   CREATE INDEX responses_open ON responses (server) WHERE server IS NOT NULL;
   CREATE INDEX responses_created ON responses (created);
   CREATE TABLE files (
     seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, created INTEGER NOT NULL,
     expires INTEGER, purpose TEXT NOT NULL, filename TEXT NOT NULL, bytes INTEGER NOT NULL);
   CREATE INDEX files_expires ON files (expires) WHERE expires IS NOT NULL;
   CREATE TABLE batches (
     seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, created INTEGER NOT NULL,
     server TEXT, model TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL);
   CREATE INDEX batches_open ON batches (open) WHERE open = 1;
   CREATE TABLE batch_lines (
     batch TEXT NOT NULL, line INTEGER NOT NULL, ok INTEGER NOT NULL, output TEXT NOT NULL, PRIMARY KEY (batch, line)
   ) WITHOUT ROWID;`,
];

/** Another process holds the lock for a transaction's time, which is milliseconds. */
const lockTimeoutMs = 10_000;

export class Database {
  private readonly statements = new Map<string, Statement>();

  private constructor(
    readonly path: string,
    private readonly connection: Connection,
  ) {}

  /** Made where it is not there. Throws UserError where it cannot be used, with what would help. */
  static open(path: string): Database {
    const Connection = program();
    mkdirSync(dirname(path), { recursive: true });
    let connection: Connection | undefined;
    try {
      connection = new Connection(path, { timeout: lockTimeoutMs });
      // Prompts and answers are in it, and in the files beside it, which get its mode.
      if (process.platform !== "win32") chmodSync(path, 0o600);
      connection.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL");
      const database = new Database(path, connection);
      database.check();
      database.migrate();
      return database;
    } catch (error) {
      connection?.close();
      throw explained(error, path);
    }
  }

  run(sql: string, ...values: Value[]): number {
    return this.guarded(() => this.statement(sql).run(...values).changes);
  }

  get<T = Row>(sql: string, ...values: Value[]): T | undefined {
    return this.guarded(() => this.statement(sql).get(...values) as T | undefined);
  }

  all<T = Row>(sql: string, ...values: Value[]): T[] {
    return this.guarded(() => this.statement(sql).all(...values) as T[]);
  }

  /** All of it or nothing; alone among all processes. The body is synchronous. */
  transaction<T>(body: () => T): T {
    return this.guarded(() => {
      this.connection.exec("BEGIN IMMEDIATE");
      try {
        const result = body();
        this.connection.exec("COMMIT");
        return result;
      } catch (error) {
        this.connection.exec("ROLLBACK");
        throw error;
      }
    });
  }

  close(): void {
    this.statements.clear();
    this.connection.close();
  }

  private statement(sql: string): Statement {
    const known = this.statements.get(sql);
    if (known !== undefined) return known;
    const statement = this.connection.prepare(sql);
    this.statements.set(sql, statement);
    return statement;
  }

  private guarded<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw explained(error, this.path);
    }
  }

  private check(): void {
    const found = this.get<{ quick_check: string }>("PRAGMA quick_check(1)")?.quick_check;
    if (found !== "ok") throw damaged(this.path, String(found));
  }

  private migrate(): void {
    const version = () => this.get<{ user_version: number }>("PRAGMA user_version")!.user_version;
    if (version() === migrations.length) return;
    this.transaction(() => {
      // Another process may have been first.
      const from = version();
      if (from > migrations.length) {
        throw new UserError(
          `${this.path} was written by a newer millrace (version ${from} of its tables; this one knows ${migrations.length}). ` +
            "Use that one, or another MILLRACE_HOME.",
          { status: 503, code: "database_too_new" },
        );
      }
      for (const step of migrations.slice(from)) this.connection.exec(step);
      this.connection.exec(`PRAGMA user_version = ${migrations.length}`);
    });
  }
}

function program(): new (path: string, options: { timeout: number }) => Connection {
  try {
    return createRequire(import.meta.url)("libsql");
  } catch (error) {
    throw new UserError(
      `The embedded database has no program for this platform (${process.platform}-${process.arch}), so nothing can be ` +
        'stored: responses need "store": false here, and there are no files and batches.',
      { status: 501, code: "database_unavailable", cause: error },
    );
  }
}

function explained(error: unknown, path: string): unknown {
  const { code, message } = error as { code?: string; message: string };
  if (error instanceof UserError || code === undefined) return error;
  if (code.startsWith("SQLITE_NOTADB") || code.startsWith("SQLITE_CORRUPT")) return damaged(path, message, error);
  const because: Record<string, string> = {
    SQLITE_FULL: "the disk is full",
    SQLITE_BUSY: "another process keeps it locked",
    SQLITE_READONLY: "it is read-only",
    SQLITE_CANTOPEN: "it cannot be opened",
  };
  const known = because[/^SQLITE_[A-Z]+/.exec(code)?.[0] ?? ""];
  if (known === undefined) return error;
  return new UserError(`The database ${path} cannot be used: ${known} (${message}).`, {
    status: 503,
    code: "database_unavailable",
    cause: error,
  });
}

function damaged(path: string, what: string, cause?: unknown): UserError {
  return new UserError(
    `The database ${path} is damaged (${what}). Stop the server and move it away, with ${path}-wal and ${path}-shm; ` +
      "a new one begins empty. What does not need to be stored works without it.",
    { status: 503, code: "database_damaged", cause },
  );
}
