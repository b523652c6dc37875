// Owns: the meeting of JavaScript's strings and UTF-8: a growing byte buffer that strings are written to, the alphabet in
// which byte-level vocabularies spell bytes as letters, and what lone surrogates become (U+FFFD, as everywhere on the web).

/** Byte-level vocabularies write byte b as the character byteAlphabet[b]: printable Latin-1 as itself, the other 68 bytes
 *  as U+0100 and up, in order. Source: GPT-2's bytes_to_unicode. */
export const byteAlphabet: readonly string[] = (() => {
  let next = 256;
  const printable = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
})();

/** The byte that a character of the alphabet spells, by character code; -1: not in the alphabet. */
const alphabetByte = (() => {
  const table = new Int16Array(256 + 68).fill(-1);
  for (let b = 0; b < 256; b++) table[byteAlphabet[b].charCodeAt(0)] = b;
  return table;
})();

/** SentencePiece's visible space, U+2581. */
export const visibleSpace = "\u2581";

const encoder = new TextEncoder();

/** The text's UTF-8, each byte as its letter. */
export function toAlphabet(text: string): string {
  return Array.from(encoder.encode(text), (b) => byteAlphabet[b]).join("");
}

/** Lone surrogates cannot be written as UTF-8. */
export function wellFormed(text: string): string {
  return /\p{Cs}/u.test(text) ? text.replace(/\p{Cs}/gu, "\uFFFD") : text;
}

/** Bytes in use are [0, length) of `bytes`, which moves when it grows: hold neither across a write. */
export class ByteBuffer {
  bytes: Uint8Array;
  length = 0;

  constructor(capacity = 256) {
    this.bytes = new Uint8Array(capacity);
  }

  reserve(more: number): void {
    if (this.length + more <= this.bytes.length) return;
    const grown = new Uint8Array(Math.max(this.bytes.length * 2, this.length + more));
    grown.set(this.bytes.subarray(0, this.length));
    this.bytes = grown;
  }

  writeBytes(bytes: Uint8Array): void {
    this.reserve(bytes.length);
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  /** text[start, end) as UTF-8; spaced: U+2581 becomes a space. */
  writeText(text: string, start: number, end: number, spaced: boolean): void {
    this.reserve((end - start) * 3);
    if (end - start > 2048 && !spaced) {
      this.length += encoder.encodeInto(text.slice(start, end), this.bytes.subarray(this.length)).written;
      return;
    }
    const bytes = this.bytes;
    let at = this.length;
    for (let i = start; i < end; i++) {
      let c = text.charCodeAt(i);
      if (c < 0x80) {
        bytes[at++] = c;
        continue;
      }
      if (c < 0x800) {
        bytes[at++] = 0xc0 | (c >> 6);
        bytes[at++] = 0x80 | (c & 63);
        continue;
      }
      if (c === 0x2581 && spaced) {
        bytes[at++] = 0x20;
        continue;
      }
      if (c >= 0xd800 && c < 0xe000) {
        const low = c < 0xdc00 && i + 1 < end ? text.charCodeAt(i + 1) : 0;
        if (low >= 0xdc00 && low < 0xe000) {
          c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
          i++;
          bytes[at++] = 0xf0 | (c >> 18);
          bytes[at++] = 0x80 | ((c >> 12) & 63);
          bytes[at++] = 0x80 | ((c >> 6) & 63);
          bytes[at++] = 0x80 | (c & 63);
          continue;
        }
        c = 0xfffd;
      }
      bytes[at++] = 0xe0 | (c >> 12);
      bytes[at++] = 0x80 | ((c >> 6) & 63);
      bytes[at++] = 0x80 | (c & 63);
    }
    this.length = at;
  }

  /** text[start, end), each character a byte of the alphabet. False, and nothing written, where one is not. */
  writeAlphabet(text: string, start: number, end: number): boolean {
    this.reserve(end - start);
    const bytes = this.bytes;
    let at = this.length;
    for (let i = start; i < end; i++) {
      const c = text.charCodeAt(i);
      const byte = c < alphabetByte.length ? alphabetByte[c] : -1;
      if (byte < 0) return false;
      bytes[at++] = byte;
    }
    this.length = at;
    return true;
  }
}

/** Bytes of the UTF-8 character that begins with this byte; 1 for a byte that cannot begin one. */
export function characterBytes(lead: number): number {
  if (lead < 0xc0) return 1;
  if (lead < 0xe0) return 2;
  return lead < 0xf0 ? 3 : 4;
}

/** A growing list of token ids. */
export class IdList {
  ids = new Int32Array(64);
  length = 0;

  push(id: number): void {
    if (this.length === this.ids.length) {
      const grown = new Int32Array(this.length * 2);
      grown.set(this.ids);
      this.ids = grown;
    }
    this.ids[this.length++] = id;
  }

  take(): Int32Array {
    return this.ids.slice(0, this.length);
  }
}
