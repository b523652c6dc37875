// Owns: prompts that are longer than the context: what is left out of them, by the caller's choice, and how much that was.
import { UserError } from "../base/errors.js";
import type { Prepared, Session } from "./session.js";
import type { ChatJob, ChatMessage } from "./types.js";

/**
 * error: such a prompt is refused. drop_oldest: a conversation loses its oldest turns, a prompt its beginning. middle_out: a
 * conversation loses turns from its middle outwards, a prompt its middle. What the system says, and the last turn, stay.
 */
export const overflows = ["error", "drop_oldest", "middle_out"] as const;
export type Overflow = (typeof overflows)[number];

export interface Fitted extends Prepared {
  /** Tokens of the prompt that the model does not see. */
  readonly cutTokens: number;
}

/** UTF-16 units: more are not tokenized to be cut, which would keep everybody waiting. */
export const mostText = 2_000_000;

/** Throws UserError where the job cannot be done, also where nothing that may be left out makes it fit. */
export function fitted(session: Session, job: ChatJob, overflow: Overflow): Fitted {
  try {
    return { ...session.prepare(job), cutTokens: 0 };
  } catch (error) {
    if (overflow === "error" || !isTooLong(error) || textLength(job) > mostText) throw error;
  }
  const whole = session.promptIds(job);
  const kept = job.messages ? conversation(session, job, job.messages, overflow) : text(session, job, whole, overflow);
  return { ...kept, cutTokens: whole.length - kept.request.promptIds.length };
}

export const isTooLong = (error: unknown) => error instanceof UserError && error.code === "context_length_exceeded";

/** UTF-16 units of what is said in the prompt. */
export function textLength({ messages = [], prompt = "" }: ChatJob): number {
  return messages.reduce((sum, { content }) => {
    return (
      sum + (typeof content === "string" ? content.length : (content ?? []).reduce((n, p) => n + p.text.length, 0))
    );
  }, prompt.length);
}

/** A prompt that is cut leaves a quarter of the context to an answer whose length nobody said. */
const roomFor = ({ maxTokens }: ChatJob, { limits }: Session) => maxTokens ?? Math.max(1, limits.contextLength >> 2);

/** The smallest count in 1…most for which enough is left out, `most` where none does; asked a few times only: each asks
 *  the tokenizer. */
export function fewest(most: number, isEnough: (count: number) => boolean): number {
  let [low, high] = [1, most];
  while (low < high) {
    const count = (low + high) >> 1;
    if (isEnough(count)) high = count;
    else low = count + 1;
  }
  return high;
}

/** The fewest turns go that must; a turn is a user's message and what follows it. */
function conversation(
  session: Session,
  job: ChatJob,
  messages: readonly ChatMessage[],
  overflow: Exclude<Overflow, "error">,
): Prepared {
  const isFixed = ({ role }: ChatMessage) => role === "system" || role === "developer";
  let turns = 0;
  const turnOf = messages.map((message) => {
    if (message.role === "user") turns++;
    return isFixed(message) ? -1 : Math.max(0, turns - 1);
  });
  const droppable = Array.from({ length: Math.max(0, turns - 1) }, (_, turn) => turn);
  if (overflow === "middle_out") {
    const middle = (turns - 1) / 2;
    droppable.sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle) || a - b);
  }
  const without = (count: number) => {
    const gone = new Set(droppable.slice(0, count));
    return { ...job, messages: messages.filter((_, index) => !gone.has(turnOf[index])) };
  };
  const trial = { maxTokens: roomFor(job, session) };
  return session.prepare(without(fewest(droppable.length, (count) => fits(session, { ...without(count), ...trial }))));
}

function fits(session: Session, job: ChatJob): boolean {
  try {
    session.prepare(job);
    return true;
  } catch (error) {
    if (isTooLong(error)) return false;
    throw error;
  }
}

function text(session: Session, job: ChatJob, whole: Int32Array, overflow: Exclude<Overflow, "error">): Prepared {
  const { prompt: _prompt, parseSpecial: _special, ...rest } = job;
  const room = session.limits.contextLength - roomFor(job, session);
  if (room < 1) return session.prepare(job); // which says why not
  // A text's first token, where the model wants one, belongs to its beginning.
  const [bos] = session.text?.tokenizer.encode("", { bos: true }) ?? [];
  const first = overflow === "middle_out" ? room >> 1 : bos !== undefined && whole[0] === bos ? 1 : 0;
  const promptIds = new Int32Array(room);
  promptIds.set(whole.subarray(0, first));
  promptIds.set(whole.subarray(whole.length - (room - first)), first);
  return session.prepare({ ...rest, promptIds });
}
