// Owns: what client.ts and host.ts say to each other, over any carrier: a worker thread, a child process, or a channel in
// one thread. Messages survive structured clone. Requests are named by numbers (handles) that the client gives out.
import type { EngineStats, ErrorRecord, GenerateRequest, ModelLimits, Timeline, TokenEvent } from "./types.js";

export interface Port {
  post(message: unknown): void;
  onMessage(listener: (message: unknown) => void): void;
  /** Called once, when the other side is gone, with what is known of why. Never before the messages it had sent. */
  onClose(listener: (reason: string) => void): void;
  /** Ends the carrier and the other side with it. */
  close(): void;
}

export type ClientMessage =
  | { readonly type: "load"; readonly spec: unknown }
  | { readonly type: "submit"; readonly handle: number; readonly request: GenerateRequest }
  | { readonly type: "abort"; readonly handle: number; readonly index?: number }
  | { readonly type: "stats"; readonly ticket: number }
  /** steps: the newest so many. */
  | { readonly type: "timeline"; readonly ticket: number; readonly steps: number }
  | { readonly type: "embed"; readonly ticket: number; readonly texts: readonly Int32Array[] }
  /** Its vectors are not wanted any more; there is no answer. */
  | { readonly type: "abandon"; readonly ticket: number }
  /** Threads that it may use from its next step on. */
  | { readonly type: "grant"; readonly threads: number }
  | { readonly type: "close" };

export type HandledEvent = readonly [handle: number, event: TokenEvent];

export type HostMessage =
  | { readonly type: "progress"; readonly done: number; readonly total: number }
  | { readonly type: "ready"; readonly limits: ModelLimits }
  | { readonly type: "failed"; readonly error: ErrorRecord }
  /**
   * What one step brought, in the order starts, tokens, others. tokens: (handle, index, id) for each token that comes
   * without logprobs; those with them, and finishes, are among the others.
   */
  | {
      readonly type: "events";
      readonly starts: readonly HandledEvent[];
      readonly tokens: Int32Array;
      readonly others: readonly HandledEvent[];
    }
  | { readonly type: "stats"; readonly ticket: number; readonly stats: EngineStats }
  /** Undefined: the model is an encoder, which has no steps. */
  | { readonly type: "timeline"; readonly ticket: number; readonly timeline: Timeline | undefined }
  | { readonly type: "embedded"; readonly ticket: number; readonly vectors: readonly Float32Array[] }
  | { readonly type: "notEmbedded"; readonly ticket: number; readonly error: ErrorRecord };

/** Two ends in one thread: what one posts the other gets in a later microtask, as structured clone would carry it. */
export function channel(): [Port, Port] {
  const ends = [new ChannelEnd(), new ChannelEnd()] as const;
  ends[0].peer = ends[1];
  ends[1].peer = ends[0];
  return [ends[0], ends[1]];
}

class ChannelEnd implements Port {
  peer!: ChannelEnd;
  private message: (message: unknown) => void = () => {};
  private gone: (reason: string) => void = () => {};
  private open = true;

  post(message: unknown): void {
    if (!this.open) return;
    const copy = structuredClone(message);
    queueMicrotask(() => this.peer.open && this.peer.message(copy));
  }

  onMessage(listener: (message: unknown) => void): void {
    this.message = listener;
  }

  onClose(listener: (reason: string) => void): void {
    this.gone = listener;
  }

  close(): void {
    if (!this.open) return;
    this.open = false;
    queueMicrotask(() => this.peer.ended());
  }

  private ended(): void {
    if (!this.open) return;
    this.open = false;
    this.gone("the channel was closed");
  }
}
