// Owns: a model file as memory: mapped read-only through libc, or, where that cannot be (no koffi for this platform, a
// file system without mmap), read piece by piece as it is asked for. Knows nothing of formats. The one file of formats/
// that touches koffi and, with open.ts, the file system.
//
// Lifetime: a view is valid until close(). A view kept beyond that reads zeros, never unmapped memory: close() lays
// empty pages over the mapping and gives the addresses back once the last view has been collected. Native code that was
// handed an address has no such net. All views of a file share one buffer: copy before posting one to another thread,
// or the whole file is cloned. A file that another program truncates while it is mapped ends the process (SIGBUS).
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { createRequire } from "node:module";
import { check, FormatError, InternalError, UserError } from "../base/errors.js";
import { log } from "../base/log.js";

export interface MappedFile {
  readonly path: string;
  /** Bytes of the file when it was opened. */
  readonly size: number;
  /** False: every view is a fresh copy read from the file. */
  readonly mapped: boolean;
  /** Bytes [start, end); at most maxViewBytes. */
  view(start: number, end: number): Uint8Array;
  /** Pages that lie wholly inside [start, end) need not stay in memory; a later read fetches them again. */
  release(start: number, end: number): void;
  close(): void;
}

/** The longest typed array that Node 20 can make; koffi ends the process over a longer one. */
export const maxViewBytes = 2 ** 32;

interface Libc {
  readonly pageBytes: number;
  /** undefined: the system refused. */
  map(fd: number, bytes: number): number | undefined;
  /** Lays zero pages over a mapping. */
  blank(address: number, bytes: number): boolean;
  unmap(address: number, bytes: number): void;
  drop(address: number, bytes: number): void;
  arrayBuffer(address: number, bytes: number): ArrayBuffer;
}

const PROT_READ = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = process.platform === "darwin" ? 0x1000 : 0x20;
const MADV_DONTNEED = 4;

function loadLibc(): Libc {
  if (process.platform !== "linux" && process.platform !== "darwin") throw new Error(`no mmap on ${process.platform}`);
  const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
  const lib = koffi.load(null);
  const mmap = lib.func("mmap", "uintptr_t", ["uintptr_t", "size_t", "int", "int", "int", "int64_t"]);
  const munmap = lib.func("munmap", "int", ["uintptr_t", "size_t"]);
  const madvise = lib.func("madvise", "int", ["uintptr_t", "size_t", "int"]);
  const pageBytes = lib.func("getpagesize", "int", [])() as number;
  // MAP_FAILED is the highest address, a bigint here; every real one is below 2^48, a number.
  const address = (result: number | bigint) => (typeof result === "number" ? result : undefined);
  return {
    pageBytes,
    map: (fd, bytes) => address(mmap(0, bytes, PROT_READ, MAP_PRIVATE, fd, 0)),
    blank: (at, bytes) =>
      address(mmap(at, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0)) !== undefined,
    unmap: (at, bytes) => void munmap(at, bytes),
    drop: (at, bytes) => void madvise(at, bytes, MADV_DONTNEED),
    arrayBuffer: (at, bytes) => koffi.view(at as never, bytes),
  };
}

let libc: Libc | undefined;
let unavailable: unknown;

function theLibc(): Libc | undefined {
  if (libc === undefined && unavailable === undefined) {
    try {
      libc = loadLibc();
    } catch (error) {
      unavailable = error;
    }
  }
  return libc;
}

let warned = false;

function warnOnce(path: string, reason: unknown): void {
  if (warned) return;
  warned = true;
  log.warn(`${path} cannot be memory-mapped: it is read instead, which is slower and takes memory`, {
    reason: reason instanceof Error ? reason.message : String(reason),
  });
}

