// Owns: content-addressed files. A blob appears under its digest whole or not at all: it is written beside, verified,
// flushed to disk and renamed. Nothing here knows where content comes from.
import { createHash, type Hash } from "node:crypto";
import {
  closeSync,
  copyFileSync,
  createReadStream,
  existsSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { UserError } from "../base/errors.js";

/** How a file is known before it is here: by its SHA-256, or (small files of a hub repository) by git's blob id. */
export type Digest =
  | { readonly kind: "sha256"; readonly hex: string }
  | { readonly kind: "git-blob"; readonly hex: string };

export class DigestMismatch extends UserError {
  constructor(what: string, wanted: string, found: string) {
    super(
      `${what} is not the file that was asked for: its digest is ${found}, and ${wanted} was expected. It was discarded; ` +
        "the source has changed it, or something on the way did.",
      { status: 502, code: "digest_mismatch" },
    );
  }
}

export function blobPath(folder: string, sha256: string): string {
  return join(folder, "blobs", `sha256-${sha256}`);
}

export function partialPath(folder: string, key: string): string {
  return join(folder, "partial", key);
}

/** Feeds the first `bytes` of a file to the hashes. */
export async function hashFile(
  path: string,
  hashes: readonly Hash[],
  onProgress?: (done: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  let done = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20, signal })) {
    for (const hash of hashes) hash.update(chunk as Buffer);
    done += (chunk as Buffer).length;
    onProgress?.(done);
  }
}

export async function sha256OfFile(
  path: string,
  onProgress?: (done: number) => void,
  signal?: AbortSignal,
): Promise<string> {
  const hash = createHash("sha256");
  await hashFile(path, [hash], onProgress, signal);
  return hash.digest("hex");
}

const diskFaults = new Set(["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES"]);

/** What the disk refused, as something that a person can mend; anything else as it is. */
export function diskFailure(error: unknown, where: string): unknown {
  const { code, message } = (error ?? {}) as NodeJS.ErrnoException;
  if (error instanceof UserError || !diskFaults.has(code ?? "")) return error;
  return new UserError(`${where} cannot be written: ${message}. What was there is as it was.`, {
    status: 507,
    code: "store_full",
    cause: error,
  });
}

/** git's name for a file's content: SHA-1 over its length and its bytes. */
export function gitBlobHash(bytes: number): Hash {
  return createHash("sha1").update(`blob ${bytes}\0`);
}

function flush(path: string): void {
  const file = openSync(path, "r+");
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

function flushFolder(path: string): void {
  if (process.platform === "win32") return; // folders cannot be opened there; NTFS journals renames
  const folder = openSync(path, "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** Durable replacement: after this returns, a crash leaves the new file whole. */
export function moveIntoPlace(from: string, to: string): void {
  flush(from);
  mkdirSync(dirname(to), { recursive: true });
  renameSync(from, to);
  flushFolder(dirname(to));
}

/**
 * A whole file at `from` becomes the blob of its content. Throws DigestMismatch, and removes the file, where it is not
 * what `digest` says. Returns its SHA-256 and size.
 */
export async function adopt(
  folder: string,
  from: string,
  what: string,
  digest: Digest | undefined,
): Promise<{ sha256: string; bytes: number }> {
  const { size } = statSync(from);
  const sha256 = createHash("sha256");
  const git = gitBlobHash(size);
  await hashFile(from, digest?.kind === "git-blob" ? [sha256, git] : [sha256]);
  const hex = sha256.digest("hex");
  const found = digest?.kind === "git-blob" ? git.digest("hex") : hex;
  if (digest !== undefined && found !== digest.hex) {
    rmSync(from, { force: true });
    throw new DigestMismatch(what, digest.hex, found);
  }
  // A sweep spares what is new: here it is new, whenever its bytes came.
  utimesSync(from, new Date(), new Date());
  moveIntoPlace(from, blobPath(folder, hex));
  return { sha256: hex, bytes: size };
}

/** A few bytes of this digest as a blob. */
export function addBytes(folder: string, sha256: string, bytes: Uint8Array): void {
  mkdirSync(join(folder, "partial"), { recursive: true });
  const temporary = partialPath(folder, `${sha256}.${process.pid}`);
  writeFileSync(temporary, bytes);
  moveIntoPlace(temporary, blobPath(folder, sha256));
}

/** A blob of this digest and size is there. Content was verified when it was adopted. */
export function hasBlob(folder: string, sha256: string, bytes: number): boolean {
  return statSync(blobPath(folder, sha256), { throwIfNoEntry: false })?.size === bytes;
}

/** The blob under a name of its own: a hard link, else a symbolic link, else a copy. */
export function linkBlob(folder: string, sha256: string, bytes: number, path: string): void {
  const blob = blobPath(folder, sha256);
  if (statSync(path, { throwIfNoEntry: false })?.size === bytes) {
    const [a, b] = [statSync(path), statSync(blob)];
    if (a.ino === b.ino && a.dev === b.dev) return;
  }
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}.tmp`;
  rmSync(temporary, { force: true });
  try {
    linkSync(blob, temporary);
  } catch {
    try {
      symlinkSync(blob, temporary);
    } catch {
      copyFileSync(blob, temporary);
    }
  }
  renameSync(temporary, path);
  // POSIX: renaming one hard link of a file over another of the same file does nothing and leaves both.
  if (existsSync(temporary)) rmSync(temporary, { force: true });
}
