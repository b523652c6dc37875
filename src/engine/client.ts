// Owns: the caller's side of the protocol: requests out, one iterator of events each. When the host dies, every open choice
// ends with an error, and the next request starts a new host. No consumer is waited for: events queue up in memory, at
// most maxTokens a choice.
import { UserError } from "../base/errors.js";
import { failure, noTimings } from "./host.js";
import { type EventsMessage, type FromHost, type Port, type ToHost, tokenInts, type WireError } from "./protocol.js";
import type { EngineStats, GenerateRequest, ModelLimits, TokenEvent, TokenLogprobs } from "./types.js";

export interface ClientOptions {
  /** Makes a new host: first at open(), again after one has died. */
  readonly connect: () => Port;
  /** What the host's loader takes. */
  readonly load: unknown;
  /** Of the first loading, in bytes or steps. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Of the first loading. */
  readonly signal?: AbortSignal;
  /** A host has died: for logs and metrics. */
  readonly onDeath?: (reason: string) => void;
}

/** How long a host may take to close before it is ended. */
const closeMs = 5000;

export class EngineClient {
  private connection: Connection;
  private known: ModelLimits;
  private closed = false;

  /** Starts a host and loads the model there. Throws UserError where that cannot be done. */
  static async open(options: ClientOptions): Promise<EngineClient> {
    const connection = new Connection(options.connect(), options.load, options.onProgress);
    const abort = () => connection.end("loading was aborted");
    options.signal?.addEventListener("abort", abort, { once: true });
    try {
      options.signal?.throwIfAborted();
      const limits = await connection.loaded;
      return new EngineClient(options, connection, limits);
    } catch (error) {
      connection.end("loading failed");
      if (options.signal?.aborted) throw options.signal.reason;
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", abort);
    }
  }

  private constructor(
    private readonly options: ClientOptions,
    connection: Connection,
    limits: ModelLimits,
  ) {
    this.connection = connection;
    this.known = limits;
    this.watch(connection);
  }

  get limits(): ModelLimits {
    return this.known;
  }

  /**
   * Runs the request, from this call on; the events may be read by one reader, whenever it likes. Every choice ends with
   * one finish event, after the last of which the iterator ends. Leaving the iterator early aborts the request.
   */
  generate(request: GenerateRequest, signal?: AbortSignal): AsyncIterableIterator<TokenEvent> {
    if (this.closed) throw new UserError("the model has been closed", { status: 503, code: "engine_closed" });
    const events = this.live().submit(request);
    if (signal) {
      const abort = () => this.abort(request.id);
      if (signal.aborted) abort();
      signal.addEventListener("abort", abort, { once: true });
      events.onEnd = () => signal.removeEventListener("abort", abort);
    }
    return events;
  }

  /** Ends a choice, or all of a request's; each still gets its finish event. */
  abort(id: string, index?: number): void {
    this.connection.abort(id, index);
  }

  async stats(): Promise<EngineStats> {
    const connection = this.live();
    await connection.loaded;
    return connection.stats();
  }

  /** Ends all requests with aborts, unloads the model and ends the host. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.connection.close();
  }

  private live(): Connection {
    if (!this.connection.dead) return this.connection;
    this.connection = new Connection(this.options.connect(), this.options.load);
    this.watch(this.connection);
    this.connection.loaded.then(
      (limits) => {
        this.known = limits;
      },
      () => {}, // the requests that wait are told
    );
    return this.connection;
  }

  private watch(connection: Connection): void {
    connection.onDeath = (reason) => {
      if (!this.closed) this.options.onDeath?.(reason);
    };
  }
}

/** One host's life. */
class Connection {
  readonly loaded: Promise<ModelLimits>;
  dead = false;
  onDeath: (reason: string) => void = () => {};
  private readonly requests = new Map<number, EventQueue>();
  private readonly queries = new Map<number, { resolve(stats: EngineStats): void; reject(error: Error): void }>();
  private isLoaded = false;
  private nextKey = 0;
  private settleLoad!: { resolve(limits: ModelLimits): void; reject(error: Error): void };
  private gone: () => void = () => {};

  constructor(
    private readonly port: Port,
    options: unknown,
    private readonly onProgress: (done: number, total: number) => void = () => {},
  ) {
    this.loaded = new Promise((resolve, reject) => {
      this.settleLoad = { resolve, reject };
    });
    this.loaded.catch(() => {});
    port.onMessage((message) => this.receive(message as FromHost));
    port.onClose((reason) => this.died(reason));
    this.post({ type: "load", options });
  }

  submit(request: GenerateRequest): EventQueue {
    const key = this.nextKey++;
    const queue = new EventQueue(request, () => this.abort(request.id));
    this.requests.set(key, queue);
    if (this.isLoaded) this.post({ type: "submit", key, request });
    return queue;
  }

  abort(id: string, index?: number): void {
    for (const [key, queue] of this.requests) {
      if (queue.request.id !== id) continue;
      if (this.isLoaded) this.post({ type: "abort", key, index });
      else this.abortUnsent(key, queue, index);
    }
  }

  stats(): Promise<EngineStats> {
    if (this.dead) return Promise.reject(hostDied("it ended"));
    const query = this.nextKey++;
    return new Promise((resolve, reject) => {
      this.queries.set(query, { resolve, reject });
      this.post({ type: "stats", query });
    });
  }

