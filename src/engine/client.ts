// Owns: the engine as everything above sees it: requests in, events out, whatever thread or process the engine runs in.
// When that host dies, every open request gets its finish events and the next request starts a new host.
import { InternalError, UserError } from "../base/errors.js";
import { Backoff } from "./backoff.js";
import type { ClientMessage, HostMessage, Port } from "./protocol.js";
import type { EngineStats, ErrorRecord, GenerateRequest, ModelLimits, Timeline, Timings, TokenEvent } from "./types.js";

export interface ClientOptions {
  /** Starts a host. Called for the first load, and again after a host has died. */
  readonly carrier: () => Port;
  /** What the host is to load: the carrier's entry knows its shape. */
  readonly spec: unknown;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
  /** Milliseconds; performance.now unless said. */
  readonly now?: () => number;
}

/** How long a host may take to end by itself: a step, and giving memory back. */
const closeMs = 10_000;

export class EngineClient {
  /** As the latest load said. */
  limits!: ModelLimits;
  private connection: Connection | undefined;
  private connecting: Promise<Connection> | undefined;
  private closed = false;
  private threads: number | undefined;
  private readonly backoff: Backoff;
  /** What the latest load took. */
  private loadSeconds = 1;

  private constructor(private readonly options: ClientOptions) {
    this.backoff = new Backoff(options.now ?? (() => performance.now()));
  }

  /** Starts a host and loads the model. Throws what the load threw: a UserError for a bad file or too little memory. */
  static async open(options: ClientOptions): Promise<EngineClient> {
    const client = new EngineClient(options);
    await client.connected();
    return client;
  }

  /** False between a host's death and the next request. */
  get alive(): boolean {
    return this.connection?.alive ?? false;
  }

  /**
   * Submits at the first next(). Each choice ends with exactly one finish event, and the iteration with the last of them;
   * leaving it early aborts what is left.
   */
  async *generate(request: GenerateRequest, signal?: AbortSignal): AsyncGenerator<TokenEvent, void, void> {
    let connection: Connection;
    try {
      connection = await this.connected();
    } catch (error) {
      for (let index = 0; index < request.n; index++) yield failure(index, request, errorRecord(error));
      return;
    }
    const events = connection.submit(request);
    const abort = () => connection.abort(events);
    signal?.addEventListener("abort", abort, { once: true });
    if (signal?.aborted) abort();
    try {
      while (events.open > 0) {
        const event = await events.next();
        yield event;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      connection.forget(events);
    }
  }

  /** Ends a choice, or all of a request's; each still gets its finish event. */
  abort(id: string, index?: number): void {
    this.connection?.abortById(id, index);
  }

  async stats(): Promise<EngineStats> {
    return (await this.connected()).stats();
  }

  /** What its newest steps did. Undefined: the model has none, or its host is dead (asking starts none). */
  async timeline(steps: number): Promise<Timeline | undefined> {
    return this.alive ? this.connection!.timeline(steps) : undefined;
  }

  /** One vector a text, not normalised. Throws UserError where the model gives none, or a text is too long. */
  async embed(texts: readonly Int32Array[], signal?: AbortSignal): Promise<readonly Float32Array[]> {
    return (await this.connected()).embed(texts, signal);
  }

  /** Of the threads that it was loaded with, how many it may use from its next step on. */
  grant(threads: number): void {
    if (threads === this.threads) return;
    this.threads = threads;
    this.connection?.grant(threads);
  }

  /** Open requests finish with "abort"; the host ends. */
  async close(): Promise<void> {
    this.closed = true;
    // A host that takes the place of a dead one may be on its way.
    const latest = await this.connecting?.catch(() => undefined);
    await (latest ?? this.connection)?.close();
  }

  private connected(): Promise<Connection> {
    if (this.closed)
      return Promise.reject(new UserError("the model was closed", { status: 503, code: "model_closed" }));
    if (this.connection?.alive) return Promise.resolve(this.connection);
    const { waitMs } = this.backoff;
    if (waitMs > 0 && this.connecting === undefined) return Promise.reject(this.restingError(waitMs));
    this.connecting ??= this.connect().finally(() => {
      this.connecting = undefined;
    });
    return this.connecting;
  }

  private restingError(waitMs: number): UserError {
    const retryAfter = Math.ceil(waitMs / 1000 + this.loadSeconds);
    return new UserError(
      `the engine has ended several times without an answer; it is started again in ${Math.ceil(waitMs / 1000)} s`,
      { status: 503, code: "engine_restarting", retryAfter },
    );
  }

  private async connect(): Promise<Connection> {
    const { carrier, spec, onProgress, signal } = this.options;
    signal?.throwIfAborted();
    const from = performance.now();
    const connection = new Connection(carrier(), (answered) => this.backoff.ended(answered), this.loadSeconds);
    const cancel = () => connection.kill();
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      this.limits = await connection.load(spec, onProgress);
      this.loadSeconds = Math.max(1, Math.ceil((performance.now() - from) / 1000));
    } catch (error) {
      connection.kill();
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
    this.connection = connection;
    if (this.threads !== undefined) connection.grant(this.threads);
    return connection;
  }
}

/** One host, from its start to its end. */
class Connection {
  alive = true;
  private handles = 0;
  private tickets = 0;
  private readonly requests = new Map<number, Events>();
  /** By ticket, those who have asked what is answered once. */
  private readonly waiting = new Map<number, { resolve: (answer: never) => void; reject: (e: Error) => void }>();
  private loading: { resolve: (limits: ModelLimits) => void; reject: (e: Error) => void } | undefined;
  private onProgress: ((done: number, total: number) => void) | undefined;
  private readonly ended: Promise<void>;
  private markEnded!: () => void;
  /** A choice has ended as it should. */
  private answered = false;

