// Owns: pages of key-value caches on disk: one file a page, under a folder for each kind of page. Any number of processes
// may read, write, sweep and clear at once, and any of them may end at any moment: a file gets its name when it is whole,
// its content is checked when it is read, and what is not what it should be counts as not there and is removed.
//
//   <folder>/<kind>/about.json        what made the pages, for people
//   <folder>/<kind>/<name>-<group>    a page: magic, SHA-256 of all that follows and of what it is called, bytes
//   <folder>/<kind>/used              how often pages were fetched: lines of numbers, each added at once
//   <folder>/<kind>/new-<random>      being written
//   <folder>/digests/<key>            SHA-256 of a model's file that was read once, by path, size and times
//
// A kind is all that the bytes depend on beside the tokens: the model, the plan, the kernels, the number format
// (page-store.ts). Files are for their owner alone: a page gives away the tokens that it was computed from.
import { createHash, randomBytes } from "node:crypto";
import {
  appendFileSync,
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readvSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writevSync,
} from "node:fs";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";

export interface AboutPages {
  /** What the model is called by those who use it. */
  readonly model: string;
  readonly device: string;
  readonly kvDtype: string;
  readonly pageTokens: number;
  /** The group whose pages are counted as tokens. */
  readonly group: number;
}

const magic = Buffer.from("millrace page 1\n");
const headBytes = magic.length + 32;
const page = /^[0-9a-f]{64}-\d+$/;
/** What is being written for longer was left by a process that ended. */
const abandonedMs = 10 * 60_000;
/** Bytes of counts that are added up when a folder is opened. */
const longestCounts = 1 << 16;
/** Files that are looked at before others get a turn. */
const atOnce = 256;

/** The file's name of a page: its key (engine/spill.ts) is its group and the 16 units of its name. */
export function fileOf(key: string): string {
  let hex = "";
  for (let i = 1; i < key.length; i++) hex += key.charCodeAt(i).toString(16).padStart(4, "0");
  return `${hex}-${key.charCodeAt(0)}`;
}

export function keyOf(file: string): string {
  let key = String.fromCharCode(Number(file.slice(65)));
  for (let i = 0; i < 64; i += 4) key += String.fromCharCode(Number.parseInt(file.slice(i, i + 4), 16));
  return key;
}

/** Whole or not at all. Throws what the system says. */
function writeWhole(folder: string, name: string, parts: readonly Uint8Array[]): void {
  const partial = join(folder, `new-${randomBytes(8).toString("hex")}`);
  const fd = openSync(partial, "wx", 0o600);
  try {
    let bytes = parts.reduce((sum, part) => sum + part.length, 0);
    bytes -= writevSync(fd, [...parts]);
    if (bytes > 0) throw new Error("the disk took only a part");
  } catch (error) {
    closeSync(fd);
    rmSync(partial, { force: true });
    throw error;
  }
  closeSync(fd);
  renameSync(partial, join(folder, name));
}

const isMissing = (error: unknown) => (error as NodeJS.ErrnoException).code === "ENOENT";

function listed(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}

/** Pages of one kind. */
export class PageFolder {
  readonly kind: string;
  private readonly path: string;

  /** kind, digest: what the bytes depend on, and the model's content. */
  constructor(
    folder: string,
    kind: string,
    digest: string,
    private readonly about: AboutPages,
  ) {
    this.kind = createHash("sha256")
      .update(JSON.stringify([kind, digest]))
      .digest("hex")
      .slice(0, 32);
    this.path = join(folder, this.kind);
  }

  /** Makes the folder known to people, and gives the keys of what is in it. */
  open(): string[] {
    this.make();
    // Counts that others add in between are lost: it is a number for people.
    const used = join(this.path, "used");
    if ((statSync(used, { throwIfNoEntry: false })?.size ?? 0) > longestCounts) {
      writeWhole(this.path, "used", [Buffer.from(`${readHits(this.path)}\n`)]);
    }
    return listed(this.path)
      .filter((name) => page.test(name))
      .map(keyOf);
  }

