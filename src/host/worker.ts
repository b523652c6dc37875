// Owns: the engine in a worker thread of this process: what the library uses.
import { Worker } from "node:worker_threads";
import type { Port } from "../engine/protocol.js";

export function workerCarrier(): Port {
  const worker = new Worker(new URL("./entry.js", import.meta.url));
  let reason = "its thread ended";
  worker.on("error", (error) => {
    reason = error instanceof Error ? error.message : String(error);
  });
  return {
    post: (message) => worker.postMessage(message),
    onMessage: (listener) => worker.on("message", listener),
    onClose: (listener) => worker.once("exit", () => listener(reason)),
    close: () => void worker.terminate(),
  };
}
