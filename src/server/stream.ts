// Owns: one stream of JSON objects, as server-sent events or as lines: headers when the first comes (so that a failure before it still has a status
// code), comments that keep proxies from closing it through a long prefill, and back-pressure: a reader that takes
// nothing for too long is cut off, and its request is aborted.
import type { FastifyReply, FastifyRequest } from "fastify";
import { errorAnswer, type Failure, failureOf, logFault } from "./errors.js";

export interface StreamTimes {
  /** A comment is sent when nothing else has been for so long. */
  readonly keepAliveMs: number;
  /** How long a full socket may take nothing. */
  readonly slowReaderMs: number;
}

/** Aborts when the client goes away before the answer is complete. Holds for streams and for plain answers. */
export function clientSignal(request: FastifyRequest, reply: FastifyReply): AbortSignal {
  const controller = new AbortController();
  const gone = () => {
    if (!reply.raw.writableFinished) controller.abort(new ClientGone());
  };
  reply.raw.once("close", gone);
  if (request.socket.destroyed) gone();
  return controller.signal;
}

/** How objects follow each other. */
export interface Framing {
  readonly contentType: string;
  frame(data: object): string;
  /** After the last object. */
  readonly end: string;
  /** What says nothing, and keeps proxies from closing the stream; null: there is no such thing. */
  readonly keepAlive: (() => string) | null;
}

export const event = (json: string): string => `data: ${json}\n\n`;

export const serverSentEvents: Framing = {
  contentType: "text/event-stream; charset=utf-8",
  frame: (data) => event(JSON.stringify(data)),
  end: "data: [DONE]\n\n",
  keepAlive: () => ": keep-alive\n\n",
};

/** One object a line, as Ollama streams. */
export const jsonLines: Framing = {
  contentType: "application/x-ndjson",
  frame: (data) => `${JSON.stringify(data)}\n`,
  end: "",
  keepAlive: null,
};

export class EventStream {
  private opened = false;
  private readonly timer: NodeJS.Timeout;
  /** Goes out in one piece when all that is at hand has been seen to: a step's tokens are one write. */
  private waiting = "";
  /** While the socket takes no more. */
  private full: Promise<void> | undefined;

  constructor(
    private readonly request: FastifyRequest,
    private readonly reply: FastifyReply,
    private readonly times: StreamTimes,
    private readonly framing: Framing = serverSentEvents,
  ) {
    this.timer = setInterval(() => this.keepAlive(), times.keepAliveMs);
    this.timer.unref();
  }

  /** Resolves when the socket takes more; a reader that is gone or too slow rejects. undefined: it does. */
  send(data: object): Promise<void> | undefined {
    return this.write(this.framing.frame(data));
  }

  /** As send(), of what has been framed. */
  write(text: string): Promise<void> | undefined {
    if (this.reply.raw.destroyed) return Promise.reject(new ClientGone());
    if (!this.opened) this.open();
    if (this.waiting === "") process.nextTick(() => this.flush());
    this.waiting += text;
    return this.full;
  }

  async done(): Promise<void> {
    if (this.framing.end !== "") await this.write(this.framing.end);
    this.flush();
    await this.full;
    this.end();
  }

  /** Before the first event: a plain error answer with its status. After it: an error event, then the end. */
  async fail(error: unknown): Promise<void> {
    const failure: Failure = failureOf(error, this.request.id);
    if (failure.status === 500 && !(error instanceof ClientGone)) logFault(this.request, error);
    if (!this.opened) {
      clearInterval(this.timer);
      sendFailure(this.request, this.reply, failure);
      return;
    }
    try {
      await this.send(errorAnswer(failure, this.request.url, this.request.id).body);
      await this.done();
    } catch {
      this.end();
    }
  }

  private open(): void {
    this.opened = true;
    const headers = this.reply.getHeaders();
    this.reply.hijack();
    const raw = this.reply.raw;
    for (const [name, value] of Object.entries(headers)) if (value !== undefined) raw.setHeader(name, value);
    raw.writeHead(200, {
      "content-type": this.framing.contentType,
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    });
    raw.socket?.setNoDelay(true);
  }

  private keepAlive(): void {
    const raw = this.reply.raw;
    const { keepAlive } = this.framing;
    if (keepAlive === null || raw.destroyed || raw.writableEnded || raw.writableNeedDrain) return;
    if (!this.opened) this.open();
    raw.write(keepAlive());
  }

  private flush(): void {
    const { raw } = this.reply;
    if (this.waiting === "" || raw.destroyed) return;
    this.timer.refresh();
    const taken = raw.write(this.waiting);
    this.waiting = "";
    if (taken || this.full !== undefined) return;
    this.full = this.drained().finally(() => {
      this.full = undefined;
    });
    // Who sends next hears of it, too.
    this.full.catch(() => {});
  }

  private drained(): Promise<void> {
    const raw = this.reply.raw;
    return new Promise((resolve, reject) => {
      const settle = (action: () => void) => {
        clearTimeout(timer);
        raw.off("drain", drain);
        raw.off("close", close);
        action();
      };
      const drain = () => settle(resolve);
      const close = () => settle(() => reject(new ClientGone()));
      const timer = setTimeout(() => {
        raw.destroy();
        settle(() => reject(new ClientGone()));
      }, this.times.slowReaderMs);
      raw.once("drain", drain);
      raw.once("close", close);
    });
  }

  private end(): void {
    clearInterval(this.timer);
    this.flush();
    this.reply.raw.end();
  }
}

/** The reader went away, or stopped reading: there is nobody to tell. */
export class ClientGone extends Error {
  constructor() {
    super("The client has gone away.");
  }
}

export function sendFailure(request: FastifyRequest, reply: FastifyReply, failure: Failure): void {
  if (failure.retryAfter !== null) reply.header("retry-after", String(failure.retryAfter));
  const { status, body } = errorAnswer(failure, request.url, request.id);
  reply.code(status).send(body);
}
