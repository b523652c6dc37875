// Owns: one file over HTTP into a partial file: resumed by byte ranges, retried with growing pauses, given up with a
// reason that says what to do. Verifies nothing but length: the caller's digest does.
import { rmSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { UserError } from "../base/errors.js";
import { bodyOf, followed } from "./abort.js";
import { diskFailure } from "./blobs.js";

export interface DownloadOptions {
  readonly headers?: Readonly<Record<string, string>>;
  /** Total size where it is known beforehand. */
  readonly bytes?: number;
  /** Until the answer's headers are there; only the first try is held to it. */
  readonly firstAnswerMs?: number;
  /** Longest pause within the body. */
  readonly silenceMs?: number;
  readonly retries?: number;
  /** First pause before a retry; doubles each time. */
  readonly pauseMs?: number;
  readonly onProgress?: (done: number, total: number | undefined) => void;
  readonly signal?: AbortSignal;
  /** Words for an answer that says no; by default the hub's. */
  readonly refuse?: (status: number, url: string) => UserError;
}

/** The server's answer says no, and asking again will not help. */
export class HttpRefusal extends UserError {}

/** No answer, or one that broke off: another try may do better. */
export class Transient extends Error {
  constructor(
    message: string,
    readonly retryAfterMs?: number,
  ) {
    super(message);
  }
}

const sizeOf = (path: string) => statSync(path, { throwIfNoEntry: false })?.size ?? 0;

export function refusal(status: number, url: string, hasToken: boolean): HttpRefusal {
  const at = new URL(url);
  const where = `${at.host}${at.pathname}`;
  if (status === 401 || status === 403) {
    const what = hasToken
      ? "the access token in HF_TOKEN does not open it"
      : "it is private or gated, or does not exist";
    return new HttpRefusal(
      `${where}: ${what} (HTTP ${status}). Accept the model's terms on its page, and set HF_TOKEN to a token that may read it.`,
      { status, code: "model_access_denied" },
    );
  }
  if (status === 404) {
    return new HttpRefusal(`${where} does not exist (HTTP 404): check the owner, repository, revision and file name.`, {
      status,
      code: "model_not_found",
    });
  }
  if (status === 429) {
    const hint = hasToken ? "wait a while and pull again" : "wait a while, or set HF_TOKEN: known users get more";
    return new HttpRefusal(`${where}: too many requests (HTTP 429); ${hint}.`, { status, code: "rate_limited" });
  }
  return new HttpRefusal(`${where} answered with HTTP ${status}.`, { status: 502, code: "download_failed" });
}

/** The reason beneath fetch's own "fetch failed". */
export function networkReason(error: unknown): string {
  const cause = (error as { cause?: unknown }).cause;
  const inner = cause instanceof Error ? cause : error;
  return inner instanceof Error ? inner.message : String(inner);
}

export function retryAfterMs(response: Response): number | undefined {
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  return Number.isFinite(seconds) ? Math.max(0, seconds) * 1000 : undefined;
}

/** Aborts when nothing has come for a while: a dead connection can stay open for hours. */
export class Watchdog {
  private readonly controller: AbortController;
  private timer: NodeJS.Timeout | undefined;
  private bitten = false;

  /** Aborts with a reason; also when the caller's signal does. */
  readonly signal: AbortSignal;

  constructor(signal: AbortSignal | undefined) {
    this.controller = followed(signal);
    this.signal = this.controller.signal;
  }

  get bit(): boolean {
    return this.bitten;
  }

  expect(withinMs: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.bitten = true;
      this.controller.abort(new Error(`nothing came for ${withinMs / 1000} s`));
    }, withinMs);
  }

  stop(): void {
    clearTimeout(this.timer);
  }
}

/** Headers within the limit, or a Transient that says so. Redirects are followed. */
export async function answer(
  url: string,
  headers: Record<string, string>,
  limitMs: number,
  watchdog: Watchdog,
  signal: AbortSignal | undefined,
): Promise<Response> {
  watchdog.expect(limitMs);
  try {
    return await fetch(url, { headers, signal: watchdog.signal });
  } catch (error) {
    signal?.throwIfAborted();
    const { host } = new URL(url);
    if (watchdog.bit) throw new Transient(`${host} did not answer within ${limitMs / 1000} s`);
    throw new Transient(`${host} cannot be reached: ${networkReason(error)}`);
  }
}