  /** The file's size. Throws what the system says. */
  write(key: string, bytes: Uint8Array): number {
    const name = fileOf(key);
    const parts = [magic, this.checksum(name, bytes), bytes];
    try {
      writeWhole(this.path, name, parts);
    } catch (error) {
      if (!isMissing(error)) throw error;
      this.make(); // it was cleared
      writeWhole(this.path, name, parts);
    }
    return headBytes + bytes.length;
  }

  /** null: it is not there. "damaged": it was not what it should be, and is there no more. A page that is read is not the
   *  next to go. */
  read(key: string): Uint8Array | null | "damaged" {
    const name = fileOf(key);
    const path = join(this.path, name);
    let fd: number;
    try {
      fd = openSync(path, "r");
    } catch (error) {
      if (isMissing(error)) return null;
      throw error;
    }
    try {
      const size = fstatSync(fd).size - headBytes;
      const head = Buffer.alloc(headBytes);
      const bytes = new Uint8Array(Buffer.allocUnsafeSlow(Math.max(0, size)).buffer);
      const whole = size > 0 && readvSync(fd, [head, bytes]) === headBytes + size;
      const sum = head.subarray(magic.length);
      if (whole && head.subarray(0, magic.length).equals(magic) && this.checksum(name, bytes).equals(sum)) {
        const now = new Date();
        utimesSync(path, now, now);
        return bytes;
      }
    } catch (error) {
      if (isMissing(error)) return null; // swept between two calls
      throw error;
    } finally {
      closeSync(fd);
    }
    rmSync(path, { force: true });
    return "damaged";
  }

  /** So many pages more were fetched. */
  used(pages: number): void {
    try {
      appendFileSync(join(this.path, "used"), `${pages}\n`, { mode: 0o600 });
    } catch {
      // it was cleared, or the disk is full: a count is no reason to fail
    }
  }

  private make(): void {
    mkdirSync(this.path, { recursive: true, mode: 0o700 });
    writeWhole(this.path, "about.json", [Buffer.from(`${JSON.stringify(this.about)}\n`)]);
  }

  private checksum(name: string, bytes: Uint8Array): Buffer {
    return createHash("sha256").update(`${this.kind}/${name}\n`).update(bytes).digest();
  }
}

interface Found {
  readonly kind: string;
  readonly name: string;
  readonly bytes: number;
  readonly usedAt: number;
}

/** All pages of all kinds. Others get turns meanwhile; what goes while it looks is left out. */
async function allPages(folder: string): Promise<Found[]> {
  const found: Found[] = [];
  let seen = 0;
  for (const kind of listed(folder)) {
    if (!/^[0-9a-f]{32}$/.test(kind)) continue;
    for (const name of listed(join(folder, kind))) {
      if (++seen % atOnce === 0) await turn();
      const stat = statSync(join(folder, kind, name), { throwIfNoEntry: false });
      if (stat === undefined) continue;
      if (page.test(name)) found.push({ kind, name, bytes: stat.size, usedAt: stat.mtimeMs });
      else if (name.startsWith("new-") && Date.now() - stat.mtimeMs > abandonedMs) {
        rmSync(join(folder, kind, name), { force: true });
      }
    }
  }
  return found;
}

export interface Swept {
  /** Left, of all kinds. */
  readonly bytes: number;
  /** Left, of the one kind. */
  readonly own: number;
  /** What went of the one kind, by key. */
  readonly gone: readonly string[];
}

/** Removes what was used longest ago where there is more than the quota, to nine tenths of it. quotaOf: given the bytes
 *  that there are. */
