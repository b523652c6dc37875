// Owns: a large file over several connections: ranges of one size into a file of the whole size, resumed by ranges that
// are done. Which those are stands in a small file beside it (PATH.parts), written after each.
//
//   PATH        |####|####|    |##  |    |      PATH.parts  {"bytes":…,"chunk":…,"done":[0,1]}
import { existsSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { UserError } from "../base/errors.js";
import { bodyOf, followed } from "./abort.js";
import { diskFailure } from "./blobs.js";
import { answer, checkStatus, type DownloadOptions, networkReason, retrying, Transient, Watchdog } from "./download.js";

export interface ParallelOptions extends DownloadOptions {
  readonly connections?: number;
  readonly chunkBytes?: number;
}

/** The server gives the whole file whatever range is asked for. */
export class NoRanges extends Error {}

const partsPath = (path: string) => `${path}.parts`;

/** Whether the file beside is one with holes. */
export const hasHoles = (path: string) => existsSync(partsPath(path));

export function forgetPartial(path: string): void {
  rmSync(path, { force: true });
  rmSync(partsPath(path), { force: true });
}

class Parts {
  readonly done: Set<number>;
  readonly count: number;

  constructor(
    private readonly path: string,
    readonly bytes: number,
    readonly chunk: number,
  ) {
    this.count = Math.ceil(bytes / chunk);
    this.done = this.restore();
  }

  /** Chunks that an earlier run has finished; of a file without holes those that it holds whole. */
  private restore(): Set<number> {
    const size = statSync(this.path, { throwIfNoEntry: false })?.size ?? 0;
    if (!hasHoles(this.path)) {
      return new Set(Array.from({ length: Math.min(this.count, Math.floor(size / this.chunk)) }, (_, at) => at));
    }
    try {
      const saved = JSON.parse(readFileSync(partsPath(this.path), "utf8")) as Record<string, unknown>;
      if (saved.bytes === this.bytes && saved.chunk === this.chunk && size === this.bytes) {
        return new Set(saved.done as number[]);
      }
    } catch {
      // Cut while it was written.
    }
    forgetPartial(this.path);
    return new Set();
  }

  rangeOf(at: number): [start: number, end: number] {
    return [at * this.chunk, Math.min(this.bytes, (at + 1) * this.chunk)];
  }

  save(): void {
    const { bytes, chunk, done } = this;
    const temporary = `${partsPath(this.path)}.tmp`;
    writeFileSync(temporary, JSON.stringify({ bytes, chunk, done: [...done] }));
    renameSync(temporary, partsPath(this.path));
  }
}

/** The whole file at `path`. Throws NoRanges where the server knows none; then nothing is left of it. */
export async function downloadParallel(
  url: string,
  path: string,
  bytes: number,
  options: ParallelOptions,
): Promise<void> {
  const { connections = 4, chunkBytes = 16 << 20 } = options;
  const parts = new Parts(path, bytes, chunkBytes);
  parts.save();
  const file = await open(path, existsSync(path) ? "r+" : "w+").catch((error: unknown) => {
    throw diskFailure(error, path);
  });
  const failing = followed(options.signal);
  const { signal } = failing;
  const arrived = new Map<number, number>([...parts.done].map((at) => [at, sizeOfRange(parts.rangeOf(at))]));
  const tell = () =>
    options.onProgress?.(
      [...arrived.values()].reduce((a, b) => a + b, 0),
      bytes,
    );
  const left = Array.from({ length: parts.count }, (_, at) => at).filter((at) => !parts.done.has(at));
  const work = async () => {
    for (let at = left.shift(); at !== undefined; at = left.shift()) {
      const chunk = at;
      await fetchRange(url, file, parts.rangeOf(chunk), { ...options, signal }, (count) => {
        arrived.set(chunk, count);
        tell();
      });
      parts.done.add(chunk);
      parts.save();
    }
  };
  try {
    await file.truncate(bytes);
    const workers = Array.from({ length: Math.min(connections, left.length) }, work);
    const stopped = workers.map((one) =>
      one.catch((error: unknown) => {
        failing.abort(error);
        throw error;
      }),
    );
    const outcomes = await Promise.allSettled(stopped);
    if (failing.signal.aborted) throw failing.signal.reason;
    const failed = outcomes.find((one) => one.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof NoRanges) arrived.clear();
    throw diskFailure(error, path);
  } finally {
    await file.close();
    if (arrived.size === 0) forgetPartial(path);
  }
  rmSync(partsPath(path), { force: true });
}

const sizeOfRange = ([start, end]: [number, number]) => end - start;

/** Bytes start to end of the file, to their places, tried again from where it broke off. Throws NoRanges. */
export async function fetchRange(
  url: string,
  file: FileHandle,
  [start, end]: readonly [number, number],
  options: DownloadOptions,
  onBytes: (count: number) => void = () => {},
): Promise<void> {
  let at = start;
  const attempt = async (first: boolean) => {
    const watchdog = new Watchdog(options.signal);
    const silenceMs = options.silenceMs ?? 30_000;
    const limitMs = first ? (options.firstAnswerMs ?? silenceMs) : silenceMs;
    try {
      const headers = { ...options.headers, "accept-encoding": "identity", range: `bytes=${at}-${end - 1}` };
      const response = await answer(url, headers, limitMs, watchdog, options.signal);
      await checkStatus(response, url, undefined, options);
      if (response.status !== 206) {
        await response.body?.cancel();
        throw new NoRanges();
      }
      watchdog.expect(silenceMs);
      await writeBody(response, url);
    } finally {
      watchdog.stop();
    }
    async function writeBody(response: Response, from: string): Promise<void> {
      try {
        for await (const chunk of bodyOf(response, watchdog.signal)) {
          watchdog.expect(silenceMs);
          const bytes = chunk.subarray(0, end - at);
          for (let done = 0; done < bytes.length; ) {
            done += (await file.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
          }
          at += bytes.length;
          onBytes(at - start);
        }
      } catch (error) {
        options.signal?.throwIfAborted();
        const failure = diskFailure(error, from);
        if (failure instanceof UserError) throw failure;
        const reason = watchdog.bit ? watchdog.signal.reason : error;
        throw new Transient(`the connection broke off: ${networkReason(reason)}`);
      }
      if (at < end) throw new Transient("the connection ended early");
    }
  };
  await retrying(attempt, () => at, options);
}