/** Opens a regular file for reading. mmap: false reads it even where it could be mapped. */
export function mapFile(path: string, options: { readonly mmap?: boolean } = {}): MappedFile {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    throw openError(path, error);
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new FormatError(`${path} is not a regular file`);
    const system = options.mmap === false || stat.size === 0 ? undefined : theLibc();
    const address = system?.map(fd, stat.size);
    if (system !== undefined && address !== undefined) {
      closeSync(fd);
      return new Mapping(path, stat.size, system, address);
    }
    if (options.mmap !== false && stat.size > 0) warnOnce(path, unavailable ?? "mmap was refused");
    return new Reading(path, stat.size, fd);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openError(path: string, error: unknown): UserError {
  const code = (error as NodeJS.ErrnoException).code;
  if (code === "ENOENT") {
    return new UserError(`there is no file ${path}`, { status: 404, code: "model_not_found", cause: error });
  }
  return new UserError(`${path} cannot be opened for reading (${code})`, { code: "model_unreadable", cause: error });
}

function checkRange(file: MappedFile, start: number, end: number): void {
  if (!(Number.isSafeInteger(start) && Number.isSafeInteger(end) && 0 <= start && start <= end && end <= file.size)) {
    throw new FormatError(`${file.path} has ${file.size} bytes: there is nothing at ${start} to ${end}`);
  }
  if (end - start > maxViewBytes) {
    throw new FormatError(
      `${file.path}: ${end - start} bytes in one piece; at most ${maxViewBytes} can be viewed at once`,
    );
  }
}

/** What must outlive the Mapping: the addresses, until nobody can read them any more. */
class Pages {
  private views = 0;
  private closed = false;

  constructor(
    readonly system: Libc,
    readonly address: number,
    readonly bytes: number,
  ) {}

  open(start: number, end: number): ArrayBuffer {
    const buffer = this.system.arrayBuffer(this.address + start, end - start);
    this.views++;
    collected.register(buffer, this);
    return buffer;
  }

  close(): void {
    this.closed = true;
    if (this.views === 0) this.system.unmap(this.address, this.bytes);
    // Where even that is refused the mapping stays as it is, until the views are gone.
    else this.system.blank(this.address, this.bytes);
  }

  viewCollected(): void {
    this.views--;
    if (this.closed && this.views === 0) this.system.unmap(this.address, this.bytes);
  }
}

const collected = new FinalizationRegistry<Pages>((pages) => pages.viewCollected());

class Mapping implements MappedFile {
  readonly mapped = true;
  private readonly pages: Pages;
  /** The whole file, where one typed array can hold it; longer files get a buffer a view. */
  private whole: Uint8Array | undefined;
  private closed = false;

  constructor(
    readonly path: string,
    readonly size: number,
    system: Libc,
    address: number,
  ) {
    this.pages = new Pages(system, address, size);
    if (size <= maxViewBytes) this.whole = new Uint8Array(this.pages.open(0, size));
  }

  view(start: number, end: number): Uint8Array {
    if (this.closed) throw closedError(this.path);
    checkRange(this, start, end);
    if (this.whole !== undefined) return this.whole.subarray(start, end);
    return end === start ? new Uint8Array(0) : new Uint8Array(this.pages.open(start, end));
  }

  release(start: number, end: number): void {
    if (this.closed) return;
    check(0 <= start && start <= end && end <= this.size, `release(${start}, ${end}) of ${this.size} bytes`);
    const { pageBytes } = this.pages.system;
    const from = Math.ceil(start / pageBytes) * pageBytes;
    const to = end >= this.size ? this.size : Math.floor(end / pageBytes) * pageBytes;
    if (to > from) this.pages.system.drop(this.pages.address + from, to - from);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.whole = undefined;
    this.pages.close();
  }
}

class Reading implements MappedFile {
  readonly mapped = false;
  private closed = false;

  constructor(
    readonly path: string,
    readonly size: number,
    private readonly fd: number,
  ) {}

  view(start: number, end: number): Uint8Array {
    if (this.closed) throw closedError(this.path);
    checkRange(this, start, end);
    const bytes = new Uint8Array(end - start);
    for (let at = 0; at < bytes.length; ) {
      const got = readSync(this.fd, bytes, at, Math.min(bytes.length - at, 2 ** 30), start + at);
      if (got === 0) throw new FormatError(`${this.path} became shorter while it was read`);
      at += got;
    }
    return bytes;
  }

  release(): void {}

  close(): void {
    if (this.closed) return;
    this.closed = true;
    closeSync(this.fd);
  }
}

function closedError(path: string): InternalError {
  return new InternalError(`${path} was closed: its bytes can no longer be read`);
}
