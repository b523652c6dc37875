// Owns: the routes of OpenAI's batches, and what a batch's lines go through on this server.
import type { FastifyInstance, FastifyRequest } from "fastify";
import { type Static, Type } from "typebox";
import { UserError } from "../base/errors.js";
import { BatchRunner } from "./batches/runner.js";
import { type Batch, BatchStore, newBatch, now } from "./batches/store.js";
import type { Serving } from "./exchange.js";
import { FileStore, fileRoutes } from "./files.js";
import { askInner } from "./inner.js";
import type { ApiKey } from "./keys.js";
import { listOf, pageOf, queryOf } from "./paging.js";
import type { Records } from "./records.js";
import { metadata } from "./responses/schema.js";
import { clientName } from "./responses.js";

const endpoints = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"] as const;
const mostLines = 50_000;
/** Of one key, that have not ended. */
const mostOpen = 100;
/** Before the model is loaded nobody knows how many of its answers are made at once. */
const unknownWidth = 4;

const BatchBody = Type.Object(
  {
    input_file_id: Type.String({ description: "the id of an uploaded file" }),
    endpoint: Type.Union(
      endpoints.map((endpoint) => Type.Literal(endpoint)),
      { description: `${endpoints.map((one) => `"${one}"`).join(", ")} (other values are not supported)` },
    ),
    completion_window: Type.String({
      pattern: "^[1-9][0-9]{0,3}[smhd]$",
      description: 'a time such as "24h", of up to 30 days',
    }),
    metadata,
  },
  { additionalProperties: false },
);

type ById = FastifyRequest<{ Params: { id: string } }>;

export interface BatchSurroundings {
  readonly records: Records;
  readonly keys: readonly ApiKey[];
  readonly draining: AbortSignal;
  readonly maxBodyBytes: number;
}

/** Files and batches. */
export function batchRoutes(app: FastifyInstance, { models }: Serving, around: BatchSurroundings): void {
  const { records, keys, draining, maxBodyBytes } = around;
  const files = new FileStore(records);
  const store = new BatchStore(records, files);
  const runner = new BatchRunner(store, files, {
    ask: (url, body, inner, giveUp) => askInner(app, url, body, inner, giveUp),
    width: (name) => {
      const id = models.source.find(name)?.id;
      if (id === undefined) return undefined;
      return models.loaded.find(({ model }) => model.id === id)?.served.queue.concurrent ?? unknownWidth;
    },
    caller: (client) => {
      if (keys.length === 0) return client === "" ? undefined : null;
      const key = keys.find(({ name }) => name === client);
      return key === undefined ? null : { key, alone: keys.length === 1 };
    },
    draining,
    limits: { lines: mostLines, lineBytes: maxBodyBytes },
  });
  const readerOf = (file: string) => store.open().find(({ batch }) => batch.input_file_id === file);
  records.regularly(() => {
    runner.tend();
    store.forget();
    files.tidy((id) => readerOf(id) !== undefined);
  });
  app.addHook("onClose", () => runner.settled());

  fileRoutes(app, files, (id) => {
    const reader = readerOf(id);
    if (reader === undefined) return;
    throw new UserError(`The batch ${reader.id} still reads this file; cancel it, or wait for its end.`, {
      status: 409,
      code: "file_in_use",
    });
  });

  app.post("/v1/batches", { schema: { body: BatchBody } }, async (request) => {
    const body = request.body as Static<typeof BatchBody>;
    const client = clientName(request);
    files.find(client, body.input_file_id);
    if (store.open().filter((row) => row.client === client).length >= mostOpen) {
      throw new UserError(`There are ${mostOpen} batches that have not ended; cancel some, or wait.`, {
        status: 429,
        code: "too_many_batches",
        retryAfter: 60,
      });
    }
    const { input_file_id, endpoint, completion_window } = body;
    const asked = { input_file_id, endpoint, completion_window, metadata: body.metadata ?? null };
    const batch = newBatch(asked, secondsOf(completion_window));
    store.add(client, batch);
    runner.tend();
    return batch;
  });

  app.get("/v1/batches", async (request) => {
    const page = pageOf(queryOf(request, ["limit", "after"]), 100, 20);
    return listOf(store.list(clientName(request), page), page.limit);
  });

  app.get("/v1/batches/:id", async (request: ById) => store.find(clientName(request), request.params.id).batch);

  app.post("/v1/batches/:id/cancel", async (request: ById) => {
    const row = store.find(clientName(request), request.params.id);
    const batch = store.change(row.id, (changed) => beginCancelling(changed));
    runner.tend();
    return batch;
  });
}

function beginCancelling(batch: Batch): void {
  if (batch.status === "cancelling" || batch.status === "cancelled") return;
  if (batch.status !== "validating" && batch.status !== "in_progress") {
    throw new UserError(`The batch cannot be cancelled any more: it is ${batch.status}.`, {
      status: 409,
      code: "batch_not_cancellable",
    });
  }
  batch.status = "cancelling";
  batch.cancelling_at = now();
}

const unitSeconds: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };
const longestWindow = 30 * 86_400;

function secondsOf(window: string): number {
  const seconds = Number(window.slice(0, -1)) * unitSeconds[window.slice(-1)];
  if (seconds <= longestWindow) return seconds;
  throw new UserError('The field "completion_window" must be a time of up to 30 days.', { param: "completion_window" });
}
