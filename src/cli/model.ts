// Owns: MODEL on the command line → something that can be opened. What is not in the store is fetched, with progress on
// standard error.
import { type Package, type ResolvedModel, Store } from "../store/store.js";
import { pullReport } from "./progress.js";

export const modelArgument = "a catalogue name, a .gguf file, a model folder, or hf:owner/repo[/file]";

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

export async function resolveModel(model: string): Promise<ResolvedModel> {
  const report = pullReport();
  try {
    return await interruptible((signal) => new Store().resolve(model, { report, signal }));
  } finally {
    report.stop();
  }
}

export async function pullModel(model: string): Promise<Package> {
  const report = pullReport();
  try {
    return await interruptible((signal) => new Store().pull(model, { report, signal }));
  } finally {
    report.stop();
  }
}
