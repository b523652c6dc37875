// Owns: what a long operation tells whoever watches it: callbacks inside, Ollama's progress objects for its API.
import { followed } from "./abort.js";

/** What a pull, a push or a create tells whoever watches it. */
export interface PullReport {
  /** One line for people. */
  note?(text: string): void;
  /** done and total in bytes; digest: the file's SHA-256, or what else it is known by. */
  progress?(file: string, done: number, total: number | undefined, digest?: string): void;
  /** The step that begins, in Ollama's words: "pulling manifest", "writing manifest". */
  status?(text: string): void;
}

export interface PullOptions {
  readonly report?: PullReport;
  readonly signal?: AbortSignal;
  /** Where another source follows, one that has not answered within this time is passed over. */
  readonly giveUpMs?: number;
  /** A registry may be spoken to without TLS. */
  readonly insecure?: boolean;
  /** How often a registry is asked again, and after what first pause; the pause doubles. */
  readonly retries?: number;
  readonly pauseMs?: number;
}

/** One line of Ollama's progress streams. */
export interface Progress {
  readonly status: string;
  readonly digest?: string;
  readonly total?: number;
  readonly completed?: number;
}

/**
 * Runs body and yields what it reports, then { status: "success" }. Throws what body throws. Leaving the loop early
 * aborts it. Progress of one file that nobody has read yet is replaced by the newer.
 */
export async function* steps(
  verb: "pulling" | "pushing",
  body: (report: PullReport, signal: AbortSignal) => Promise<unknown>,
  signal?: AbortSignal,
): AsyncGenerator<Progress, void, undefined> {
  const leaving = followed(signal);
  const queue: Progress[] = [];
  let wake = () => {};
  const push = (progress: Progress) => {
    const last = queue.at(-1);
    if (last !== undefined && last.digest !== undefined && last.digest === progress.digest) queue.pop();
    queue.push(progress);
    wake();
  };
  const report: PullReport = {
    status: (status) => push({ status }),
    progress: (_file, completed, total, digest) => {
      const name = digest === undefined ? _file : digest;
      const about = digest === undefined ? {} : { digest: `sha256:${digest}` };
      push({ status: `${verb} ${name.slice(0, 12)}`, ...about, ...(total === undefined ? {} : { total }), completed });
    },
  };
  let ended = false;
  const running = body(report, leaving.signal).finally(() => {
    ended = true;
    wake();
  });
  running.catch(() => {});
  try {
    while (!ended || queue.length > 0) {
      const next = queue.shift();
      if (next !== undefined) yield next;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
    await running;
    yield { status: "success" };
  } finally {
    leaving.abort();
  }
}
