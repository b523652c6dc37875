// Owns: one answer in the terminal: text as it comes on standard output, Ctrl-C to stop it, its figures at the end.
import { UserError } from "../base/errors.js";
import type { Session } from "../session/session.js";
import type { ChatJob } from "../session/types.js";
import { type Figures, figuresOf } from "./figures.js";

export interface Answer {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: string;
  readonly figures: Figures;
  /** From the start of the process; null where no token came. */
  readonly startToFirstTokenMs: number | null;
}

/** Throws UserError where the engine reports an error. signal: the answer ends as it is, with reason "abort". */
export async function answer(
  session: Session,
  job: ChatJob,
  options: { onText?: (text: string) => void; onReasoning?: (text: string) => void; signal?: AbortSignal },
): Promise<Answer> {
  const start = performance.now();
  let first: number | null = null;
  let last = start;
  let text = "";
  const tokenIds: number[] = [];
  for await (const delta of session.run(job, options.signal)) {
    if (delta.type === "start") continue;
    const now = performance.now();
    if (delta.tokens.length > 0) {
      first ??= now;
      last = now;
      tokenIds.push(...delta.tokens.map(({ id }) => id));
    }
    if (delta.type === "content") {
      text += delta.text;
      options.onText?.(delta.text);
    }
    if (delta.type === "reasoning") options.onReasoning?.(delta.text);
    if (delta.type !== "finish") continue;
    if (delta.reason === "error") {
      throw new UserError(delta.error?.message ?? "the engine failed without saying why", delta.error);
    }
    return {
      text,
      tokenIds,
      finishReason: delta.reason,
      figures: figuresOf(delta, { start, first: first ?? last, last }),
      startToFirstTokenMs: first,
    };
  }
  throw new UserError("the engine ended without an answer", { status: 500, code: "no_answer" });
}

/**
 * Runs body with a signal that Ctrl-C aborts, in place of ending the process. A second one ends the process, unless it
 * comes with the first: npm passes on the signal that the terminal has sent already.
 */
export async function stoppable<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let at = 0;
  const stop = () => {
    if (controller.signal.aborted && performance.now() - at > 300) process.exit(130);
    if (!controller.signal.aborted) at = performance.now();
    controller.abort();
  };
  process.on("SIGINT", stop);
  try {
    return await body(controller.signal);
  } finally {
    process.off("SIGINT", stop);
  }
}
