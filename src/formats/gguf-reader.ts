// Owns: stepping through a GGUF header: every read is checked against the bytes at hand and the file's length first.
import { FormatError } from "../base/errors.js";
import { HeaderIncomplete } from "./header.js";

const maxNameBytes = 65535;
const maxStringBytes = 2 ** 28;

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** undefined: not UTF-8. */
export function decodeStrictly(bytes: Uint8Array): string | undefined {
  try {
    return strictUtf8.decode(bytes);
  } catch {
    return undefined;
  }
}

export class Reader {
  at = 0;
  readonly view: DataView;

  constructor(
    readonly bytes: Uint8Array,
    readonly fileBytes: number,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** Steps over n bytes and returns where they begin. */
  take(n: number, what: string): number {
    const start = this.at;
    const end = start + n;
    if (end > this.bytes.length) {
      if (end <= this.fileBytes) throw new HeaderIncomplete(end);
      throw new FormatError(`the file ends at byte ${this.fileBytes}, within ${what}: it is truncated or corrupt`);
    }
    this.at = end;
    return start;
  }

  u8(what: string): number {
    return this.bytes[this.take(1, what)];
  }

  u16(what: string): number {
    return this.view.getUint16(this.take(2, what), true);
  }

  u32(what: string): number {
    return this.view.getUint32(this.take(4, what), true);
  }

  /** Refuses what a double cannot hold: no file is that large. */
  u64(what: string): number {
    const at = this.take(8, what);
    const value = this.view.getUint32(at + 4, true) * 2 ** 32 + this.view.getUint32(at, true);
    if (!Number.isSafeInteger(value)) throw new FormatError(`${what}: an absurd number, ${value}`);
    return value;
  }

  /** A count of things that take at least minBytes each in the rest of the file. */
  count(what: string, minBytes: number): number {
    const count = this.u64(`the number of ${what}`);
    if (count > (this.fileBytes - this.at) / minBytes) {
      throw new FormatError(`${count} ${what} cannot be in the ${this.fileBytes - this.at} bytes that follow`);
    }
    return count;
  }

  /** Checks the lengths of an array's strings. */
  skipStrings(count: number, what: string): void {
    const end = endOfStrings(this.view, this.at, count);
    this.at = end < 0 ? -1 - end : end;
    if (end < 0) this.string(`a string in ${what}`); // says what is wrong
  }

  /** The bytes of a string, a view. */
  string(what: string): Uint8Array {
    const length = this.count(`bytes in ${what}`, 1);
    if (length > maxStringBytes) throw new FormatError(`${what}: a string of ${length} bytes is absurd`);
    const start = this.take(length, what);
    return this.bytes.subarray(start, start + length);
  }

  name(what: string): string {
    const bytes = this.string(what);
    if (bytes.length === 0 || bytes.length > maxNameBytes) {
      throw new FormatError(`${what} has ${bytes.length} bytes; 1 to ${maxNameBytes} are possible`);
    }
    const name = decodeStrictly(bytes);
    if (name === undefined) throw new FormatError(`${what} is not UTF-8`);
    return name;
  }
}

/**
 * Where `count` strings from `start` on end; -1 - at, where the one at `at` is too long or not all there. Vocabularies
 * have 262,144 strings: a function of its own, of locals alone, takes a quarter of the time.
 */
function endOfStrings(view: DataView, start: number, count: number): number {
  const last = view.byteLength - 8;
  let at = start;
  for (let i = 0; i < count; i++) {
    if (at > last) return -1 - at;
    const length = view.getUint32(at, true);
    if (view.getUint32(at + 4, true) !== 0 || length > maxStringBytes || length > last - at) return -1 - at;
    at += 8 + length;
  }
  return at;
}
