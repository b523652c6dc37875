// Owns: where an answer's time went, as the field "timings" of an OpenAI answer that asked for it: llama.cpp's names where it
// has the same, with the queue, the first token and the whole beside them. Of several choices or prompts: tokens together,
// the longest times.
import type { Account } from "../account.js";

/** Milliseconds, to the microsecond; null: there was none. */
export interface WireTimings {
  /** From the request's arrival. */
  readonly first_token_ms: number | null;
  readonly total_ms: number;
  /** In the engine, before anything was computed. */
  readonly queue_ms: number;
  /** Prompt tokens that were in the cache, and those that were computed. */
  readonly cache_n: number;
  readonly prompt_n: number;
  readonly prompt_ms: number;
  readonly prompt_per_token_ms: number | null;
  readonly prompt_per_second: number | null;
  readonly predicted_n: number;
  /** From the first token to the last. */
  readonly predicted_ms: number;
  /** Of the tokens behind each choice's first. */
  readonly predicted_per_token_ms: number | null;
  readonly predicted_per_second: number | null;
  /** Guesses of what comes next that were checked, and of them those that were right. */
  readonly draft_n: number;
  readonly draft_n_accepted: number;
}

export function wireTimings(accounts: readonly Account[]): WireTimings {
  const sum = (of: (one: Account) => number) => accounts.reduce((total, one) => total + of(one), 0);
  const longest = (of: (one: Account) => number) => Math.max(...accounts.map(of));
  const firsts = accounts.flatMap(({ firstTokenMs }) => firstTokenMs ?? []);
  const cached = sum(({ cachedTokens }) => cachedTokens);
  const computed = sum(({ promptTokens }) => promptTokens) - cached;
  const promptMs = longest((one) => one.promptMs);
  const generationMs = longest((one) => one.generationMs);
  const predicted = sum(({ generatedTokens }) => generatedTokens);
  const behind = predicted - sum(({ request }) => request.n);
  return {
    first_token_ms: firsts.length === 0 ? null : rounded(Math.min(...firsts)),
    total_ms: rounded(longest(({ elapsedMs }) => elapsedMs)),
    queue_ms: rounded(longest(({ queueMs }) => queueMs)),
    cache_n: cached,
    prompt_n: computed,
    prompt_ms: rounded(promptMs),
    prompt_per_token_ms: over(promptMs, computed),
    prompt_per_second: over(1000 * computed, promptMs),
    predicted_n: predicted,
    predicted_ms: rounded(generationMs),
    predicted_per_token_ms: over(generationMs, behind),
    predicted_per_second: over(1000 * Math.max(0, behind), generationMs),
    draft_n: sum(({ draftTokens }) => draftTokens),
    draft_n_accepted: sum(({ acceptedTokens }) => acceptedTokens),
  };
}

const rounded = (ms: number): number => Math.round(ms * 1000) / 1000;
const over = (amount: number, by: number): number | null => (by > 0 ? rounded(amount / by) : null);
