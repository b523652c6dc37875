// Owns: a stream of deltas gathered into one whole answer, for callers that do not stream.
import type { ErrorRecord, FinishReason, Timings, TokenLogprobs } from "../engine/types.js";
import type { Delta, DeltaToken, ToolCall } from "./types.js";

export interface Choice {
  readonly index: number;
  readonly text: string;
  readonly reasoning: string;
  readonly reasoningTokens: number;
  readonly toolCalls: readonly ToolCall[];
  /** Those whose text is in the answer. */
  readonly tokens: readonly DeltaToken[];
  /** The others: see Delta. */
  readonly silentTokens: readonly DeltaToken[];
  readonly reason: FinishReason;
  readonly stop?: string | number;
  readonly error?: ErrorRecord;
  readonly timings: Timings;
}

export interface Answer {
  readonly promptIds: Int32Array;
  readonly cachedTokens: number;
  readonly promptLogprobs?: readonly (TokenLogprobs | null)[];
  /** In order of index. */
  readonly choices: readonly Choice[];
}

export async function collect(deltas: AsyncIterable<Delta>): Promise<Answer> {
  let start: (Delta & { type: "start" }) | undefined;
  const open = new Map<number, Gathered>();
  const choices: Choice[] = [];
  for await (const delta of deltas) {
    if (delta.type === "start") {
      start = delta;
      continue;
    }
    const { index } = delta;
    const gathered = open.get(index) ?? { text: "", reasoning: "", reasoningTokens: 0, toolCalls: [], tokens: [] };
    open.set(index, gathered);
    if (delta.type === "finish") {
      const { reason, stop, error, timings, tokens } = delta;
      choices.push({ index, ...gathered, silentTokens: tokens, reason, stop, error, timings });
    } else gather(gathered, delta);
  }
  choices.sort((a, b) => a.index - b.index);
  return {
    promptIds: start?.promptIds ?? new Int32Array(0),
    cachedTokens: start?.cachedTokens ?? 0,
    promptLogprobs: start?.promptLogprobs,
    choices,
  };
}

/** The likeliest first, on average of their tokens; of a job that asked for log-probabilities. */
export function ranked(choices: readonly Choice[]): Choice[] {
  return choices.toSorted((a, b) => meanLogprob(b) - meanLogprob(a));
}

function meanLogprob({ tokens, silentTokens }: Choice): number {
  const all = [...tokens, ...silentTokens];
  return all.reduce((sum, { logprobs }) => sum + (logprobs?.logprob ?? 0), 0) / Math.max(1, all.length);
}

/** One choice, as far as it has come. */
export interface Gathered {
  text: string;
  reasoning: string;
  reasoningTokens: number;
  toolCalls: ToolCall[];
  tokens: DeltaToken[];
}

/** Adds what a delta brings. */
export function gather(gathered: Gathered, delta: Exclude<Delta, { type: "start" | "finish" }>): void {
  gathered.tokens.push(...delta.tokens);
  if (delta.type === "content") gathered.text += delta.text;
  else if (delta.type === "reasoning") {
    gathered.reasoning += delta.text;
    gathered.reasoningTokens += delta.tokens.length;
  } else {
    const { call, id, name } = delta;
    const before = gathered.toolCalls[call] ?? { id, name: name ?? "", arguments: "" };
    gathered.toolCalls[call] = { ...before, arguments: before.arguments + delta.arguments };
  }
}
