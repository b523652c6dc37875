// Owns: OpenAI's files: uploaded input of batches, and what batches wrote. The bytes lie in files/<id> beside the database,
// which says whose they are; each key sees its own. A file is there when its row is: bytes without one are swept after a day.
import { randomBytes } from "node:crypto";
import { createReadStream, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { open, rename } from "node:fs/promises";
import { join } from "node:path";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { UserError } from "../base/errors.js";
import { boundaryOf, partsOf } from "./multipart.js";
import { listOf, type Page, pageOf, queryOf } from "./paging.js";
import type { Records } from "./records.js";
import { clientName } from "./responses.js";

export interface FileLimits {
  /** Of one upload. */
  readonly fileBytes: number;
  /** Of all files of one key. */
  readonly clientBytes: number;
}

export const fileLimits: FileLimits = { fileBytes: 200 << 20, clientBytes: 20 * 2 ** 30 };

const dayMs = 24 * 3600 * 1000;
const sweepMs = 3600 * 1000;
const longestExpiry = 30 * 24 * 3600;

export interface FileRow {
  readonly id: string;
  readonly client: string;
  readonly created: number;
  readonly expires: number | null;
  readonly purpose: string;
  readonly filename: string;
  readonly bytes: number;
}

/** Bytes that are on the disk, and no file yet. */
export interface Written {
  readonly id: string;
  readonly bytes: number;
}

const now = () => Math.floor(Date.now() / 1000);

export class FileStore {
  private readonly folder: string;
  private sweptAt = 0;

  constructor(private readonly records: Records) {
    this.folder = join(records.folder, "files");
  }

  path(id: string): string {
    return join(this.folder, id);
  }

  /** Throws what the source throws, and leaves nothing then. */
  async write(source: AsyncIterable<Buffer | string>): Promise<Written> {
    mkdirSync(this.folder, { recursive: true });
    const id = `file-${randomBytes(16).toString("hex")}`;
    const partial = `${this.path(id)}.part`;
    const file = await open(partial, "wx", 0o600);
    let bytes = 0;
    try {
      for await (const piece of source) {
        const data = typeof piece === "string" ? Buffer.from(piece) : piece;
        await file.write(data);
        bytes += data.length;
      }
      await file.sync();
      await file.close();
      await rename(partial, this.path(id));
      return { id, bytes };
    } catch (error) {
      await file.close().catch(() => {});
      rmSync(partial, { force: true });
      throw error;
    }
  }

  /** Makes a file of it. */
  add({ id, bytes }: Written, about: Pick<FileRow, "client" | "purpose" | "filename" | "expires">): FileRow {
    const row = { id, bytes, created: now(), ...about };
    this.records.database.run(
      "INSERT INTO files (id, client, created, expires, purpose, filename, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
      ...[id, row.client, row.created, row.expires, row.purpose, row.filename, bytes],
    );
    return row;
  }

  forget({ id }: Written): void {
    rmSync(this.path(id), { force: true });
  }

  /** Throws UserError 404. */
  find(client: string, id: string): FileRow {
    const sql = "SELECT * FROM files WHERE id = ? AND client = ?";
    const row = this.records.database.get<FileRow>(sql, id, client);
    if (row !== undefined) return row;
    throw new UserError(`There is no file "${id}".`, { status: 404, code: "file_not_found" });
  }

  list(client: string, purpose: string | undefined, { limit, after, descending }: Page): FileRow[] {
    const [sign, order] = descending ? ["<", "DESC"] : [">", "ASC"];
    return this.records.database.all<FileRow>(
      `SELECT * FROM files WHERE client = ? AND (? IS NULL OR purpose = ?)
       AND (? IS NULL OR seq ${sign} (SELECT seq FROM files WHERE id = ?)) ORDER BY seq ${order} LIMIT ?`,
      ...[client, purpose ?? null, purpose ?? null, after ?? null, after ?? null, limit + 1],
    );
  }

  delete(id: string): void {
    this.records.database.run("DELETE FROM files WHERE id = ?", id);
    rmSync(this.path(id), { force: true });
  }

  bytesOf(client: string): number {
    const sql = "SELECT coalesce(sum(bytes), 0) AS bytes FROM files WHERE client = ?";
    return this.records.database.get<{ bytes: number }>(sql, client)!.bytes;
  }

  /**
   * What has expired goes, and bytes that became no file.
   * @param isRead a file that is stays for now
   */
  tidy(isRead: (id: string) => boolean): void {
    const { database } = this.records;
    for (const { id } of database.all<FileRow>("SELECT id FROM files WHERE expires <= ?", now())) {
      if (!isRead(id)) this.delete(id);
    }
    if (Date.now() - this.sweptAt < sweepMs) return;
    this.sweptAt = Date.now();
    for (const name of filesIn(this.folder)) {
      const path = join(this.folder, name);
      const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
      if (age > dayMs && database.get("SELECT 1 FROM files WHERE id = ?", name) === undefined)
        rmSync(path, { force: true });
    }
  }
}

function filesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

type ById = FastifyRequest<{ Params: { id: string } }>;

/** @param checkUnread throws where a file may not go yet */
export function fileRoutes(
  app: FastifyInstance,
  store: FileStore,
  checkUnread: (id: string) => void,
  limits: FileLimits = fileLimits,
): void {
  app.register(async (scope) => {
    // As it comes: an upload is larger than any body of JSON may be.
    scope.addContentTypeParser("multipart/form-data", (_request, payload, done) => done(null, payload));
    scope.post("/v1/files", async (request) => fileObject(await upload(request, store, limits)));
  });

  app.get("/v1/files", async (request) => {
    const query = queryOf(request, ["purpose", "limit", "after", "order"]);
    const page = pageOf(query, 10_000, 10_000);
    return listOf(store.list(clientName(request), query.purpose, page).map(fileObject), page.limit);
  });
  app.get("/v1/files/:id", async (request: ById) => fileObject(store.find(clientName(request), request.params.id)));
  app.get("/v1/files/:id/content", async (request: ById, reply) => {
    const { id, bytes } = store.find(clientName(request), request.params.id);
    reply.header("content-type", "application/octet-stream").header("content-length", bytes);
    return reply.send(createReadStream(store.path(id)));
  });
  app.delete("/v1/files/:id", async (request: ById) => {
    const { id } = store.find(clientName(request), request.params.id);
    checkUnread(id);
    store.delete(id);
    return { id, object: "file", deleted: true };
  });
}

const fileObject = ({ id, bytes, created, filename, purpose, expires }: FileRow) => ({
  id,
  object: "file",
  bytes,
  created_at: created,
  filename,
  purpose,
  status: "processed",
  ...(expires === null ? {} : { expires_at: expires }),
});

async function upload(request: FastifyRequest, store: FileStore, limits: FileLimits): Promise<FileRow> {
  const client = clientName(request);
  const room = Math.min(limits.fileBytes, limits.clientBytes - store.bytesOf(client));
  const boundary = boundaryOf(request.headers["content-type"]);
  const fields: Record<string, string> = {};
  let written: Written | undefined;
  let filename = "";
  try {
    for await (const part of partsOf(request.body as AsyncIterable<Buffer>, boundary)) {
      if (part.name !== "file") fields[part.name] = await small(part.name, part.body);
      else if (written !== undefined) throw new UserError("One file a request: there are two.", { param: "file" });
      else {
        filename = part.filename ?? "upload";
        written = await store.write(bounded(part.body, room, limits));
      }
    }
    const expires = expiryOf(fields);
    if (written === undefined) {
      throw new UserError('The field "file" is missing: give a file.', { code: "missing_field", param: "file" });
    }
    return store.add(written, { client, purpose: fields.purpose, filename, expires });
  } catch (error) {
    if (written !== undefined) store.forget(written);
    throw error;
  }
}

async function small(name: string, body: AsyncIterable<Buffer>): Promise<string> {
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of body) {
    length += piece.length;
    if (length > 1024) throw new UserError(`The field "${name}" is too long.`, { param: name });
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

async function* bounded(body: AsyncIterable<Buffer>, most: number, limits: FileLimits): AsyncGenerator<Buffer> {
  let length = 0;
  for await (const piece of body) {
    length += piece.length;
    if (length > most) {
      const full = most < limits.fileBytes;
      const why = full
        ? `all files of a key may have ${limits.clientBytes} bytes together; delete some`
        : `a file may have ${limits.fileBytes} bytes`;
      throw new UserError(`The file is too large: ${why}.`, { status: 413, code: "file_too_large", param: "file" });
    }
    yield piece;
  }
}

/** Checks the fields, too. */
function expiryOf(fields: Readonly<Record<string, string>>): number {
  const anchor = "expires_after[anchor]";
  const seconds = "expires_after[seconds]";
  const unknown = Object.keys(fields).find((name) => !["purpose", anchor, seconds].includes(name));
  if (unknown !== undefined) {
    throw new UserError(`The field "${unknown}" is not supported by this server; leave it out.`, {
      code: "unsupported_field",
      param: unknown,
    });
  }
  if (fields.purpose !== "batch") {
    const given = fields.purpose === undefined ? "" : ` (not ${JSON.stringify(fields.purpose)})`;
    throw new UserError(`The field "purpose" must be "batch"${given}: this server uses files for nothing else.`, {
      code: fields.purpose === undefined ? "missing_field" : "unsupported_field",
      param: "purpose",
    });
  }
  if (fields[seconds] === undefined && fields[anchor] === undefined) return now() + longestExpiry;
  const after = Number(fields[seconds]);
  if (fields[anchor] !== "created_at" || !Number.isInteger(after) || after < 3600 || after > longestExpiry) {
    throw new UserError(
      `The field "expires_after" must have the anchor "created_at" and from 3600 to ${longestExpiry} seconds.`,
      { code: "invalid_value", param: "expires_after" },
    );
  }
  return now() + after;
}
