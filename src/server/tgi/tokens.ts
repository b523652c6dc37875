// Owns: tokens as TGI lists them: with the text that each adds, and whether it is a special one.
import type { TokenLogprobs } from "../../engine/types.js";
import type { Session } from "../../session/session.js";
import type { DeltaToken } from "../../session/types.js";

export interface WireToken {
  readonly id: number;
  readonly text: string;
  readonly logprob: number | null;
  readonly special: boolean;
}

const finite = (logprob: number): number => Math.max(logprob, -9999);

/** A token by itself. */
export function alone(session: Session, id: number, logprob: number | undefined): WireToken {
  const spelled = session.detokenize([id], { special: true });
  const special = spelled !== "" && session.detokenize([id]) === "";
  return { id, text: spelled, logprob: logprob === undefined ? null : finite(logprob), special };
}

/**
 * Tokens and the text that came with them, which begins where the text before it ended: each has what lies between its own
 * beginning and the next one's.
 * @param from where the text begins in the whole answer, UTF-16 units
 */
export function withText(session: Session, tokens: readonly DeltaToken[], text: string, from: number): WireToken[] {
  return tokens.map((token, i) => {
    const own = alone(session, token.id, token.logprobs?.logprob);
    if (own.special) return own;
    const start = i === 0 ? 0 : token.offset - from;
    const end = i + 1 < tokens.length ? tokens[i + 1].offset - from : text.length;
    return { ...own, text: text.slice(start, end) };
  });
}

/** The best at one position. */
export function topTokens(session: Session, scores: TokenLogprobs | undefined): WireToken[] {
  return (scores?.top ?? []).map(([id, logprob]) => alone(session, id, logprob));
}

/** Where each token lies in the text that they all make, in characters (code points). */
export function located(
  session: Session,
  ids: Int32Array,
): { id: number; text: string; start: number; stop: number }[] {
  const { text, offsets } = session.decodePrompt(ids);
  let at = 0;
  let characters = 0;
  const positions = [...offsets, text.length].map((offset) => {
    for (; at < offset; characters++) at += text.codePointAt(at)! > 0xffff ? 2 : 1;
    return characters;
  });
  return Array.from(ids, (id, i) => ({
    id,
    text: text.slice(offsets[i], offsets[i + 1] ?? text.length),
    start: positions[i],
    stop: positions[i + 1],
  }));
}
