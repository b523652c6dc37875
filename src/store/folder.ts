// Owns: where the store lies and how its folders are laid out.
//
//   blobs/sha256-<hex>            content, named by its digest; written once, never changed
//   partial/<key>                 downloads under way or cut; resumed
//   locks/<key>                   who is writing the blob of that key now
//   manifests/<name>.json         a model: its files by name and digest
//   models/<name>/<file>          the same content under its own names: hard links to blobs, what openCheckpoint takes
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { env } from "../base/env.js";

/** MILLRACE_HOME, or the platform's folder for a user's data. */
export function dataFolder(): string {
  const home = env("MILLRACE_HOME");
  if (home !== undefined) return resolve(home);
  if (process.platform === "win32") return join(env("LOCALAPPDATA") ?? join(homedir(), "AppData", "Local"), "millrace");
  if (process.platform === "darwin") return join(homedir(), "Library", "Application Support", "millrace");
  return join(env("XDG_DATA_HOME") ?? join(homedir(), ".local", "share"), "millrace");
}
