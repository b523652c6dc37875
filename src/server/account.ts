// Owns: what one job of a request has used, as its deltas go by: tokens, times, how it ended. The log line, the metrics and
// headers that tell timings all read it; it decides nothing.
import type { FastifyRequest } from "fastify";
import type { FinishReason, GenerateRequest } from "../engine/types.js";
import type { Delta } from "../session/types.js";

/** Hears of tokens as they come. */
export interface TokenListener {
  /** @param seconds since the request arrived */
  first(seconds: number): void;
  /** @param seconds since the choice's last token */
  next(seconds: number): void;
  tokens(count: number): void;
}

export class Account {
  promptTokens: number;
  cachedTokens = 0;
  generatedTokens = 0;
  /** Milliseconds, of the choice that took longest. */
  queueMs = 0;
  promptMs = 0;
  generationMs = 0;
  draftTokens = 0;
  acceptedTokens = 0;
  /** From the request's arrival; undefined: no token came. */
  firstTokenMs: number | undefined;
  readonly finished: FinishReason[] = [];
  /** Of each choice: when its newest token came. */
  private readonly lastAt: number[] = [];

  /** @param arrivedAt as performance.now() has it: when the request's head had come */
  constructor(
    readonly model: string,
    readonly request: GenerateRequest,
    readonly arrivedAt: number,
    private readonly listener: TokenListener,
  ) {
    this.promptTokens = request.promptIds.length;
  }

  get elapsedMs(): number {
    return performance.now() - this.arrivedAt;
  }

  add(delta: Delta): void {
    if (delta.type === "start") {
      this.cachedTokens = delta.cachedTokens;
      return;
    }
    const { index, tokens } = delta;
    if (tokens.length > 0) this.count(index, tokens.length);
    if (delta.type !== "finish") return;
    const { timings, reason } = delta;
    this.finished.push(reason);
    this.queueMs = Math.max(this.queueMs, timings.queueMs);
    this.promptMs = Math.max(this.promptMs, timings.promptMs);
    this.generationMs = Math.max(this.generationMs, timings.generationMs);
    this.draftTokens += timings.draftTokens;
    this.acceptedTokens += timings.acceptedTokens;
  }

  private count(index: number, tokens: number): void {
    const now = performance.now();
    this.generatedTokens += tokens;
    this.listener.tokens(tokens);
    if (this.firstTokenMs === undefined) {
      this.firstTokenMs = now - this.arrivedAt;
      this.listener.first(this.firstTokenMs / 1000);
    }
    const last = this.lastAt[index];
    if (last !== undefined) this.listener.next((now - last) / 1000);
    this.lastAt[index] = now;
  }
}

const accounts = new WeakMap<FastifyRequest, Account[]>();

export function keepAccount(request: FastifyRequest, account: Account): void {
  const kept = accounts.get(request);
  if (kept === undefined) accounts.set(request, [account]);
  else kept.push(account);
}

/** One a prompt; none where the request was refused, or asked no model. */
export function accountsOf(request: FastifyRequest): readonly Account[] {
  return accounts.get(request) ?? [];
}
