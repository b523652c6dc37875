// Owns: answers as Ollama gives them: objects with text, thinking and calls, the last one with a reason and figures, as a
// stream of lines or as one object. Durations are whole nanoseconds.
import type { Prepared, Session } from "../../session/session.js";
import type { Delta, DeltaToken } from "../../session/types.js";
import { answered, type Exchange, interrupted, running } from "../exchange.js";
import { type ChatLogprobs, chatLogprobs } from "../openai/logprobs.js";
import { EventStream, jsonLines } from "../stream.js";

/** What an object brings. */
export interface Piece {
  readonly text: string;
  readonly thinking?: string;
  readonly calls?: readonly object[];
  readonly logprobs?: ChatLogprobs["content"];
}

export interface Asked {
  /** As the caller named it. */
  readonly model: string;
  readonly prepared: Prepared;
  readonly loadMs: number;
  /** performance.now() when the request came. */
  readonly from: number;
  /** Into the field that the route has for it. */
  wrap(piece: Piece): object;
  /** Fields of the last object. */
  last?(ids: readonly number[]): object;
}

export const nanoseconds = (ms: number): number => Math.max(0, Math.round(ms * 1e6));

export async function respondStream(exchange: Exchange, asked: Asked): Promise<void> {
  const { request, reply, times } = exchange;
  const { prepared } = asked;
  await running(exchange, [prepared], async (signal) => {
    const answer = new Answer(exchange.model.session, asked);
    // An object that brings nothing: to every client a piece of the answer like others.
    const keepAlive = () => jsonLines.frame(answer.object({ text: "" }, false));
    const stream = new EventStream(request, reply, times, { ...jsonLines, keepAlive });
    try {
      for await (const object of objects(exchange, asked, answer, signal)) await stream.send(object);
      if (signal.aborted) throw interrupted(exchange);
      await stream.done();
    } catch (error) {
      await stream.fail(error);
    }
  });
}

export async function respondWhole(exchange: Exchange, asked: Asked): Promise<void> {
  const { session } = exchange.model;
  await running(exchange, [asked.prepared], async (signal) => {
    const answer = new Answer(session, asked);
    const pieces: Piece[] = [];
    for await (const delta of answered(exchange, asked.prepared, signal)) pieces.push(...answer.add(delta));
    if (signal.aborted) throw interrupted(exchange);
    exchange.reply.send(answer.object(joined(pieces), true));
  });
}

async function* objects(exchange: Exchange, asked: Asked, answer: Answer, signal: AbortSignal) {
  for await (const delta of answered(exchange, asked.prepared, signal)) {
    for (const piece of answer.add(delta)) yield answer.object(piece, false);
  }
  yield answer.object({ text: "" }, true);
}

function joined(pieces: readonly Piece[]): Piece {
  const thinking = pieces.map((piece) => piece.thinking ?? "").join("");
  const calls = pieces.flatMap((piece) => piece.calls ?? []);
  const logprobs = pieces.flatMap((piece) => piece.logprobs ?? []);
  return {
    text: pieces.map(({ text }) => text).join(""),
    ...(thinking === "" ? {} : { thinking }),
    ...(calls.length === 0 ? {} : { calls }),
    ...(logprobs.length === 0 ? {} : { logprobs }),
  };
}

class Answer {
  private readonly ids: number[] = [];
  private readonly calls: { id: string; name: string; arguments: string }[] = [];
  private given = 0;
  private finish: (Delta & { type: "finish" }) | undefined;

  constructor(
    private readonly session: Session,
    private readonly asked: Asked,
  ) {}

  add(delta: Delta): Piece[] {
    if (delta.type === "start") return [];
    this.ids.push(...delta.tokens.map(({ id }) => id));
    if (delta.type === "finish") {
      this.finish = delta;
      return this.wholeCalls(this.calls.length);
    }
    if (delta.type !== "toolCall") {
      const text = delta.type === "content" ? { text: delta.text } : { text: "", thinking: delta.text };
      return [...this.wholeCalls(this.calls.length), { ...text, ...this.logprobs(delta.tokens) }];
    }
    const { call, id, name } = delta;
    const before = this.calls[call] ?? { id, name: name ?? "", arguments: "" };
    this.calls[call] = { ...before, arguments: before.arguments + delta.arguments };
    return this.wholeCalls(call);
  }

  object(piece: Piece, done: boolean): object {
    const { model, wrap } = this.asked;
    const head = { model, created_at: new Date().toISOString(), ...wrap(piece), done };
    const logprobs = piece.logprobs === undefined ? {} : { logprobs: piece.logprobs };
    return done ? { ...head, ...logprobs, ...this.end() } : { ...head, ...logprobs };
  }

  /** Calls before this one, once. One whose arguments were cut off is none. */
  private wholeCalls(before: number): Piece[] {
    const calls = this.calls.slice(this.given, before).flatMap((call, at) => {
      const given = parsed(call.arguments);
      if (given === undefined) return [];
      return [{ id: call.id, function: { index: this.given + at, name: call.name, arguments: given } }];
    });
    this.given = Math.max(this.given, before);
    return calls.length === 0 ? [] : [{ text: "", calls }];
  }

  private logprobs(tokens: readonly DeltaToken[]): Pick<Piece, "logprobs"> {
    if (this.asked.prepared.job.logprobs === undefined) return {};
    return { logprobs: chatLogprobs(this.session, tokens).content };
  }

  private end(): object {
    const { reason = "stop", timings } = this.finish ?? {};
    const { from, loadMs, last } = this.asked;
    return {
      done_reason: reason === "length" ? "length" : "stop",
      ...last?.([...this.asked.prepared.request.promptIds, ...this.ids]),
      total_duration: nanoseconds(performance.now() - from),
      load_duration: nanoseconds(loadMs),
      prompt_eval_count: timings?.promptTokens ?? 0,
      prompt_eval_duration: nanoseconds(timings?.promptMs ?? 0),
      eval_count: timings?.generatedTokens ?? 0,
      eval_duration: nanoseconds(timings?.generationMs ?? 0),
    };
  }
}

function parsed(text: string): object | undefined {
  try {
    return JSON.parse(text === "" ? "{}" : text) as object;
  } catch {
    return undefined;
  }
}
