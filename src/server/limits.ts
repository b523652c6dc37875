// Owns: how much work may wait for one model, and what a refused caller is told: 429 with a Retry-After that comes from the
// measured rate at which requests end. The engine decides what runs; this only counts: choices, and the tokens that they
// may come to (prompt and most of an answer).
import { UserError } from "../base/errors.js";

/** Departures that the rate is measured over. */
const remembered = 64;

interface Open {
  readonly at: number;
  readonly choices: number;
  readonly tokens: number;
  readonly client: string | undefined;
}

export class QueueLimit {
  private open = 0;
  private openTokens = 0;
  private readonly requests = new Set<Open>();
  private readonly departures: Departures;

  /**
   * @param concurrent choices that the engine runs at once
   * @param maxWaiting choices that may wait beyond those
   * @param maxTokens that all open requests together may come to; one alone may come to more
   * @param now milliseconds
   */
  constructor(
    readonly concurrent: number,
    readonly maxWaiting: number,
    readonly maxTokens: number = Number.POSITIVE_INFINITY,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.departures = new Departures(now);
  }

  get running(): number {
    return Math.min(this.open, this.concurrent);
  }

  get waiting(): number {
    return this.open - this.running;
  }

  /** The next request is refused. */
  get isFull(): boolean {
    return this.open >= this.concurrent + this.maxWaiting || this.openTokens >= this.maxTokens;
  }

  /**
   * Takes places for a request; the function it returns gives them back (once, however often called).
   * @param client one of several that share the queue: an eighth of the waiting places is left to those that have none yet
   */
  enter(choices: number, tokens = 0, client?: string): () => void {
    const capacity = this.concurrent + this.maxWaiting;
    if (choices > capacity) {
      throw new UserError(
        `The request asks for ${choices} choices (prompts × n), but this server takes at most ${capacity} at once ` +
          `(${this.concurrent} running and ${this.maxWaiting} waiting).`,
        { code: "too_many_choices", param: "n" },
      );
    }
    const kept = this.hasPlaces(client) ? Math.floor(this.maxWaiting / 8) : 0;
    const excess = Math.min(this.open, this.open + choices - (capacity - kept));
    const excessTokens = Math.min(this.openTokens, this.openTokens + tokens - this.maxTokens);
    if (excess > 0 || excessTokens > 0) throw this.refusal(excess, excessTokens);
    return this.take({ at: this.now(), choices, tokens, client });
  }

  private take(one: Open): () => void {
    if (this.open === 0) this.departures.busy(true);
    this.open += one.choices;
    this.openTokens += one.tokens;
    this.requests.add(one);
    return () => {
      if (!this.requests.delete(one)) return;
      this.open -= one.choices;
      this.openTokens -= one.tokens;
      this.departures.add(one.choices, one.tokens);
      if (this.open === 0) this.departures.busy(false);
    };
  }

  private hasPlaces(client: string | undefined): boolean {
    if (client === undefined) return false;
    for (const one of this.requests) if (one.client === client) return true;
    return false;
  }

  private refusal(excess: number, excessTokens: number): UserError {
    const retryAfter = this.secondsUntilFree(excess, excessTokens);
    const why =
      excess > 0
        ? `${this.running} choices run and ${this.waiting} wait`
        : `its open requests may come to ${this.openTokens} tokens, and it takes ${this.maxTokens}`;
    return new UserError(`The server is full: ${why}. Try again in ${retryAfter} s.`, {
      status: 429,
      code: "queue_full",
      retryAfter,
    });
  }

  /** Whole seconds, 1…600: at the rate at which requests have ended while there were any. Before one has, the oldest open
   *  one's age stands for what all of them take. */
  private secondsUntilFree(places: number, tokens: number): number {
    const rate = this.departures.rate();
    let seconds: number;
    if (rate === undefined) {
      let oldest = 0;
      for (const { at } of this.requests) oldest = Math.max(oldest, (this.now() - at) / 1000);
      seconds = oldest * Math.max(0, places / this.open, tokens / Math.max(1, this.openTokens));
    } else seconds = Math.max(0, places / rate.choices, tokens > 0 ? tokens / rate.tokens : 0);
    return Math.min(600, Math.max(1, Math.ceil(seconds)));
  }
}

/** What ended, on a clock that runs only while something is open. */
class Departures {
  private readonly latest: { readonly at: number; readonly choices: number; readonly tokens: number }[] = [];
  /** On the busy clock: when the first of them could have ended. */
  private from = 0;
  private clock = 0;
  private busySince: number | undefined;

  constructor(private readonly now: () => number) {}

  busy(yes: boolean): void {
    this.clock = this.time();
    this.busySince = yes ? this.now() : undefined;
  }

  add(choices: number, tokens: number): void {
    this.latest.push({ at: this.time(), choices, tokens });
    if (this.latest.length > remembered) this.from = this.latest.shift()!.at;
  }

  /** A second; undefined: nothing has ended yet. */
  rate(): { choices: number; tokens: number } | undefined {
    const seconds = (this.time() - this.from) / 1000;
    if (this.latest.length === 0 || seconds <= 0) return undefined;
    let choices = 0;
    let tokens = 0;
    for (const one of this.latest) {
      choices += one.choices;
      tokens += one.tokens;
    }
    return { choices: choices / seconds, tokens: tokens / seconds };
  }

  private time(): number {
    return this.busySince === undefined ? this.clock : this.clock + this.now() - this.busySince;
  }
}
