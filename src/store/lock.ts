// Owns: one writer a key among all processes of this machine. A lock is a file with its holder's process id, created
// exclusively; one whose holder has died, or has not touched it for long, is taken over.
import { linkSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const beatMs = 2_000;
/** A holder on another host (a shared home folder) cannot be asked: it counts as dead after this long without a beat. */
const silentMs = 15_000;

const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? "";

/** The file appears with its holder's name in it: one that a kill left empty would keep everybody waiting. */
function createExclusively(path: string): boolean {
  const written = `${path}.${process.pid}.new`;
  try {
    writeFileSync(written, String(process.pid));
    linkSync(written, path);
    return true;
  } catch (error) {
    // ENOENT: another thread of this process was quicker with `written`.
    if (["EEXIST", "ENOENT"].includes(codeOf(error))) return false;
    if (noLinks.includes(codeOf(error))) return createUnlinked(path);
    throw error;
  } finally {
    rmSync(written, { force: true });
  }
}

const noLinks = ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV"];

/** On a file system without hard links. */
function createUnlinked(path: string): boolean {
  try {
    writeFileSync(path, String(process.pid), { flag: "wx" });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    throw error;
  }
}

function readOrNull(path: string): { content: string; age: number } | null {
  try {
    return { content: readFileSync(path, "utf8"), age: Date.now() - statSync(path).mtimeMs };
  } catch {
    return null;
  }
}

export function processLives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function isStale(path: string): boolean {
  const held = readOrNull(path);
  if (held === null) return false;
  const pid = Number(held.content);
  // An empty file: its holder is between creating and writing it.
  if (held.content === "") return held.age > silentMs;
  return held.age > silentMs || !processLives(pid);
}

/** Removes a dead holder's lock. The guard keeps two that saw it dead from removing a third's fresh lock. */
function removeStale(path: string): void {
  const guard = `${path}.guard`;
  if (!createExclusively(guard)) {
    if ((readOrNull(guard)?.age ?? 0) > silentMs) rmSync(guard, { force: true });
    return;
  }
  try {
    if (isStale(path)) rmSync(path, { force: true });
    removeLeftovers(path);
  } finally {
    rmSync(guard, { force: true });
  }
}

/** What processes that died while they were creating the lock have left. */
function removeLeftovers(path: string): void {
  for (const name of readdirSync(dirname(path))) {
    const [, pid] = /\.(\d+)\.new$/.exec(name) ?? [];
    if (pid !== undefined && !processLives(Number(pid))) rmSync(join(dirname(path), name), { force: true });
  }
}

/** Runs body while holding the lock; onWait is called once where another holds it. */
export async function withLock<T>(
  path: string,
  body: () => Promise<T>,
  options: { onWait?: () => void; signal?: AbortSignal } = {},
): Promise<T> {
  mkdirSync(dirname(path), { recursive: true });
  let waited = false;
  let pause = 5;
  while (!createExclusively(path)) {
    if (isStale(path)) {
      removeStale(path);
      continue;
    }
    if (!waited) options.onWait?.();
    waited = true;
    await sleep(pause, undefined, { signal: options.signal });
    pause = Math.min(100, 2 * pause);
  }
  const beat = setInterval(() => {
    const now = new Date();
    try {
      utimesSync(path, now, now);
    } catch {
      // The folder was removed under us; the write itself will say so.
    }
  }, beatMs);
  beat.unref();
  try {
    return await body();
  } finally {
    clearInterval(beat);
    rmSync(path, { force: true });
  }
}
