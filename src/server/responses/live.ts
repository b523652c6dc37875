// Owns: background responses that this server works on: their events, for whoever follows them, and their end. Events are kept
// for a while after it; the response itself is in the database.
import { UserError } from "../../base/errors.js";
import { cancelled } from "../inner.js";
import type { ResponseBuilder, ResponseEvent } from "./build.js";

const keptMs = 5 * 60_000;
/** That have not ended. */
const mostOpen = 1000;

export class LiveResponse {
  readonly events: ResponseEvent[] = [];
  private readonly cancelling = new AbortController();
  private wake: () => void = () => {};
  private news: Promise<void> = new Promise((resolve) => (this.wake = resolve));

  constructor(
    readonly builder: ResponseBuilder,
    /** Who may follow it. */
    readonly client: string,
  ) {}

  get signal(): AbortSignal {
    return this.cancelling.signal;
  }

  cancel(): void {
    this.cancelling.abort(cancelled());
  }

  push(events: readonly ResponseEvent[]): void {
    this.events.push(...events);
    const { wake } = this;
    this.news = new Promise((resolve) => (this.wake = resolve));
    wake();
  }

  /** @param after the number of the last event that is known; -1: none */
  async *follow(after: number, signal: AbortSignal): AsyncGenerator<ResponseEvent> {
    const gone = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    for (let next = after + 1; !signal.aborted; ) {
      const { news } = this;
      while (next < this.events.length) yield this.events[next++];
      if (this.builder.ended) return;
      await Promise.race([news, gone]);
    }
  }

  async ended(): Promise<void> {
    while (!this.builder.ended) await this.news;
  }
}

export class LiveResponses {
  private readonly all = new Map<string, LiveResponse>();
  private readonly work = new Set<Promise<void>>();

  find(client: string, id: string): LiveResponse | undefined {
    const live = this.all.get(id);
    return live?.client === client ? live : undefined;
  }

  /** Throws UserError where there are too many already. */
  checkRoom(): void {
    if (this.work.size < mostOpen) return;
    throw new UserError(`This server works on ${mostOpen} background responses already.`, {
      status: 429,
      code: "too_many_background_responses",
      retryAfter: 30,
    });
  }

  /** @param work settles when the response has ended */
  begin(live: LiveResponse, work: () => Promise<void>): void {
    const { id } = live.builder.response;
    this.all.set(id, live);
    const running = work().finally(() => {
      this.work.delete(running);
      setTimeout(() => this.all.delete(id), keptMs).unref();
    });
    this.work.add(running);
  }

  /** Cancels those that somebody else has ended. */
  drop(isOurs: (id: string) => boolean): void {
    for (const [id, live] of this.all) if (!live.builder.ended && !isOurs(id)) live.cancel();
  }

  async settled(): Promise<void> {
    await Promise.allSettled(this.work);
  }
}
