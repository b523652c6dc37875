// Owns: a GGUF from a plain address. Its digest is known only when it is here, unless "#sha256=…" says it; a partial file
// is gone on with only where the server says that it is still the same file.
import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { UserError } from "../base/errors.js";
import { within } from "./abort.js";
import { adopt, partialPath } from "./blobs.js";
import { download, HttpRefusal, networkReason } from "./download.js";
import { withLock } from "./lock.js";
import type { PackageFile } from "./package.js";
import type { PullOptions } from "./report.js";

function refusal(status: number, url: string): HttpRefusal {
  const { host, pathname } = new URL(url);
  const code = status === 404 ? "model_not_found" : status === 429 ? "rate_limited" : "download_failed";
  return new HttpRefusal(`${host}${pathname} cannot be had (HTTP ${status}).`, {
    status: status < 500 ? status : 502,
    code,
  });
}

/** What tells one version of the file from another. */
async function versionOf(url: string, signal?: AbortSignal): Promise<{ version: string; bytes?: number }> {
  const response = await fetch(url, {
    method: "HEAD",
    signal: within(30_000, signal),
  }).catch((error: unknown) => {
    signal?.throwIfAborted();
    throw new UserError(`${new URL(url).host} cannot be reached: ${networkReason(error)}.`, {
      status: 502,
      code: "download_failed",
    });
  });
  if (response.status === 405 || response.status === 501) return { version: `${Date.now()}` };
  if (!response.ok) throw refusal(response.status, url);
  const length = Number(response.headers.get("content-length") ?? Number.NaN);
  const tag = response.headers.get("etag") ?? response.headers.get("last-modified");
  return { version: `${tag ?? Date.now()} ${length}`, ...(Number.isFinite(length) ? { bytes: length } : {}) };
}

/** What the file at an address is called. */
export const nameOfFile = (url: string) => basename(decodeURIComponent(new URL(url).pathname));

/** In bytes. Throws UserError where the server does not say. */
export async function sizeOf(url: string, signal?: AbortSignal): Promise<number> {
  const { bytes } = await versionOf(url, signal);
  if (bytes !== undefined) return bytes;
  throw new UserError(`${new URL(url).host} does not say how large the file is: pull it to see what it takes.`, {
    status: 502,
    code: "no_ranges",
  });
}

export async function pullFromUrl(folder: string, address: string, options: PullOptions): Promise<PackageFile> {
  const url = address.replace(/#.*$/, "");
  const stated = /#sha256=([0-9a-f]{64})$/i.exec(address)?.[1]?.toLowerCase();
  const { report, signal } = options;
  const name = nameOfFile(url);
  report?.note?.(`Fetching ${name} from ${new URL(url).host}`);
  const { version, bytes } = await versionOf(url, signal);
  const key = createHash("sha256").update(`${url}\n${version}`).digest("hex");
  const partial = partialPath(folder, key);
  mkdirSync(dirname(partial), { recursive: true });
  return withLock(
    join(folder, "locks", key),
    async () => {
      await download(url, partial, {
        ...(bytes === undefined ? {} : { bytes }),
        refuse: refusal,
        onProgress: (done, total) => report?.progress?.(name, done, total),
        ...(signal === undefined ? {} : { signal }),
      });
      const digest = stated === undefined ? undefined : ({ kind: "sha256", hex: stated } as const);
      return { name, ...(await adopt(folder, partial, name, digest)) };
    },
    signal === undefined ? {} : { signal },
  );
}
