// Owns: constrained choices as the engine sees them. Sends each token on to the grammar worker and reads the answers out of
// shared memory; waits for nothing. A worker that dies, or is at one thing for longer than anything sensible takes, is replaced,
// and the new one is told what every choice has so far; a choice whose worker died twice, or that was too slow, ends with an error.
import { Worker } from "node:worker_threads";
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { ConstraintSource } from "../engine/host.js";
import type { TokenConstraint, TokenGrammar } from "../engine/types.js";
import {
  Busy,
  type GrammarMessage,
  type GrammarReply,
  type GrammarWorkerData,
  type GrammarWorkerStart,
  mostJumps,
  Slot,
  usualPatienceMs,
  VerdictCode,
} from "./grammar-protocol.js";

/** Milliseconds for one grammar, on a busy machine; usual ones take 1 to 100. */
const compileMs = 20_000;
const mostDeaths = 2;

interface Compiling {
  readonly grammar: TokenGrammar;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class GrammarHost implements ConstraintSource {
  /** Called when something that was not known has become known. */
  onWritten: () => void = () => {};
  private worker: Worker | undefined;
  private readonly live = new Map<number, SharedConstraint>();
  private readonly compiling = new Map<number, Compiling>();
  private watchdog: NodeJS.Timeout | undefined;
  /** What the worker is at, and what it was at when last looked. */
  private busy: Int32Array = new Int32Array(2);
  private seen = 0;
  private looking: NodeJS.Timeout | undefined;
  private drawn: number[] = [];
  private tickets = 0;
  private ids = 0;
  private closed = false;

  /** Between two looks at what the worker is doing: one token's work seen at both is too much. */
  private readonly lookMs: number;

  constructor(private readonly data: GrammarWorkerData) {
    this.lookMs = (data.patienceMs ?? usualPatienceMs) / 2;
  }

  /** Throws UserError for a grammar that cannot be read. Others run on meanwhile. */
  compile(grammar: TokenGrammar): Promise<void> {
    const ticket = ++this.tickets;
    return new Promise((resolve, reject) => {
      this.compiling.set(ticket, { grammar, resolve, reject });
      this.post({ type: "compile", ticket, grammar });
      this.watch();
    });
  }

  open(grammar: TokenGrammar): TokenConstraint {
    const id = ++this.ids;
    const length = Slot.mask + Math.ceil(this.data.vocabSize / 32);
    const shared = new Int32Array(new SharedArrayBuffer(length * 4));
    const constraint = new SharedConstraint(this, id, grammar, shared);
    this.live.set(id, constraint);
    this.post(constraint.opening());
    this.looking ??= setInterval(() => this.look(), this.lookMs).unref();
    return constraint;
  }

  /** One message for all tokens of a step. */
  accept(id: number, token: number): void {
    if (this.drawn.length === 0) queueMicrotask(() => this.flush());
    this.drawn.push(id, token);
  }

  rollback(id: number, count: number): void {
    this.flush();
    this.post({ type: "rollback", id, count });
  }

  end(id: number): void {
    this.flush();
    this.post({ type: "close", id });
    this.live.delete(id);
    if (this.live.size > 0) return;
    clearInterval(this.looking);
    this.looking = undefined;
  }

  async close(): Promise<void> {
    this.closed = true;
    clearTimeout(this.watchdog);
    clearInterval(this.looking);
    for (const { reject } of this.compiling.values()) reject(gone());
    this.compiling.clear();
    await this.worker?.terminate();
  }

  private flush(): void {
    if (this.drawn.length === 0) return;
    this.post({ type: "accept", drawn: this.drawn });
    this.drawn = [];
  }

  private post(message: GrammarMessage): void {
    if (this.closed) return;
    this.worker ??= this.start();
    this.worker.postMessage(message);
  }

  private start(): Worker {
    this.busy = new Int32Array(new SharedArrayBuffer(8));
    const workerData: GrammarWorkerStart = { ...this.data, busy: this.busy };
    const worker = new Worker(new URL("./grammar-worker.js", import.meta.url), { workerData });
    worker.unref();
    worker.on("message", (reply: GrammarReply) => this.receive(reply));
    worker.on("error", (error) => this.died(worker, error instanceof Error ? error.message : String(error)));
    worker.on("exit", () => this.died(worker, "it ended"));
    return worker;
  }

  private receive(reply: GrammarReply): void {
    if (reply.type === "compiled") {
      const waiting = this.compiling.get(reply.ticket);
      this.compiling.delete(reply.ticket);
      clearTimeout(this.watchdog);
      this.watchdog = undefined;
      this.watch();
      if (reply.error) waiting?.reject(new UserError(reply.error.message, { code: reply.error.code, param: "format" }));
      else waiting?.resolve();
    }
    this.onWritten();
  }

  /** Grammars are compiled in order: the oldest is the one at work. */
  private watch(): void {
    if (this.watchdog !== undefined || this.compiling.size === 0 || this.closed) return;
    this.watchdog = setTimeout(() => {
      const worker = this.worker;
      if (worker === undefined) return;
      this.died(worker, `a grammar took more than ${compileMs / 1000} s to compile`);
      void worker.terminate();
    }, compileMs);
    this.watchdog.unref();
  }

  /** A choice at which the worker has been since the last look ends; the others go on with another worker. */
  private look(): void {
    const { worker } = this;
    const id = Atomics.load(this.busy, Busy.choice);
    const count = this.busy[Busy.count];
    const stuck = id !== 0 && count === this.seen;
    this.seen = count;
    if (!stuck || worker === undefined) return;
    this.live.get(id)?.tooSlow();
    this.died(worker, `a choice's grammar took more than ${this.lookMs / 1000} s for a token`);
    void worker.terminate();
  }

  private died(worker: Worker, reason: string): void {
    if (this.worker !== worker || this.closed) return;
    log.error("the grammar worker ended", { reason });
    this.worker = undefined;
    clearTimeout(this.watchdog);
    this.watchdog = undefined;
    this.drawn = [];
    const [first] = this.compiling;
    if (first) {
      this.compiling.delete(first[0]);
      first[1].reject(
        new UserError(`The format cannot be compiled: ${reason}.`, { code: "grammar_failed", param: "format" }),
      );
    }
    for (const constraint of this.live.values()) if (constraint.died(mostDeaths)) this.post(constraint.opening());
    for (const [ticket, { grammar }] of this.compiling) this.post({ type: "compile", ticket, grammar });
    this.watch();
    this.onWritten();
  }
}

class SharedConstraint implements TokenConstraint {
  failure: TokenConstraint["failure"];
  private readonly history: number[] = [];
  private stamp = 1;
  private jumped = false;
  private deaths = 0;

