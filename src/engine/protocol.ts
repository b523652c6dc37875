// Owns: what a client and an engine host say to each other, whatever carries it (a thread, a process, the same thread).
// Everything survives structured clone. Tokens travel as one flat array a step; starts and finishes, which are rare, as
// objects.
import type { FinishEvent } from "./loop.js";
import type { EngineStats, GenerateRequest, ModelLimits, TokenLogprobs } from "./types.js";

/** One end of a carrier. Messages arrive in order; nothing arrives after onClose. */
export interface Port {
  post(message: unknown): void;
  onMessage(handler: (message: unknown) => void): void;
  /** Once, when the other end is gone; reason is for people: "killed by SIGKILL". */
  onClose(handler: (reason: string) => void): void;
  /** Ends the other end too, at once. */
  close(): void;
}

export type ToHost =
  | { readonly type: "load"; readonly options: unknown }
  /** key: the client's number for the request, in events. */
  | { readonly type: "submit"; readonly key: number; readonly request: GenerateRequest }
  | { readonly type: "abort"; readonly key: number; readonly index?: number }
  | { readonly type: "stats"; readonly query: number }
  | { readonly type: "close" };

export interface WireError {
  readonly message: string;
  readonly status: number;
  readonly code: string;
}

export type FromHost =
  | { readonly type: "progress"; readonly done: number; readonly total: number }
  | { readonly type: "loaded"; readonly limits: ModelLimits }
  | { readonly type: "failed"; readonly error: WireError }
  | { readonly type: "stats"; readonly query: number; readonly stats: EngineStats }
  | EventsMessage;

/**
 * What one step brought, or one call. A request's start comes before its tokens, a choice's finish after them.
 *
 *   tokens   4 numbers a token: key, index, id, best; best −1: no logprobs, else how many of the best follow
 *   values   for each token with logprobs: logprob, rank, then best × (id, logprob)
 */
export interface EventsMessage {
  readonly type: "events";
  readonly starts: readonly StartRecord[];
  readonly tokens: Int32Array;
  readonly values: Float64Array;
  readonly finishes: readonly FinishRecord[];
}

export interface StartRecord {
  readonly key: number;
  readonly cachedTokens: number;
  readonly promptLogprobs?: readonly (TokenLogprobs | null)[];
}

export interface FinishRecord {
  readonly key: number;
  readonly event: FinishEvent;
}

export const tokenInts = 4;

/** Two ends in one thread: what a test or a page without workers uses. Messages are cloned and come a task later. */
export function portPair(): [client: Port, host: Port] {
  const ends = [new LocalPort(), new LocalPort()] as const;
  ends[0].other = ends[1];
  ends[1].other = ends[0];
  return [ends[0], ends[1]];
}

class LocalPort implements Port {
  other!: LocalPort;
  private handler: (message: unknown) => void = () => {};
  private closeHandler: (reason: string) => void = () => {};
  private closed = false;

  post(message: unknown): void {
    if (this.closed) return;
    const copy = structuredClone(message);
    setTimeout(() => this.other.handler(copy), 0);
  }

  onMessage(handler: (message: unknown) => void): void {
    this.handler = handler;
  }

  onClose(handler: (reason: string) => void): void {
    this.closeHandler = handler;
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.other.closed = true;
    // after what has been posted
    setTimeout(() => {
      this.closeHandler("it was closed");
      this.other.closeHandler("it was closed");
    }, 0);
  }
}