  /** @param restartSeconds what the next host can be expected to take */
  constructor(
    private readonly port: Port,
    private readonly onEnd: (answered: boolean) => void,
    private readonly restartSeconds: number,
  ) {
    this.ended = new Promise((resolve) => {
      this.markEnded = resolve;
    });
    port.onMessage((message) => this.receive(message as HostMessage));
    port.onClose((reason) => this.died(reason));
  }

  load(spec: unknown, onProgress?: (done: number, total: number) => void): Promise<ModelLimits> {
    this.onProgress = onProgress;
    return new Promise((resolve, reject) => {
      this.loading = { resolve, reject };
      this.post({ type: "load", spec });
    });
  }

  submit(request: GenerateRequest): Events {
    const events = new Events(++this.handles, request);
    this.requests.set(events.handle, events);
    if (this.alive) this.post({ type: "submit", handle: events.handle, request });
    else events.fail(this.deadHost("the engine process had ended"));
    return events;
  }

  abort(events: Events, index?: number): void {
    if (this.alive && this.requests.has(events.handle)) this.post({ type: "abort", handle: events.handle, index });
  }

  abortById(id: string, index?: number): void {
    for (const events of this.requests.values()) if (events.request.id === id) this.abort(events, index);
  }

  /** Nobody listens any more. */
  forget(events: Events): void {
    if (events.open > 0) this.abort(events);
    this.requests.delete(events.handle);
  }

  async embed(texts: readonly Int32Array[], signal?: AbortSignal): Promise<readonly Float32Array[]> {
    signal?.throwIfAborted();
    let ticket = 0;
    const abandon = () => {
      this.refused(ticket, signal!.reason as Error);
      if (this.alive) this.post({ type: "abandon", ticket });
    };
    signal?.addEventListener("abort", abandon, { once: true });
    const vectors = this.ask<readonly Float32Array[]>((given) => {
      ticket = given;
      return { type: "embed", ticket, texts };
    });
    return vectors.finally(() => signal?.removeEventListener("abort", abandon));
  }

  grant(threads: number): void {
    if (this.alive) this.post({ type: "grant", threads });
  }

  stats(): Promise<EngineStats> {
    return this.ask((ticket) => ({ type: "stats", ticket }));
  }

  timeline(steps: number): Promise<Timeline | undefined> {
    return this.ask((ticket) => ({ type: "timeline", ticket, steps }));
  }

  private ask<T>(message: (ticket: number) => ClientMessage): Promise<T> {
    const ticket = ++this.tickets;
    return new Promise((resolve, reject) => {
      if (!this.alive) return reject(new UserError("the engine has ended", { status: 503, code: "engine_died" }));
      this.waiting.set(ticket, { resolve, reject });
      this.post(message(ticket));
    });
  }

  private told(ticket: number, answer: unknown): void {
    this.waiting.get(ticket)?.resolve(answer as never);
    this.waiting.delete(ticket);
  }

  private refused(ticket: number, error: Error): void {
    this.waiting.get(ticket)?.reject(error);
    this.waiting.delete(ticket);
  }