/** Throws for every answer that brings no content; Transient where another try may do better. */
export async function checkStatus(
  response: Response,
  url: string,
  path: string | undefined,
  options: DownloadOptions,
): Promise<void> {
  if (response.ok) return;
  await response.body?.cancel();
  if (response.status === 416 && path !== undefined) {
    rmSync(path, { force: true });
    throw new Transient("the partial file did not fit the server's file");
  }
  const hasToken = options.headers?.authorization !== undefined;
  const no = options.refuse?.(response.status, url) ?? refusal(response.status, url, hasToken);
  if (response.status !== 429 && response.status < 500) throw no;
  throw Object.assign(new Transient(no.message, retryAfterMs(response)), { cause: no });
}

/** From where the partial file ends to the end. */
async function attempt(url: string, path: string, options: DownloadOptions, first: boolean): Promise<void> {
  if (options.bytes !== undefined && sizeOf(path) > options.bytes) rmSync(path);
  const start = sizeOf(path);
  if (start === options.bytes) return;
  const headers: Record<string, string> = { ...options.headers, "accept-encoding": "identity" };
  if (start > 0) headers.range = `bytes=${start}-`;
  const silenceMs = options.silenceMs ?? 30_000;
  const limitMs = first ? (options.firstAnswerMs ?? silenceMs) : silenceMs;
  const watchdog = new Watchdog(options.signal);
  try {
    const response = await answer(url, headers, limitMs, watchdog, options.signal);
    await checkStatus(response, url, path, options);
    const resumed = response.status === 206;
    const offset = resumed ? start : 0;
    const length = Number(response.headers.get("content-length") ?? Number.NaN);
    const total = options.bytes ?? (Number.isFinite(length) ? offset + length : undefined);
    let done = offset;
    options.onProgress?.(done, total);
    // Each chunk is on its way to the disk before the next is read, and the file is closed before this returns: a write
    // that is still under way would grow the file after the next try has looked where it ends.
    const file = await open(path, resumed ? "a" : "w").catch((error: unknown) => {
      throw diskFailure(error, path);
    });
    watchdog.expect(silenceMs);
    try {
      for await (const chunk of bodyOf(response, watchdog.signal)) {
        watchdog.expect(silenceMs);
        await file.appendFile(chunk);
        done += chunk.length;
        options.onProgress?.(done, total);
      }
    } catch (error) {
      options.signal?.throwIfAborted();
      const failure = diskFailure(error, path);
      if (failure instanceof UserError) throw failure;
      const reason = watchdog.bit ? watchdog.signal.reason : error;
      throw new Transient(`the connection broke off after ${done} bytes: ${networkReason(reason)}`);
    } finally {
      await file.close();
    }
    if (total !== undefined && done < total) {
      throw new Transient(`the connection ended after ${done} of ${total} bytes`);
    }
  } finally {
    watchdog.stop();
  }
}

/** The whole file at `path`. A try that brought bytes makes the count of tries start over. */
export async function download(url: string, path: string, options: DownloadOptions = {}): Promise<void> {
  await retrying(
    (first) => attempt(url, path, options, first),
    () => sizeOf(path),
    options,
  );
}

/** Tries again after what is Transient. size: what has arrived so far. */
export async function retrying(
  body: (first: boolean) => Promise<void>,
  size: () => number,
  options: DownloadOptions,
): Promise<void> {
  const retries = options.retries ?? 5;
  let failures = 0;
  for (let first = true; ; first = false) {
    const before = size();
    try {
      await body(first);
      return;
    } catch (error) {
      if (!(error instanceof Transient)) throw error;
      const moved = size() > before;
      failures = moved ? 1 : failures + 1;
      // A source that has not answered at all is the caller's to replace: the first answer decides quickly.
      const gone = first && options.firstAnswerMs !== undefined && error.cause === undefined && !moved;
      if (failures > retries || gone) {
        throw error.cause instanceof UserError
          ? error.cause
          : new UserError(`${error.message}.`, { status: 502, code: "download_failed", cause: error });
      }
      const pause = error.retryAfterMs ?? (options.pauseMs ?? 500) * 2 ** (failures - 1);
      await sleep(Math.min(pause, 30_000), undefined, { signal: options.signal });
    }
  }
}
