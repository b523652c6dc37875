// Owns: where the store lies and how its folders are laid out.
//
//   blobs/sha256-<hex>                                   content, named by its digest; written once, never changed
//   manifests/<registry>/<namespace>/<model>/<tag>       a package: its layers by digest (OCI, as Ollama has it)
//   models/<key>/<file>                                  a model's files under their own names: hard links to blobs
//   partial/<key>                                        downloads under way or cut; resumed
//   pending/<pid>-<n>                                    what a live process needs that no manifest names yet
//   speeds.json                                          what this machine and its models do a second (cli/speeds.ts)
//   pages/                                               computed pages of prompts (host/page-files.ts); all may go
//   locks/<key>, locks/store                             who is writing that blob; who is naming or sweeping
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { env } from "../base/env.js";

/**
 * MILLRACE_HOME, or the platform's folder for a user's data. Below OLLAMA_MODELS it has a folder of its own: Ollama sweeps
 * what its own manifests do not name, and so does this store.
 */
export function dataFolder(): string {
  const home = env("MILLRACE_HOME");
  if (home !== undefined) return resolve(home);
  const ollama = env("OLLAMA_MODELS");
  if (ollama !== undefined) return resolve(ollama, "millrace");
  if (process.platform === "win32") return join(env("LOCALAPPDATA") ?? join(homedir(), "AppData", "Local"), "millrace");
  if (process.platform === "darwin") return join(homedir(), "Library", "Application Support", "millrace");
  return join(env("XDG_DATA_HOME") ?? join(homedir(), ".local", "share"), "millrace");
}

/** Where computed pages of prompts are kept. */
export function pagesFolder(): string {
  return join(dataFolder(), "pages");
}
