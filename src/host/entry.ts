// Owns: what runs in the engine's worker thread or child process: finds its carrier and serves it.
import { parentPort } from "node:worker_threads";
import { runHost } from "../engine/host.js";
import type { Port } from "../engine/protocol.js";
import { type LoadSpec, loadModel } from "./load.js";

const runtime = {
  load: (spec: unknown, onProgress: (done: number, total: number) => void) => loadModel(spec as LoadSpec, onProgress),
  now: () => performance.now(),
  pause: () => new Promise<void>((resolve) => setImmediate(resolve)),
};

if (parentPort) {
  const thread = parentPort;
  await runHost(
    {
      post: (message) => thread.postMessage(message),
      onMessage: (listener) => thread.on("message", listener),
      onClose: (listener) => thread.on("close", () => listener("the thread that started it is gone")),
      close: () => thread.close(),
    },
    runtime,
  );
} else {
  // Ctrl-C in a terminal reaches the whole process group: the parent decides what it means.
  process.on("SIGINT", () => {});
  await runHost(processPort(), runtime);
  process.exit(0);
}

function processPort(): Port {
  return {
    // What cannot be sent any more has nobody to hear it: the disconnect follows.
    post: (message) => {
      if (process.connected) process.send!(message, undefined, undefined, () => {});
    },
    onMessage: (listener) => process.on("message", listener),
    // A parent that died, by whatever signal, closes the channel: nothing of this process outlives it.
    onClose: () => process.on("disconnect", () => process.exit(0)),
    close: () => {
      if (process.connected) process.disconnect();
    },
  };
}
