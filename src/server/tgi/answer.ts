// Owns: answers in TGI's shapes: whole with details and the best of several, or token by token; and the headers that tell
// what an answer took.
import { type Choice, collect, ranked } from "../../session/collect.js";
import type { Delta, DeltaToken } from "../../session/types.js";
import { accountsOf } from "../account.js";
import { answered, type Exchange, interrupted, running } from "../exchange.js";
import { EventStream, type Framing, serverSentEvents } from "../stream.js";
import type { Asked } from "./job.js";
import { alone, topTokens, type WireToken, withText } from "./tokens.js";

/** TGI's streams just end. */
const events: Framing = { ...serverSentEvents, end: "" };

/** wrap: POST / answers with a list of one. */
export async function respondWhole(exchange: Exchange, asked: Asked, wrap: (answer: object) => object): Promise<void> {
  const { reply, model } = exchange;
  const prepared = model.session.prepare(asked.job);
  await running(exchange, [prepared], async (signal) => {
    const { choices, promptIds, promptLogprobs } = await collect(answered(exchange, prepared, signal));
    if (signal.aborted) throw interrupted(exchange);
    const [best, ...others] = ranked(choices);
    const prefill = asked.prefill
      ? Array.from(promptIds, (id, i) => {
          const { text, logprob } = alone(model.session, id, promptLogprobs?.[i]?.logprob);
          return { id, text, logprob };
        })
      : [];
    const parts = (choice: Choice) => ({ ...details(exchange, asked, choice), prefill });
    const text = (choice: Choice) => (asked.fullText ? asked.inputs : "") + choice.text;
    tellTimes(exchange, asked);
    reply.send(
      wrap({
        generated_text: text(best),
        ...(asked.details || asked.prefill
          ? {
              details: {
                ...parts(best),
                ...(others.length === 0
                  ? {}
                  : { best_of_sequences: others.map((one) => ({ generated_text: text(one), ...parts(one) })) }),
              },
            }
          : {}),
      }),
    );
  });
}

function details({ model: { session } }: Exchange, asked: Asked, choice: Choice): object {
  const { text, tokens, silentTokens, index } = choice;
  const all = [...tokens, ...silentTokens];
  return {
    finish_reason: finishReason(choice),
    generated_tokens: choice.timings.generatedTokens,
    seed: asked.seed === null ? null : asked.seed + index,
    tokens: [
      ...withText(session, tokens, text, 0),
      ...silentTokens.map(({ id, logprobs }) => alone(session, id, logprobs?.logprob)),
    ],
    ...(asked.topTokens > 0 ? { top_tokens: all.map(({ logprobs }) => topTokens(session, logprobs)) } : {}),
  };
}

function finishReason({ reason, stop }: { reason: string; stop?: string | number }): string {
  if (reason !== "stop") return "length";
  return typeof stop === "string" ? "stop_sequence" : "eos_token";
}

export async function respondStream(exchange: Exchange, asked: Asked): Promise<void> {
  const { request, reply, times, model } = exchange;
  const prepared = model.session.prepare(asked.job);
  await running(exchange, [prepared], async (signal) => {
    reply.header("x-compute-type", model.session.limits.device).header("x-compute-characters", asked.inputs.length);
    const stream = new EventStream(request, reply, times, events);
    const pieces = new Pieces(exchange, asked, prepared.request.maxTokens, prepared.request.promptIds.length);
    try {
      for await (const delta of answered(exchange, prepared, signal)) {
        for (const event of pieces.add(delta)) await stream.send(event);
      }
      if (signal.aborted) throw interrupted(exchange);
      await stream.done();
    } catch (error) {
      await stream.fail(error);
    }
  });
}

/** One event a token; the last one carries the whole text. Where a token may be the last it waits until that is known. */
class Pieces {
  private text = "";
  private count = 0;
  private held: { token: WireToken; source: DeltaToken } | undefined;

  constructor(
    private readonly exchange: Exchange,
    private readonly asked: Asked,
    private readonly maxTokens: number,
    private readonly inputLength: number,
  ) {}

  add(delta: Delta): object[] {
    const { session } = this.exchange.model;
    if (delta.type === "content") {
      const tokens = withText(session, delta.tokens, delta.text, this.text.length);
      this.text += delta.text;
      if (tokens.length === 0) {
        // The rest of a token's text that might have become a stop sequence.
        if (this.held) this.held.token = { ...this.held.token, text: this.held.token.text + delta.text };
        return [];
      }
      const sent = this.push(tokens, delta.tokens);
      return this.mayEnd() ? sent : [...sent, ...this.release()];
    }
    if (delta.type !== "finish") return [];
    const silent = delta.tokens.map(({ id, logprobs }) => alone(session, id, logprobs?.logprob));
    return [...this.push(silent, delta.tokens), ...this.release(delta)];
  }

  private push(tokens: readonly WireToken[], sources: readonly DeltaToken[]): object[] {
    return tokens.flatMap((token, i) => {
      const before = this.release();
      this.held = { token, source: sources[i] };
      this.count += 1;
      return before;
    });
  }

  private mayEnd(): boolean {
    return this.count >= this.maxTokens || this.asked.job.stop.some((stop) => this.text.endsWith(stop));
  }

  private release(finish?: Delta & { type: "finish" }): object[] {
    if (this.held === undefined) return [];
    const { token, source } = this.held;
    this.held = undefined;
    const { asked, inputLength } = this;
    const event = {
      index: this.count,
      token,
      ...(asked.topTokens > 0 ? { top_tokens: topTokens(this.exchange.model.session, source.logprobs) } : {}),
    };
    if (finish === undefined) return [{ ...event, generated_text: null, details: null }];
    const about = {
      finish_reason: finishReason(finish),
      generated_tokens: finish.timings.generatedTokens,
      seed: asked.seed,
      input_length: inputLength,
    };
    const generated_text = (asked.fullText ? asked.inputs : "") + this.text;
    return [{ ...event, generated_text, details: asked.details ? about : null }];
  }
}

/** TGI's headers: milliseconds, but x-compute-time in seconds. */
function tellTimes({ request, reply, model }: Exchange, { inputs }: Asked): void {
  const [account] = accountsOf(request);
  const total = account.elapsedMs;
  const inference = account.promptMs + account.generationMs;
  const headers: Record<string, number | string> = {
    "x-compute-type": model.session.limits.device,
    "x-compute-time": (total / 1000).toFixed(6),
    "x-compute-characters": inputs.length,
    "x-total-time": Math.round(total),
    "x-validation-time": Math.max(0, Math.round(total - account.queueMs - inference)),
    "x-queue-time": Math.round(account.queueMs),
    "x-inference-time": Math.round(inference),
    "x-time-per-token": Math.round(inference / Math.max(1, account.generatedTokens)),
    "x-prompt-tokens": account.promptTokens,
    "x-generated-tokens": account.generatedTokens,
  };
  reply.headers(headers);
}
