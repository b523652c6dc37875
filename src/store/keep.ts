// Owns: what stays in the store. A blob stays while a manifest names it, while an operation under way holds it, and for a
// day after it came (an upload waits for its manifest, a pull that was cut goes on). Everything that decides what goes,
// and everything that names, happens under one lock; holders that died count for nothing.
//
//   pull, create      hold(digests) ─► blobs ─► commit(manifest), release
//   rm, commit        under the lock: manifest away or replaced ─► sweep(what only it named)
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { processLives, withLock } from "./lock.js";
import { descriptorsOf, hexOf, listIds, type OciManifest, readManifest } from "./manifest.js";
import { linkKeys } from "./package.js";

const dayMs = 86_400_000;
/** A download that nobody has gone on with for so long. */
const partialMs = 7 * dayMs;

export function withStoreLock<T>(folder: string, body: () => T | Promise<T>, signal?: AbortSignal): Promise<T> {
  return withLock(join(folder, "locks", "store"), async () => body(), signal === undefined ? {} : { signal });
}

function entries(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

let holds = 0;

/** Blobs (by SHA-256) and link folders (by key) that an operation of this process needs. */
export class Hold {
  private readonly names = new Set<string>();
  private readonly path: string;

  constructor(private readonly folder: string) {
    this.path = join(folder, "pending", `${process.pid}-${++holds}`);
  }

  /** Once it resolves, no sweep takes them. Ask whether a blob is there afterwards, not before. */
  async add(...names: readonly string[]): Promise<void> {
    if (names.every((name) => this.names.has(name))) return;
    for (const name of names) this.names.add(name);
    await withStoreLock(this.folder, () => {
      mkdirSync(join(this.folder, "pending"), { recursive: true });
      mkdirSync(join(this.folder, "partial"), { recursive: true });
      const temporary = join(this.folder, "partial", `pending-${process.pid}-${holds}`);
      writeFileSync(temporary, [...this.names].join("\n"));
      renameSync(temporary, this.path);
    });
  }

  release(): void {
    rmSync(this.path, { force: true });
  }
}

function held(folder: string): Set<string> {
  const names = new Set<string>();
  for (const file of entries(join(folder, "pending"))) {
    const path = join(folder, "pending", file);
    if (!processLives(Number.parseInt(file, 10))) {
      rmSync(path, { force: true });
      continue;
    }
    try {
      for (const name of readFileSync(path, "utf8").split("\n")) names.add(name);
    } catch {
      // Released meanwhile: its manifest, if there is one, is read after this.
    }
  }
  return names;
}

/** What a manifest needs. */
export function namesOf(manifest: OciManifest): string[] {
  return [...descriptorsOf(manifest).map(({ digest }) => hexOf(digest)), ...linkKeys(manifest)];
}

function olderThan(path: string, ms: number): boolean {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat !== undefined && Date.now() - stat.mtimeMs > ms;
}

/**
 * Removes blobs and links among `candidates` that nothing needs, and what nothing has needed for a day. Under the store's
 * lock. Throws FormatError, and removes nothing, where a manifest cannot be read: it may name anything.
 */
export function sweep(folder: string, candidates: Iterable<string>): void {
  const needed = held(folder);
  for (const id of listIds(folder)) {
    const read = readManifest(folder, id);
    if (read !== null) for (const name of namesOf(read.manifest)) needed.add(name);
  }
  const mayGo = new Set(candidates);
  const goes = (name: string, path: string) => !needed.has(name) && (mayGo.has(name) || olderThan(path, dayMs));
  for (const file of entries(join(folder, "blobs"))) {
    const path = join(folder, "blobs", file);
    if (goes(file.replace(/^sha256-/, ""), path)) rmSync(path, { force: true });
  }
  for (const key of entries(join(folder, "models"))) {
    const path = join(folder, "models", key);
    if (goes(key, path)) rmSync(path, { recursive: true, force: true });
  }
  for (const file of entries(join(folder, "partial"))) {
    const path = join(folder, "partial", file);
    if (olderThan(path, partialMs)) rmSync(path, { recursive: true, force: true });
  }
}
