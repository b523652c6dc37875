// Owns: the two tiers of pages below a device: the latest in this process's memory, all of them on disk as far as its quota
// goes; what was used longest ago goes first. Blocks on the disk, so it lives in a thread of its own (page-worker.ts),
// where asking goes before writing.
import { mkdirSync, statfsSync } from "node:fs";
import { log } from "../base/log.js";
import { type AboutPages, digestOfFiles, PageFolder, sweep } from "./page-files.js";

export interface PageTiersOptions {
  /** Of all kinds of pages. */
  readonly folder: string;
  /** The model's, whose content the pages come from. */
  readonly files: readonly string[];
  /** What else they depend on (page-store.ts). */
  readonly kind: string;
  readonly about: AboutPages;
  /** Most bytes of this process's memory. */
  readonly memoryBytes: number;
  /** Most bytes of the disk, for all kinds together; 0: none. Undefined: from what is free. */
  readonly diskBytes?: number;
}

export interface Where {
  readonly memory: boolean;
  readonly disk: boolean;
  /** In memory, until it has been written. */
  readonly queued: boolean;
}

/** Hears where pages are from now on. */
export type MovedListener = (keys: readonly string[], where: Where) => void;

/** Of the free disk, what pages take where nobody says; and the most. */
const usualShare = 0.1;
const mostUsual = 32 * 2 ** 30;
/** What is left to others on a disk that is nearly full. */
const leftFree = 2 ** 30;
/** After a write that failed, milliseconds before the next is tried. */
const restMs = 30_000;

export class PageTiers {
  memoryBytes = 0;
  /** Of this kind. */
  diskBytes = 0;
  damaged = 0;
  private readonly memory = new Map<string, Uint8Array>();
  private readonly onDisk = new Set<string>();
  /** To be written, in order. */
  private readonly queue = new Map<string, Uint8Array>();
  private pages: PageFolder | undefined;
  private hasDisk: boolean;
  private quota = 0;
  /** Of all kinds, as far as is known. */
  private total = 0;
  private sinceSweep = 0;
  private restUntil = 0;

  constructor(
    private readonly options: PageTiersOptions,
    private readonly onMoved: MovedListener,
  ) {
    this.hasDisk = options.diskBytes !== 0;
  }

  get memoryPages(): number {
    return this.memory.size;
  }

  get diskPages(): number {
    return this.onDisk.size;
  }

  /** There is something to write, and where to. */
  get busy(): boolean {
    return this.queue.size > 0 && this.pages !== undefined;
  }

  /** Finds what is on disk. Until then, what is to be written waits. */
  async open(): Promise<void> {
    if (!this.hasDisk) return;
    try {
      await this.openDisk();
    } catch (error) {
      log.warn("the page cache is kept in memory alone", { reason: String(error) });
      this.hasDisk = false;
      const waiting = [...this.queue.keys()];
      this.queue.clear();
      this.tell(waiting);
    }
  }

  private async openDisk(): Promise<void> {
    const { folder, files, kind, about } = this.options;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const pages = new PageFolder(folder, kind, await digestOfFiles(folder, files), about);
    const keys = pages.open();
    for (const key of keys) this.onDisk.add(key);
    this.tell(keys);
    this.pages = pages;
    await this.sweep();
  }

  put(key: string, bytes: Uint8Array): void {
    this.keep(key, bytes);
    if (this.hasDisk && !this.onDisk.has(key)) this.queue.set(key, bytes);
    this.tell([key]);
  }

  /** The caller's own. What comes from the disk is not kept in memory: it goes to the device, and the system remembers
   *  what was read. */
  get(key: string): Uint8Array | undefined {
    const here = this.memory.get(key) ?? this.queue.get(key);
    if (here) {
      this.keep(key, here);
      return here.slice();
    }
    const bytes = this.read(key);
    if (bytes)
      this.onDisk.add(key); // also what another process wrote
    else this.onDisk.delete(key);
    this.tell([key]);
    return bytes;
  }

  /** Writes one page of those that wait. */
  async writeNext(): Promise<void> {
    const [next] = this.queue;
    if (next === undefined || !this.pages) return;
    const [key, bytes] = next;
    this.queue.delete(key);
    if (this.quota > 0 && Date.now() >= this.restUntil) {
      try {
        this.diskBytes += this.pages.write(key, bytes);
        this.onDisk.add(key);
        this.total += bytes.length;
        this.sinceSweep += bytes.length;
        if (this.total > this.quota || this.sinceSweep > this.quota / 8) await this.sweep();
      } catch (error) {
        this.failed("writing a page", error);
      }
    }
    this.tell([key]);
  }

  /** So many pages more were fetched: a number for people. */
  used(pages: number): void {
    this.pages?.used(pages);
  }

  private read(key: string): Uint8Array | undefined {
    try {
      const bytes = this.pages?.read(key);
      if (bytes === "damaged") this.damaged++;
      else return bytes ?? undefined;
    } catch (error) {
      this.failed("reading a page", error);
    }
    return undefined;
  }

  private async sweep(): Promise<void> {
    this.sinceSweep = 0;
    const { folder } = this.options;
    const { bytes, own, gone } = await sweep(folder, this.pages!.kind, (bytes) => this.quotaOf(bytes));
    this.total = bytes;
    this.diskBytes = own;
    for (const key of gone) this.onDisk.delete(key);
    this.tell(gone);
  }

  /** A disk that others fill is not filled further. */
  private quotaOf(bytes: number): number {
    const { bavail, bsize } = statfsSync(this.options.folder);
    const free = bavail * bsize;
    const wanted = this.options.diskBytes ?? Math.min(mostUsual, (free + bytes) * usualShare);
    this.quota = Math.max(0, Math.min(wanted, bytes + free - leftFree));
    return this.quota;
  }

  private keep(key: string, bytes: Uint8Array): void {
    const most = this.options.memoryBytes;
    if (bytes.length > most) return;
    if (!this.memory.delete(key)) this.memoryBytes += bytes.length;
    this.memory.set(key, bytes);
    for (const [oldest, { length }] of this.memory) {
      if (this.memoryBytes <= most) break;
      this.memory.delete(oldest);
      this.memoryBytes -= length;
      this.tell([oldest]);
    }
  }

  private failed(what: string, error: unknown): void {
    this.restUntil = Date.now() + restMs;
    log.warn(`the page cache on disk rests: ${what} failed`, { reason: String(error) });
  }

  /** Of each place the keys that are there. */
  private tell(keys: readonly string[]): void {
    const sorted = new Map<string, { where: Where; keys: string[] }>();
    for (const key of keys) {
      const where = { memory: this.memory.has(key), disk: this.onDisk.has(key), queued: this.queue.has(key) };
      const place = Object.values(where).join();
      const same = sorted.get(place) ?? { where, keys: [] };
      same.keys.push(key);
      sorted.set(place, same);
    }
    for (const { where, keys } of sorted.values()) this.onMoved(keys, where);
  }
}