  /** Lets the host finish what it is doing, then ends it; one that cannot is ended all the same. */
  async close(): Promise<void> {
    if (!this.alive) return;
    this.post({ type: "close" });
    const timer = setTimeout(() => this.kill(), closeMs);
    await this.ended;
    clearTimeout(timer);
  }

  kill(): void {
    this.port.close();
    this.died("it was stopped");
  }

  private post(message: ClientMessage): void {
    this.port.post(message);
  }

  private receive(message: HostMessage): void {
    switch (message.type) {
      case "progress":
        this.onProgress?.(message.done, message.total);
        return;
      case "ready":
        this.loading?.resolve(message.limits);
        this.loading = undefined;
        return;
      case "failed":
        this.loading?.reject(new UserError(message.error.message, message.error));
        this.loading = undefined;
        return;
      case "stats":
        this.told(message.ticket, message.stats);
        return;
      case "timeline":
        this.told(message.ticket, message.timeline);
        return;
      case "embedded":
        this.answered = true;
        this.told(message.ticket, message.vectors);
        return;
      case "notEmbedded":
        this.refused(message.ticket, new UserError(message.error.message, message.error));
        return;
      case "events": {
        const { starts, tokens, others } = message;
        for (const [handle, event] of starts) this.requests.get(handle)?.push(event);
        for (let i = 0; i < tokens.length; i += 3) {
          this.requests.get(tokens[i])?.push({ type: "token", index: tokens[i + 1], id: tokens[i + 2] });
        }
        for (const [handle, event] of others) {
          if (event.type === "finish" && event.reason !== "error") this.answered = true;
          this.requests.get(handle)?.push(event);
        }
        return;
      }
      default:
        throw new InternalError(`unknown message ${JSON.stringify(message)}`);
    }
  }

  private died(reason: string): void {
    if (!this.alive) return;
    this.alive = false;
    this.onEnd(this.answered);
    const error = this.deadHost(reason);
    this.loading?.reject(new UserError(error.message, error));
    for (const ticket of [...this.waiting.keys()]) this.refused(ticket, new UserError(error.message, error));
    for (const events of this.requests.values()) events.fail(error);
    this.requests.clear();
    this.markEnded();
  }

  private deadHost(reason: string): ErrorRecord {
    return {
      message: `the engine stopped: ${reason}; the next request starts it again`,
      status: 503,
      code: "engine_died",
      retryAfter: this.restartSeconds,
    };
  }
}

/** The events of one request that nobody has taken yet. */
class Events {
  /** Choices whose finish event has not been taken by the consumer. */
  open: number;
  private readonly unfinished: Set<number>;
  private readonly queue: TokenEvent[] = [];
  private taken = 0;
  private wake: (() => void) | undefined;

  constructor(
    readonly handle: number,
    readonly request: GenerateRequest,
  ) {
    this.open = request.n;
    this.unfinished = new Set(Array.from({ length: request.n }, (_, index) => index));
  }

  push(event: TokenEvent): void {
    if (event.type === "finish" && !this.unfinished.delete(event.index)) return;
    this.queue.push(event);
    this.wake?.();
  }

  fail(error: ErrorRecord): void {
    for (const index of [...this.unfinished]) this.push(failure(index, this.request, error));
  }

  async next(): Promise<TokenEvent> {
    if (this.taken === this.queue.length) {
      this.queue.length = 0;
      this.taken = 0;
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
      this.wake = undefined;
    }
    const event = this.queue[this.taken++];
    if (event.type === "finish") this.open--;
    return event;
  }
}

/** Of a choice that never ran. */
export const noTimings: Timings = {
  queueMs: 0,
  promptMs: 0,
  generationMs: 0,
  promptTokens: 0,
  cachedTokens: 0,
  generatedTokens: 0,
  draftTokens: 0,
  acceptedTokens: 0,
};

/** The finish event of a choice that never ran. */
export function failure(
  index: number,
  request: GenerateRequest,
  error: ErrorRecord,
): Extract<TokenEvent, { type: "finish" }> {
  const promptTokens = request.promptIds.length;
  return { type: "finish", index, reason: "error", error, timings: { ...noTimings, promptTokens } };
}

/** What of an error may cross a border: a UserError whole, of others the message. */
export function errorRecord(error: unknown): ErrorRecord {
  if (error instanceof UserError) {
    const { message, status, code, retryAfter } = error;
    return retryAfter === null ? { message, status, code } : { message, status, code, retryAfter };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { message, status: 500, code: "internal_error" };
}