  constructor(
    private readonly host: GrammarHost,
    private readonly id: number,
    private readonly grammar: TokenGrammar,
    private shared: Int32Array,
  ) {}

  opening(): GrammarMessage {
    const { id, grammar, shared, history, stamp, jumped } = this;
    return { type: "open", id, grammar, shared, history: [...history], stamp, jumped };
  }

  tooSlow(): void {
    this.failure = slow;
  }

  /** False where it is not worth another worker. */
  died(most: number): boolean {
    if (this.failure !== undefined) return false;
    // The dead one may have been writing: its memory is not used again.
    const { length } = this.shared;
    this.shared = new Int32Array(new SharedArrayBuffer(length * 4));
    if (++this.deaths < most) return true;
    this.failure = { message: "the format's grammar could not be followed", status: 500, code: "grammar_failed" };
    return false;
  }

  ready(): boolean {
    if (this.failure) return true;
    if (Atomics.load(this.shared, Slot.stamp) !== this.stamp) return false;
    if (this.shared[Slot.verdict] === VerdictCode.slow) this.failure = slow;
    if (this.shared[Slot.verdict] === VerdictCode.failed) {
      this.failure = { message: "a token came that the grammar does not allow", status: 500, code: "grammar_failed" };
    }
    return true;
  }

  jump(): readonly number[] {
    const count = Math.min(this.shared[Slot.jumps], mostJumps);
    if (this.jumped || count === 0) return [];
    this.jumped = true;
    const ids = [...this.shared.subarray(Slot.jumpIds, Slot.jumpIds + count)];
    this.history.push(...ids);
    return ids;
  }

  mask(out: Uint32Array): boolean {
    if (this.shared[Slot.verdict] === VerdictCode.end) return false;
    for (let i = 0; i < out.length; i++) out[i] = this.shared[Slot.mask + i];
    return true;
  }

  accept(id: number): void {
    this.stamp++;
    this.jumped = false;
    this.history.push(id);
    this.host.accept(this.id, id);
  }

  rollback(count: number): void {
    this.stamp++;
    this.jumped = false;
    this.history.splice(this.history.length - count);
    this.host.rollback(this.id, count);
  }

  close(): void {
    this.host.end(this.id);
  }
}

const slow = {
  message:
    "The format takes too long to follow: it can be read in too many ways. Write it with fewer nested repetitions.",
  status: 400,
  code: "grammar_too_slow",
};

function gone(): Error {
  return new UserError("the model was closed", { status: 503, code: "model_closed" });
}
