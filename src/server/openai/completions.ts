// Owns: POST /v1/completions: its body as one ChatJob a prompt, and deltas as text choices, with echo and log-probabilities
// of the prompt.
import { UserError } from "../../base/errors.js";
import type { TokenLogprobs } from "../../engine/types.js";
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
    body.echo ?? false,
    body.return_token_ids ?? session.text === undefined,
  );
  const head = heading("cmpl", "text_completion", exchange.model);
  const respond = body.stream ? respondStream : respondWhole;
  await respond(exchange, jobs, head, shape, wishesOf(body));
}

export function completionJobs(body: CompletionRequest): ChatJob[] {
  if (body.best_of !== undefined && body.best_of !== (body.n ?? 1)) {
    throw new UserError(
      'The field "best_of" must equal "n", or be left out: picking the best of more is not supported.',
      {
        code: "unsupported_field",
        param: "best_of",
      },
    );
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
    maxTokens: body.max_tokens ?? defaultMaxTokens,
    logprobs: body.logprobs,
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
    private readonly echo: boolean,
    private readonly withIds: boolean,
  ) {}

  chunk(promptIndex: number, delta: Parameters<Shape["chunk"]>[1]) {
    const job = this.jobs[promptIndex];
    if (delta.type === "start") {
      if (!this.echo && !this.withIds) return null;
      const logprobs = this.echoPrompt(promptIndex, delta.promptIds, delta.promptLogprobs);
      const choices = Array.from({ length: job.n }, (_, choice) => ({
        index: promptIndex * job.n + choice,
        text: this.echo ? this.echoed[promptIndex] : "",
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
      const prompt = this.echo ? this.echoPrompt(promptIndex, promptIds, promptLogprobs) : null;
      return choices.map(({ index, text, tokens, silentTokens, reason, stop }) => ({
        index: promptIndex * this.jobs[promptIndex].n + index,
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
    if (!this.echo) return null;
    const { text, offsets } = this.session.decodePrompt(promptIds);
    this.echoed[promptIndex] = this.jobs[promptIndex].prompt ?? text;
    if (scores === undefined) return null;
    const tokens = Array.from(promptIds, (id, i) => ({ id, offset: offsets[i], logprobs: scores[i] }));
    return completionLogprobs(this.session, tokens, 0);
  }

  private logprobs(promptIndex: number, tokens: readonly DeltaToken[]): CompletionLogprobs | null {
    if (this.jobs[promptIndex].logprobs === undefined) return null;
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
