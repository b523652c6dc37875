// Owns: log-probabilities in OpenAI's two shapes, and a token's spelling in them. A token that is not whole UTF-8 is
// spelled by its bytes, as OpenAI does: "\xf0\x9f" in chat, "bytes:\xf0\x9f" in completions; without a tokenizer it is
// "token_id:123". Probabilities of zero are -9999, for JSON has no infinity.
import type { TokenLogprobs } from "../../engine/types.js";
import type { Session } from "../../session/session.js";
import type { DeltaToken } from "../../session/types.js";

interface ChatTokenLogprob {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[] | null;
}

export interface ChatLogprobs {
  readonly content: readonly (ChatTokenLogprob & { readonly top_logprobs: readonly ChatTokenLogprob[] })[];
  readonly refusal: null;
}

export function chatLogprobs(session: Session, tokens: readonly DeltaToken[]): ChatLogprobs {
  const entry = (id: number, logprob: number): ChatTokenLogprob => {
    const bytes = session.tokenBytes(id);
    return { token: spell(session, id, "\\x"), logprob: finite(logprob), bytes: session.text ? [...bytes] : null };
  };
  const content = tokens
    .filter((token) => token.logprobs !== undefined)
    .map(({ id, logprobs }) => ({
      ...entry(id, logprobs!.logprob),
      top_logprobs: logprobs!.top.map(([topId, logprob]) => entry(topId, logprob)),
    }));
  return { content, refusal: null };
}

/** Parallel lists, one entry a token. */
export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Record<string, number> | null)[];
  readonly text_offset: number[];
}

/** What is known of one token; logprobs is null for a prompt's first, which nothing predicts. */
export interface ScoredToken {
  readonly id: number;
  readonly offset: number;
  readonly logprobs?: TokenLogprobs | null;
}

/** @param offset of the text that the tokens' own offsets count from */
export function completionLogprobs(
  session: Session,
  tokens: readonly ScoredToken[],
  offset: number,
): CompletionLogprobs {
  const out: CompletionLogprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
  for (const { id, offset: start, logprobs } of tokens) {
    const name = spell(session, id, "bytes:\\x");
    out.tokens.push(name);
    out.text_offset.push(offset + start);
    out.token_logprobs.push(logprobs ? finite(logprobs.logprob) : null);
    out.top_logprobs.push(logprobs ? topMap(session, name, logprobs) : null);
  }
  return out;
}

/** The best tokens, and the drawn one where it is not among them. */
function topMap(session: Session, drawn: string, { logprob, top }: TokenLogprobs): Record<string, number> {
  const map: Record<string, number> = {};
  for (const [id, value] of top) map[spell(session, id, "bytes:\\x")] ??= finite(value);
  map[drawn] ??= finite(logprob);
  return map;
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function spell(session: Session, id: number, bytesPrefix: "\\x" | "bytes:\\x"): string {
  if (session.text === undefined) return `token_id:${id}`;
  const bytes = session.tokenBytes(id);
  try {
    return strict.decode(bytes);
  } catch {
    const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("\\x");
    return bytesPrefix + hex;
  }
}

const finite = (logprob: number): number => Math.max(logprob, -9999);