export async function sweep(folder: string, kind: string, quotaOf: (bytes: number) => number): Promise<Swept> {
  const pages = await allPages(folder);
  const sum = (some: readonly Found[]) => some.reduce((total, { bytes }) => total + bytes, 0);
  const gone: string[] = [];
  let bytes = sum(pages);
  let own = sum(pages.filter((one) => one.kind === kind));
  const quota = quotaOf(bytes);
  if (bytes <= quota) return { bytes, own, gone };
  pages.sort((a, b) => a.usedAt - b.usedAt);
  for (const [i, one] of pages.entries()) {
    if (bytes <= quota * 0.9) break;
    if (i % atOnce === 0) await turn();
    rmSync(join(folder, one.kind, one.name), { force: true });
    bytes -= one.bytes;
    if (one.kind !== kind) continue;
    gone.push(keyOf(one.name));
    own -= one.bytes;
  }
  return { bytes, own, gone };
}

export interface PagesReport extends AboutPages {
  readonly kind: string;
  readonly pages: number;
  readonly tokens: number;
  readonly bytes: number;
  /** Pages that were fetched. */
  readonly hits: number;
  /** Milliseconds since 1970; undefined: it has no pages. */
  readonly oldestAt: number | undefined;
  readonly usedAt: number | undefined;
}

/** What is on disk, by kind. */
export async function reportPages(folder: string): Promise<PagesReport[]> {
  const pages = await allPages(folder);
  return listed(folder).flatMap((kind) => {
    const about = readAbout(join(folder, kind));
    if (about === undefined) return [];
    const own = pages.filter((one) => one.kind === kind);
    const times = own.map(({ usedAt }) => usedAt).sort((a, b) => a - b);
    const counted = own.filter(({ name }) => name.endsWith(`-${about.group}`)).length;
    return {
      ...about,
      kind,
      pages: own.length,
      tokens: counted * about.pageTokens,
      bytes: own.reduce((sum, { bytes }) => sum + bytes, 0),
      hits: readHits(join(folder, kind)),
      oldestAt: times[0],
      usedAt: times.at(-1),
    };
  });
}

/** Removes all pages of the kinds. Who is using them computes them again. */
export function clearPages(folder: string, kinds: readonly string[]): void {
  for (const kind of kinds) rmSync(join(folder, kind), { recursive: true, force: true, maxRetries: 3 });
}

function readAbout(path: string): AboutPages | undefined {
  try {
    return JSON.parse(readFileSync(join(path, "about.json"), "utf8")) as AboutPages;
  } catch {
    return undefined;
  }
}

function readHits(path: string): number {
  try {
    const lines = readFileSync(join(path, "used"), "utf8").split("\n");
    return lines.reduce((sum, line) => sum + (Number.parseInt(line, 10) || 0), 0);
  } catch {
    return 0;
  }
}

/** SHA-256 of what the files hold, in order: read once, then remembered for as long as they are as they were. */
export async function digestOfFiles(folder: string, paths: readonly string[]): Promise<string> {
  const all = createHash("sha256");
  for (const path of paths) all.update(await digestOfFile(folder, path));
  return all.digest("hex");
}

async function digestOfFile(folder: string, path: string): Promise<string> {
  const { size, mtimeMs, ctimeMs, ino } = statSync(path);
  const key = createHash("sha256")
    .update(JSON.stringify([path, size, mtimeMs, ctimeMs, ino]))
    .digest("hex");
  const known = join(folder, "digests");
  try {
    const text = readFileSync(join(known, key), "utf8");
    if (/^[0-9a-f]{64}$/.test(text)) return text;
  } catch {
    // it is the first time
  }
  const hash = createHash("sha256");
  const fd = openSync(path, "r");
  try {
    const block = Buffer.alloc(4 << 20);
    for (;;) {
      const bytes = readvSync(fd, [block]);
      if (bytes === 0) break;
      hash.update(block.subarray(0, bytes));
      await turn();
    }
  } finally {
    closeSync(fd);
  }
  const digest = hash.digest("hex");
  mkdirSync(known, { recursive: true, mode: 0o700 });
  writeWhole(known, key, [Buffer.from(digest)]);
  return digest;
}
