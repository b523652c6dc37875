// Owns: working on batches: their lines are asked one by one through the routes' own doors, as the key that made the batch and
// behind everybody who waits for an answer. What a server leaves when it ends, in order or not, is gone on with by the next one
// that has the model: lines with an outcome are not asked again.
import { setMaxListeners } from "node:events";
import { log } from "../../base/log.js";
import type { Caller } from "../auth.js";
import type { FileStore, Written } from "../files.js";
import { cancelled, type Inner, type InnerAnswer } from "../inner.js";
import { type BadLine, type BatchLine, isBad, type LineLimits, readLines } from "./lines.js";
import { type Batch, type BatchRow, type BatchStore, type BatchUsage, now, type Outcome } from "./store.js";

/** More urgent numbers are smaller; requests that somebody waits for have 0 unless they say. */
const batchPriority = 1_000_000;
/** In a batch's own list; all of them are in the error file. */
const mostErrorsListed = 100;
const resultsKeptSeconds = 30 * 24 * 3600;

/** What of the server a batch's lines go through. */
export interface Surroundings {
  /** Asks a route and comes back with its last word (askInner). */
  ask(url: string, body: object, inner: Inner, giveUp: AbortSignal): Promise<InnerAnswer>;
  /** How many lines of this model are answered at once; undefined: this server does not have it. */
  width(model: string): number | undefined;
  /** As who a key's lines are asked; null: this server does not know the key. */
  caller(client: string): Caller | undefined | null;
  /** Begins when the server takes no new requests. */
  readonly draining: AbortSignal;
  readonly limits: LineLimits;
}

/** One that this server works on. */
interface Running {
  readonly controller: AbortController;
  readonly ended: Promise<void>;
  /** Why its lines were ended; undefined: they go on. */
  why?: "cancelled" | "expired" | "lost";
}

export class BatchRunner {
  private readonly running = new Map<string, Running>();

  constructor(
    private readonly store: BatchStore,
    private readonly files: FileStore,
    private readonly around: Surroundings,
  ) {}

  /** Takes up what nobody works on, and ends what was cancelled or took too long. */
  tend(): void {
    if (this.around.draining.aborted) return;
    for (const row of this.store.open()) {
      const running = this.running.get(row.id);
      if (running !== undefined) this.review(row, running);
      else if (this.canRun(row) && this.store.claim(row.id)) this.begin(this.store.get(row.id)!);
    }
    for (const [id, running] of this.running) if (this.store.get(id) === undefined) this.stop(running, "lost");
  }

  /** Resolves when this server works on none. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.running.values()].map(({ ended }) => ended));
  }

  private canRun({ client, model, batch }: BatchRow): boolean {
    if (batch.status === "cancelling") return true;
    return this.around.caller(client) !== null && (model === "" || this.around.width(model) !== undefined);
  }

  private review(row: BatchRow, running: Running): void {
    if (!this.store.isOurs(row)) this.stop(running, "lost");
    else if (row.batch.status === "cancelling") this.stop(running, "cancelled");
    else if (row.batch.expires_at <= now()) this.stop(running, "expired");
  }

  private stop(running: Running, why: Running["why"]): void {
    running.why ??= why;
    running.controller.abort(cancelled());
  }

  private begin(row: BatchRow): void {
    const controller = new AbortController();
    // As many lines listen to it as are asked at once.
    setMaxListeners(0, controller.signal);
    // In the next turn: who began it is told that it was begun.
    const ended = Promise.resolve()
      .then(() => this.work(row, running))
      .catch((error) => {
        log.error(`batch ${row.id} was put aside: ${(error as Error).stack ?? error}`);
      })
      .finally(() => {
        this.running.delete(row.id);
        this.store.release(row.id);
      });
    const running: Running = { controller, ended };
    this.running.set(row.id, running);
    this.review(row, running);
  }

  private async work(row: BatchRow, running: Running): Promise<void> {
    let { batch } = row;
    if (batch.status === "validating") batch = await this.validate(row);
    if (batch.status === "failed") return;
    const finished = await this.askLines(row, batch, running);
    if (running.why === "lost" || (!finished && running.why === undefined)) return;
    await this.finish(row, finished ? undefined : running.why);
  }

  private lines(batch: Batch): AsyncGenerator<BatchLine | BadLine> {
    return readLines(this.files.path(batch.input_file_id), batch.endpoint, this.around.limits);
  }

  /** Bad lines have their outcome before the first line is asked. */
  private async validate({ id, batch }: BatchRow): Promise<Batch> {
    const bad: BadLine[] = [];
    let total = 0;
    let model: string | null = null;
    for await (const line of this.lines(batch)) {
      total += 1;
      if (total > this.around.limits.lines) {
        return this.refuse(
          id,
          "too_many_lines",
          `A batch may have ${this.around.limits.lines} lines; this one has more.`,
        );
      }
      if (isBad(line)) bad.push(line);
      else model ??= line.body.model as string;
    }
    if (total === 0) return this.refuse(id, "empty_file", "The input file has no lines.");
    const listed = bad
      .slice(0, mostErrorsListed)
      .map(({ code, message, line, param }) => ({ code, message, line, param }));
    const errors = bad.length === 0 ? null : { object: "list" as const, data: listed };
    const outcomes = bad.map((line) => ({ line: line.line, ok: false, output: badOutput(id, line) }));
    this.store.record(id, outcomes, (changed) => {
      changed.request_counts.total = total;
      changed.errors = errors;
      changed.model = model;
      // A cancellation that came meanwhile stands.
      if (changed.status === "validating") changed.status = "in_progress";
      changed.in_progress_at = now();
    });
    return this.store.get(id)!.batch;
  }

