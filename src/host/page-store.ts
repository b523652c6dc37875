// Owns: a model's pages outside its device, as its engine sees them: what is known of where they are, and messages to the
// worker that has them (page-worker.ts). Waits for nothing. A worker that dies takes its tiers along: pages are computed.
import { Worker } from "node:worker_threads";
import { log } from "../base/log.js";
import type { PageStore, Tier } from "../engine/spill.js";
import type { PageMessage, PageReply, PageWorkerData } from "./page-protocol.js";
import type { Where } from "./page-tiers.js";

/** Bytes on their way down, at most. */
const mostPending = 128 * 2 ** 20;
/** How long what is known may take to be read when a model is loaded, and what waits to be written when it goes. */
const openMs = 2_000;
const closeMs = 4_000;

interface Waiting {
  readonly keys: readonly string[];
  readonly resolve: (pages: readonly (Uint8Array | undefined)[]) => void;
  readonly timer: NodeJS.Timeout;
}

export class WorkerPageStore implements PageStore {
  stats = { memory: { pages: 0, bytes: 0 }, disk: { pages: 0, bytes: 0 }, damaged: 0 };
  private readonly worker: Worker;
  private readonly places = new Map<string, Where>();
  /** Bytes of pages that have been put and not yet been seen to. */
  private readonly pending = new Map<string, number>();
  private pendingBytes = 0;
  private readonly waiting = new Map<number, Waiting>();
  private tickets = 0;
  private alive = true;
  private readonly ended: Promise<void>;
  private readonly opening: Promise<void>;
  private opened: () => void = () => {};

  constructor(data: PageWorkerData) {
    this.opening = new Promise((resolve) => {
      this.opened = resolve;
    });
    this.worker = new Worker(new URL("./page-worker.js", import.meta.url), { workerData: data });
    this.worker.unref();
    this.worker.on("message", (message: PageReply) => this.receive(message));
    this.worker.on("error", (error) => log.warn("the page cache has failed", { reason: String(error) }));
    this.ended = new Promise((resolve) => {
      this.worker.once("exit", () => {
        this.died();
        resolve();
      });
    });
  }

  /** Resolves when what is on disk is known, or that takes too long to wait for. */
  async known(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, openMs);
    });
    await Promise.race([this.opening, late]);
    clearTimeout(timer);
  }

  get takes(): boolean {
    return this.alive && this.pendingBytes < mostPending;
  }

  find(key: string): Tier | undefined {
    const place = this.places.get(key);
    return place && (place.memory || place.queued ? "memory" : "disk");
  }

  put(key: string, bytes: Uint8Array): void {
    if (!this.alive) return;
    this.places.set(key, { memory: true, disk: false, queued: true });
    this.pending.set(key, bytes.length);
    this.pendingBytes += bytes.length;
    // Only what is a buffer of its own can change hands.
    const own = (bytes.byteLength === bytes.buffer.byteLength ? bytes : bytes.slice()) as Uint8Array<ArrayBuffer>;
    this.post({ type: "put", key, bytes: own }, [own.buffer]);
  }

  get(keys: readonly string[], patienceMs: number): Promise<readonly (Uint8Array | undefined)[]> {
    if (!this.alive) return Promise.resolve(keys.map(() => undefined));
    const ticket = ++this.tickets;
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.answer(ticket), patienceMs);
      this.waiting.set(ticket, { keys, resolve, timer });
      this.post({ type: "get", ticket, keys });
    });
  }

  /** What was put is written first, if that does not take long. */
  async close(): Promise<void> {
    this.worker.ref();
    this.post({ type: "close" });
    const timer = setTimeout(() => void this.worker.terminate(), closeMs);
    await this.ended;
    clearTimeout(timer);
  }

  private post(message: PageMessage, transfer: ArrayBuffer[] = []): void {
    if (this.alive) this.worker.postMessage(message, transfer);
  }

  private receive(message: PageReply): void {
    switch (message.type) {
      case "moved":
        for (const key of message.keys) this.moved(key, message.where);
        return;
      case "got":
        this.answer(message.ticket, message.pages);
        return;
      case "opened":
        this.opened();
        return;
      case "held": {
        const { memory, disk, damaged } = message;
        this.stats = { memory, disk, damaged };
        return;
      }
    }
  }

  private moved(key: string, where: Where): void {
    if (where.memory || where.disk || where.queued) this.places.set(key, where);
    else this.places.delete(key);
    const bytes = this.pending.get(key);
    if (bytes === undefined || where.queued) return;
    this.pending.delete(key);
    this.pendingBytes -= bytes;
  }

  private answer(ticket: number, pages?: readonly (Uint8Array | undefined)[]): void {
    const waiting = this.waiting.get(ticket);
    if (!waiting) return;
    this.waiting.delete(ticket);
    clearTimeout(waiting.timer);
    waiting.resolve(pages ?? waiting.keys.map(() => undefined));
  }

  private died(): void {
    this.alive = false;
    this.places.clear();
    this.opened();
    for (const ticket of [...this.waiting.keys()]) this.answer(ticket);
  }
}
