// Owns: POST /v1/completions: its body as one ChatJob a prompt, and deltas as text choices, with echo and log-probabilities
// of the prompt.
import { UserError } from "../../base/errors.js";
import type { TokenLogprobs } from "../../engine/types.js";
import { ranked } from "../../session/collect.js";
import type { Session } from "../../session/session.js";
import type { ChatJob, DeltaToken } from "../../session/types.js";
import type { Exchange } from "../exchange.js";
import { sharedJob } from "./job.js";
import { type CompletionLogprobs, completionLogprobs } from "./logprobs.js";
import { heading, respondStream, respondWhole, type Shape, wishesOf } from "./respond.js";
import type { CompletionRequest } from "./schema.js";

/** OpenAI's default for this route. */
const defaultMaxTokens = 16;

export async function completion(exchange: Exchange, body: CompletionRequest): Promise<void> {
  const jobs = completionJobs(body);
  const { session } = exchange.model;
  const shape = new CompletionShape(
    session,
    jobs,
    { echo: body.echo ?? false, n: body.n ?? 1, logprobs: body.logprobs !== undefined },
    body.return_token_ids ?? session.text === undefined,
  );
  const head = heading("cmpl", "text_completion", exchange.model);
  const respond = body.stream ? respondStream : respondWhole;
  await respond(exchange, jobs, head, shape, wishesOf(body));
}

export function completionJobs(body: CompletionRequest): ChatJob[] {
  const n = body.n ?? 1;
  const candidates = body.best_of ?? n;
  if (candidates < n || (candidates > n && body.stream)) {
    const what = candidates < n ? `must be at least "n" (${n})` : 'cannot be more than "n" in a stream';
    throw new UserError(`The field "best_of" ${what}.`, { param: "best_of" });
  }
  const echo = body.echo ?? false;
  if (body.suffix && echo) {
    throw new UserError('The field "echo" does not go with "suffix": the answer has text on both sides.', {
      param: "echo",
    });
  }
  if (body.suffix && typeof (body.prompt ?? "") !== "string") {
    throw new UserError('With "suffix" the field "prompt" must be one string.', { param: "prompt" });
  }
  if (body.max_tokens === 0 && !echo) {
    throw new UserError('With "max_tokens": 0 there is nothing to answer, unless "echo" is true.', {
      param: "max_tokens",
    });
  }
  const common = {
    ...sharedJob(body),
    parseSpecial: body.parse_special ?? false,
    suffix: body.suffix || undefined,
    n: candidates,
    maxTokens: body.max_tokens ?? defaultMaxTokens,
    // The best are those whose tokens are likeliest on average.
    logprobs: body.logprobs ?? (candidates > n ? 0 : undefined),
    promptLogprobs: echo ? body.logprobs : undefined,
  };
  return prompts(body.prompt).map((prompt) => ({ ...common, ...prompt }));
}

function prompts(prompt: CompletionRequest["prompt"]): Pick<ChatJob, "prompt" | "promptIds">[] {
  if (prompt === undefined) return [{ prompt: "" }];
  if (typeof prompt === "string") return [{ prompt }];
  if (prompt.length === 0 || typeof prompt[0] === "number") return [{ promptIds: Int32Array.from(prompt as number[]) }];
  return (prompt as (string | number[])[]).map((one) =>
    typeof one === "string" ? { prompt: one } : { promptIds: Int32Array.from(one) },
  );
}

class CompletionShape implements Shape {
  /** Of each prompt with echo: its text, for offsets of what follows. */
  private readonly echoed: string[] = [];

  constructor(
    private readonly session: Session,
    private readonly jobs: readonly ChatJob[],
    /** n: choices a prompt that are answered with, the best of those that were made. */
    private readonly asked: { readonly echo: boolean; readonly n: number; readonly logprobs: boolean },
    private readonly withIds: boolean,
  ) {}

  chunk(promptIndex: number, delta: Parameters<Shape["chunk"]>[1]) {
    const job = this.jobs[promptIndex];
    if (delta.type === "start") {
      if (!this.asked.echo && !this.withIds) return null;
      const logprobs = this.echoPrompt(promptIndex, delta.promptIds, delta.promptLogprobs);
      const choices = Array.from({ length: job.n }, (_, choice) => ({
        index: promptIndex * job.n + choice,
        text: this.asked.echo ? this.echoed[promptIndex] : "",
        logprobs,
        finish_reason: null,
        ...(this.withIds ? { prompt_token_ids: [...delta.promptIds], token_ids: [] } : {}),
      }));
      return { choices };
    }
    const index = promptIndex * job.n + delta.index;
    const ids = this.withIds ? { token_ids: delta.tokens.map(({ id }) => id) } : {};
    if (delta.type === "content") {
      const logprobs = this.logprobs(promptIndex, delta.tokens);
      return { choices: [{ index, text: delta.text, logprobs, finish_reason: null, ...ids }] };
    }
    if (delta.type !== "finish") return null; // plain prompts have neither reasoning nor calls
    const { reason, stop } = delta;
    return { choices: [{ index, text: "", logprobs: null, finish_reason: reason, stop_reason: stop ?? null, ...ids }] };
  }

  whole(answers: Parameters<Shape["whole"]>[0]) {
    const choices = answers.flatMap(({ promptIds, promptLogprobs, choices }, promptIndex) => {
      const prompt = this.asked.echo ? this.echoPrompt(promptIndex, promptIds, promptLogprobs) : null;
      const best = choices.length > this.asked.n ? ranked(choices).slice(0, this.asked.n) : choices;
      return best.map(({ text, tokens, silentTokens, reason, stop }, index) => ({
        index: promptIndex * this.asked.n + index,
        text: (this.echoed[promptIndex] ?? "") + text,
        logprobs: joined(prompt, this.logprobs(promptIndex, tokens)),
        finish_reason: reason,
        stop_reason: stop ?? null,
        ...(this.withIds
          ? { prompt_token_ids: [...promptIds], token_ids: [...tokens, ...silentTokens].map(({ id }) => id) }
          : {}),
      }));
    });
    return { choices };
  }

  /** Fixes the prompt's text, as the caller gave it or as its ids decode; its log-probabilities where they are wanted. */
  private echoPrompt(
    promptIndex: number,
    promptIds: Int32Array,
    scores: readonly (TokenLogprobs | null)[] | undefined,
  ): CompletionLogprobs | null {
    if (!this.asked.echo) return null;
    const { text, offsets } = this.session.decodePrompt(promptIds);
    this.echoed[promptIndex] = this.jobs[promptIndex].prompt ?? text;
    if (scores === undefined) return null;
    const tokens = Array.from(promptIds, (id, i) => ({ id, offset: offsets[i], logprobs: scores[i] }));
    return completionLogprobs(this.session, tokens, 0);
  }

  private logprobs(promptIndex: number, tokens: readonly DeltaToken[]): CompletionLogprobs | null {
    if (!this.asked.logprobs) return null;
    return completionLogprobs(this.session, tokens, this.echoed[promptIndex]?.length ?? 0);
  }
}

function joined(prompt: CompletionLogprobs | null, answer: CompletionLogprobs | null): CompletionLogprobs | null {
  if (prompt === null || answer === null) return answer;
  return {
    tokens: [...prompt.tokens, ...answer.tokens],
    token_logprobs: [...prompt.token_logprobs, ...answer.token_logprobs],
    top_logprobs: [...prompt.top_logprobs, ...answer.top_logprobs],
    text_offset: [...prompt.text_offset, ...answer.text_offset],
  };
}