  async close(): Promise<void> {
    if (this.dead) return;
    const gone = new Promise<void>((resolve) => {
      this.gone = resolve;
    });
    this.post({ type: "close" });
    const timer = setTimeout(() => this.end("it did not close in time"), closeMs);
    await gone;
    clearTimeout(timer);
  }

  end(reason: string): void {
    this.port.close();
    this.died(reason);
  }

  private post(message: ToHost): void {
    if (!this.dead) this.port.post(message);
  }

  private receive(message: FromHost): void {
    if (this.dead) return;
    switch (message.type) {
      case "progress":
        this.onProgress(message.done, message.total);
        break;
      case "loaded":
        this.isLoaded = true;
        this.settleLoad.resolve(message.limits);
        for (const [key, { request }] of this.requests) this.post({ type: "submit", key, request });
        break;
      case "failed":
        this.fail(message.error);
        this.port.close();
        break;
      case "stats":
        this.queries.get(message.query)?.resolve(message.stats);
        this.queries.delete(message.query);
        break;
      case "events":
        this.deliver(message);
    }
  }

  private deliver({ starts, tokens, values, finishes }: EventsMessage): void {
    for (const { key, cachedTokens, promptLogprobs } of starts) {
      this.requests.get(key)?.push({ type: "start", cachedTokens, promptLogprobs });
    }
    let at = 0;
    for (let i = 0; i < tokens.length; i += tokenInts) {
      const [key, index, id, best] = tokens.subarray(i, i + tokenInts);
      let logprobs: TokenLogprobs | undefined;
      if (best >= 0) {
        const top = Array.from({ length: best }, (_, j) => [values[at + 2 + 2 * j], values[at + 3 + 2 * j]] as const);
        logprobs = { logprob: values[at], rank: values[at + 1], top };
        at += 2 + 2 * best;
      }
      this.requests.get(key)?.push({ type: "token", index, id, ...(logprobs && { logprobs }) });
    }
    for (const { key, event } of finishes) this.finish(key, event);
  }

  private finish(key: number, event: TokenEvent & { type: "finish" }): void {
    const queue = this.requests.get(key);
    queue?.push(event);
    if (queue?.ended) this.requests.delete(key);
  }

  private abortUnsent(key: number, queue: EventQueue, index: number | undefined): void {
    const { request } = queue;
    // a choice cannot be taken back before the host has it: it is aborted as soon as it does
    if (index !== undefined && request.n > 1) {
      this.loaded.then(
        () => this.post({ type: "abort", key, index }),
        () => {},
      );
      return;
    }
    for (const open of queue.openChoices()) {
      this.finish(key, { type: "finish", index: open, reason: "abort", timings: noTimings(request) });
    }
  }

  private died(reason: string): void {
    if (this.dead) return;
    this.fail({ message: hostDied(reason).message, status: 503, code: "engine_died" });
    this.onDeath(reason);
    this.gone();
  }

  private fail(error: WireError): void {
    this.dead = true;
    const { message, status, code } = error;
    this.settleLoad.reject(new UserError(message, { status, code }));
    for (const { reject } of this.queries.values()) reject(new UserError(message, { status, code }));
    for (const [key, queue] of this.requests) {
      for (const index of queue.openChoices()) this.finish(key, failure(queue.request, index, error));
    }
  }
}

function hostDied(reason: string): UserError {
  const message = `the process that runs the model ended unexpectedly (${reason}); the request can be sent again`;
  return new UserError(message, { status: 503, code: "engine_died" });
}

/** Events of one request, for one reader. */
class EventQueue implements AsyncIterableIterator<TokenEvent> {
  onEnd: () => void = () => {};
  private readonly events: TokenEvent[] = [];
  private readonly open: Set<number>;
  private taken = 0;
  private waiting: ((result: IteratorResult<TokenEvent>) => void)[] = [];

  constructor(
    readonly request: GenerateRequest,
    private readonly abort: () => void,
  ) {
    this.open = new Set(Array.from({ length: Math.max(1, request.n) }, (_, i) => i));
  }

  get ended(): boolean {
    return this.open.size === 0;
  }

  openChoices(): number[] {
    return [...this.open];
  }

  push(event: TokenEvent): void {
    if (event.type === "finish" && !this.open.delete(event.index)) return;
    const reader = this.waiting.shift();
    if (reader) reader({ value: event, done: false });
    else this.events.push(event);
    if (!this.ended) return;
    this.onEnd();
    for (const late of this.waiting.splice(0)) late({ value: undefined, done: true });
  }

  next(): Promise<IteratorResult<TokenEvent>> {
    if (this.taken < this.events.length) {
      const value = this.events[this.taken++];
      if (this.taken === this.events.length) {
        this.events.length = 0;
        this.taken = 0;
      }
      return Promise.resolve({ value, done: false });
    }
    if (this.ended) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  return(): Promise<IteratorResult<TokenEvent>> {
    if (!this.ended) this.abort();
    this.events.length = 0;
    this.taken = 0;
    for (const late of this.waiting.splice(0)) late({ value: undefined, done: true });
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
