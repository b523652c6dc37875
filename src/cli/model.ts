// Owns: MODEL on the command line → something that can be opened. What is not in the store is fetched, with progress on
// standard error.
import { type PullReport, type ResolvedModel, Store } from "../store/store.js";
import { pullReport } from "./progress.js";

export const modelArgument = "a package's or catalogue's name, a .gguf file, a model folder, or hf:owner/repo[/file]";

/** Aborts on the first Ctrl-C, so that a download ends tidily and can be resumed. */
async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = () => controller.abort();
  process.once("SIGINT", stop);
  try {
    return await body(controller.signal);
  } finally {
    process.off("SIGINT", stop);
  }
}

/** Runs body with progress on standard error and a signal that Ctrl-C aborts. */
export async function reported<T>(
  body: (options: { report: PullReport; signal: AbortSignal }) => Promise<T>,
): Promise<T> {
  const report = pullReport();
  try {
    return await interruptible((signal) => body({ report, signal }));
  } finally {
    report.stop();
  }
}

export function resolveModel(model: string, flags: { insecure?: boolean } = {}): Promise<ResolvedModel> {
  const { insecure } = flags;
  return reported((options) => new Store().resolve(model, { ...options, insecure }));
}