  private refuse(id: string, code: string, message: string): Batch {
    const nothing = { output: null, errors: null, expires: 0 };
    this.store.end(id, nothing, (batch) => {
      batch.status = "failed";
      batch.failed_at = now();
      batch.errors = { object: "list", data: [{ code, message, line: null, param: "input_file_id" }] };
    });
    return this.store.get(id)!.batch;
  }

  /** False where they were ended before all were asked. */
  private async askLines(row: BatchRow, batch: Batch, running: Running): Promise<boolean> {
    const { draining } = this.around;
    const stop = AbortSignal.any([running.controller.signal, draining]);
    const done = this.store.done(row.id);
    const asked = new Set<Promise<void>>();
    let failure: unknown;
    for await (const line of this.lines(batch)) {
      if (isBad(line) || done.has(line.line)) continue;
      while (asked.size >= this.width(batch.model)) await Promise.race(asked);
      if (stop.aborted || failure !== undefined) break;
      const one: Promise<void> = this.askLine(row, batch, line, running)
        .catch((error) => {
          failure ??= error;
        })
        .finally(() => asked.delete(one));
      asked.add(one);
    }
    await Promise.all(asked);
    if (failure !== undefined) throw failure;
    const { completed, failed, total } = this.store.get(row.id)!.batch.request_counts;
    return completed + failed === total;
  }

  /** Batches share what a model answers at once. */
  private width(model: string | null): number {
    const all = this.around.width(model ?? "") ?? 1;
    return Math.max(1, Math.floor(all / Math.max(1, this.running.size)));
  }

  private async askLine({ id, client }: BatchRow, batch: Batch, line: BatchLine, running: Running): Promise<void> {
    const { draining, ask } = this.around;
    const caller = this.around.caller(client) ?? undefined;
    const inner = { caller, priority: batchPriority, signal: running.controller.signal };
    const answer = await ask(batch.endpoint, line.body, inner, draining);
    // Nobody has answered it: it is left for later, or told as ended.
    if (running.why !== undefined || (draining.aborted && (answer.status === 503 || answer.status === 429))) return;
    const outcome = outcomeOf(id, line, answer);
    this.store.record(id, [outcome], (changed) => addUsage(changed.usage, answer.body));
  }

  private async finish({ id, batch }: BatchRow, why: "cancelled" | "expired" | undefined): Promise<void> {
    this.store.change(id, (changed) => {
      if (why === undefined) changed.status = "finalizing";
      changed.finalizing_at = now();
    });
    const output = await this.written(this.store.outcomes(id, true));
    const errors = await this.written(this.errorLines(id, batch, why));
    this.store.end(id, { output, errors, expires: now() + resultsKeptSeconds }, (changed) => {
      changed.status = why ?? "completed";
      changed[`${why ?? "completed"}_at`] = now();
    });
  }

  private async *errorLines(
    id: string,
    batch: Batch,
    why: "cancelled" | "expired" | undefined,
  ): AsyncGenerator<string> {
    yield* this.store.outcomes(id, false);
    if (why === undefined) return;
    const done = this.store.done(id);
    for await (const line of this.lines(batch)) {
      if (done.has(line.line)) continue;
      if (isBad(line)) {
        yield `${badOutput(id, line)}\n`;
        continue;
      }
      const message = `The batch ${why === "expired" ? "expired" : "was cancelled"} before this line was answered.`;
      const error = { code: `batch_${why}`, message, line: line.line };
      yield `${JSON.stringify({ id: requestId(id, line.line), custom_id: line.customId, response: null, error })}\n`;
    }
  }

  /** null: there is nothing to write. */
  private async written(source: Iterable<string> | AsyncIterable<string>): Promise<Written | null> {
    const written = await this.files.write(source as AsyncIterable<string>);
    if (written.bytes > 0) return written;
    this.files.forget(written);
    return null;
  }
}

const requestId = (batch: string, line: number) => `batch_req_${batch.slice("batch_".length)}_${line}`;

function badOutput(batch: string, { line, customId, code, message, param }: BadLine): string {
  const error = { code, message, param, line };
  return JSON.stringify({ id: requestId(batch, line), custom_id: customId, response: null, error });
}

function outcomeOf(
  batch: string,
  { line, customId }: BatchLine,
  { status, requestId: id, body }: InnerAnswer,
): Outcome {
  const response = { status_code: status, request_id: id, body };
  const output = JSON.stringify({ id: requestId(batch, line), custom_id: customId, response, error: null });
  return { line, ok: status < 400, output };
}

/** Chat completions and responses call the same things differently. */
function addUsage(total: BatchUsage, body: unknown): void {
  const { usage } = (body ?? {}) as { usage?: Record<string, number & { [detail: string]: number }> };
  if (usage === undefined || usage === null) return;
  const count = (...names: string[]) => names.reduce((sum, name) => sum + Number(usage[name] ?? 0), 0);
  const input = count("prompt_tokens", "input_tokens");
  const output = count("completion_tokens", "output_tokens");
  const details = usage.prompt_tokens_details ?? usage.input_tokens_details;
  total.input_tokens += input;
  total.output_tokens += output;
  total.total_tokens += input + output;
  total.input_tokens_details.cached_tokens += Number(details?.cached_tokens ?? 0);
  total.output_tokens_details.reasoning_tokens += Number(usage.output_tokens_details?.reasoning_tokens ?? 0);
}
