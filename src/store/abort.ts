// Owns: reading an answer's body so that an abort always ends it. On Node 20 an abort that comes between two reads, while
// the rest of the body is already here, leaves fetch's own iteration waiting for ever; and a controller that follows a
// signal with a listener, where unions of unions would do.

import { setMaxListeners } from "node:events";

export function followed(signal: AbortSignal | undefined): AbortController {
  const controller = new AbortController();
  if (signal === undefined) return controller;
  if (signal.aborted) controller.abort(signal.reason);
  else {
    // Of many requests at once; each takes its listener away when it ends or its time is over.
    setMaxListeners(0, signal);
    const follow = () => controller.abort(signal.reason);
    signal.addEventListener("abort", follow, { once: true });
    controller.signal.addEventListener("abort", () => signal.removeEventListener("abort", follow), { once: true });
  }
  return controller;
}

/** Aborts after so long, or with the signal. A union with AbortSignal.timeout's would do, but Node 20 may collect that one
 *  before it fires. */
export function within(ms: number, signal: AbortSignal | undefined): AbortSignal {
  const controller = followed(signal);
  const end = () => controller.abort(new DOMException(`nothing came for ${ms / 1000} s`, "TimeoutError"));
  setTimeout(end, ms).unref();
  return controller.signal;
}

/** Throws the signal's reason once it is aborted, whatever the body does. */
export async function* bodyOf(response: Response, signal: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  let stop = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
  });
  aborted.catch(() => {});
  try {
    for (;;) {
      signal.throwIfAborted();
      const { done, value } = await Promise.race([reader.read(), aborted]);
      if (done) return;
      yield value;
    }
  } finally {
    signal.removeEventListener("abort", stop);
    reader.cancel().catch(() => {});
  }
}
