// Owns: the tokens of a vocabulary as bytes in one buffer, their types, and the hash table from bytes to id. No string is
// kept: 262,144 tokens are some 2 MB of bytes and 4 MB of table. It knows nothing of how text is cut into tokens.
//
//   bytes    | token 0 | token 1 | … | last token | pieces that only merges make |
//   offsets  0         ^         ^                ^ id ≥ size: never an output
import { FormatError } from "../base/errors.js";
import { ByteBuffer, byteAlphabet, visibleSpace } from "./bytes.js";

/** ggml's numbers (llama_token_type). */
export const TokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** How the file spells a normal token: bytes as letters (GPT-2), text with U+2581 for a space (SentencePiece), or text. */
export type Spelling = "alphabet" | "spaced" | "plain";

export interface VocabularySource {
  readonly tokens: ArrayLike<string>;
  /** TokenType of each; absent: all are normal. */
  readonly types?: ArrayLike<number>;
  readonly spelling: Spelling;
}

export interface PairPieces {
  left: number;
  right: number;
  joined: number;
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

export class Vocabulary {
  readonly size: number;
  readonly types: Uint8Array;
  readonly spelling: Spelling;
  /** The longest piece that text can be cut into, in bytes. */
  maxBytes = 0;
  /** Id of the token <0xNN> for each byte, or -1. */
  readonly byteIds = new Int32Array(256).fill(-1);
  /** Control, unknown and user-defined tokens by their literal spelling. */
  readonly specials = new Map<string, number>();

  private readonly buffer: ByteBuffer;
  private offsets: Uint32Array;
  private count = 0;
  /** Pairs (hash, id + 1); an empty slot has id + 1 = 0. */
  private slots: Int32Array;
  private used = 0;
  private readonly pair: PairPieces = { left: -1, right: -1, joined: -1 };
  /** Normal tokens of an alphabet vocabulary that are not spelled in the alphabet: they stand for their own text and
   *  are not pieces, since no bytes spell them. */
  private readonly literals = new Map<string, number>();

  constructor({ tokens, types, spelling }: VocabularySource) {
    const size = tokens.length;
    if (types !== undefined && types.length < size) {
      throw new FormatError(`the vocabulary has ${size} tokens but types for ${types.length}`);
    }
    this.size = size;
    this.spelling = spelling;
    this.types = new Uint8Array(size).fill(TokenType.normal);
    this.buffer = new ByteBuffer(size * 8 + 64);
    this.offsets = new Uint32Array(size + 1024);
    this.slots = new Int32Array(2 * tableSize(size));
    for (let id = 0; id < size; id++) {
      const type = types?.[id] ?? TokenType.normal;
      this.types[id] = type >= 1 && type <= 6 ? type : TokenType.unused;
      this.append(id, tokens[id]);
    }
  }

  private append(id: number, token: string): void {
    const type = this.types[id];
    if (type === TokenType.byte) {
      const byte = byteOf(token);
      if (byte < 0)
        throw new FormatError(`token ${id}, "${token}", is of type byte but is not spelled <0x00> to <0xFF>`);
      this.byteIds[byte] = id;
      this.buffer.reserve(1);
      this.buffer.bytes[this.buffer.length++] = byte;
      this.close();
      return;
    }
    const special = isSpecial(type);
    if (special) {
      this.specials.set(token, id);
      this.buffer.writeText(token, 0, token.length, false);
      this.close();
      return;
    }
    const spelled = this.write(token, 0, token.length);
    this.close();
    if (spelled) this.insert(id);
    else this.literals.set(token, id);
  }

  /** Writes a piece in this vocabulary's spelling at the buffer's end; false: it is not in the alphabet, written as text. */
  private write(piece: string, start: number, end: number): boolean {
    if (this.spelling === "alphabet") {
      if (this.buffer.writeAlphabet(piece, start, end)) return true;
      this.buffer.writeText(piece, start, end, false);
      return false;
    }
    this.buffer.writeText(piece, start, end, this.spelling === "spaced");
    return true;
  }

  /** Ends the piece that was just written; its id is the count so far. */
  private close(): void {
    if (this.count + 2 > this.offsets.length) {
      const grown = new Uint32Array(this.offsets.length * 2);
      grown.set(this.offsets);
      this.offsets = grown;
    }
    this.offsets[++this.count] = this.buffer.length;
  }

  private insert(id: number): void {
    const start = this.offsets[id];
    const end = this.offsets[id + 1];
    if (start === end) return;
    if (end - start > this.maxBytes) this.maxBytes = end - start;
    if (this.used * 3 >= this.slots.length) this.rehash();
    const bytes = this.buffer.bytes;
    const hash = hashBytes(bytes, start, end);
    const mask = this.slots.length / 2 - 1;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const held = this.slots[2 * slot + 1];
      if (held === 0) {
        this.slots[2 * slot] = hash;
        this.slots[2 * slot + 1] = id + 1;
        this.used++;
        return;
      }
      if (this.slots[2 * slot] === hash && this.equals(held - 1, bytes, start, end)) return;
    }
  }

  private rehash(): void {
    const old = this.slots;
    this.slots = new Int32Array(old.length * 2);
    const mask = this.slots.length / 2 - 1;
    for (let i = 0; i < old.length; i += 2) {
      if (old[i + 1] === 0) continue;
      let slot = old[i] & mask;
      while (this.slots[2 * slot + 1] !== 0) slot = (slot + 1) & mask;
      this.slots[2 * slot] = old[i];
      this.slots[2 * slot + 1] = old[i + 1];
    }
  }

  private equals(id: number, bytes: Uint8Array, start: number, end: number): boolean {
    let at = this.offsets[id];
    if (this.offsets[id + 1] - at !== end - start) return false;
    const own = this.buffer.bytes;
    for (let i = start; i < end; i++) if (own[at++] !== bytes[i]) return false;
    return true;
  }

  /** The piece whose bytes are bytes[start, end), or -1. Control, unknown, user-defined and byte tokens are not pieces. */
  find(bytes: Uint8Array, start: number, end: number): number {
    if (end - start > this.maxBytes) return -1;
    const hash = hashBytes(bytes, start, end);
    const slots = this.slots;
    const mask = slots.length / 2 - 1;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const held = slots[2 * slot + 1];
      if (held === 0) return -1;
      if (slots[2 * slot] === hash && this.equals(held - 1, bytes, start, end)) return held - 1;
    }
  }

  /** The piece spelled piece[start, end), or -1. */
  findPiece(piece: string, start = 0, end = piece.length): number {
    const mark = this.buffer.length;
    this.write(piece, start, end);
    const id = this.find(this.buffer.bytes, mark, this.buffer.length);
    this.buffer.length = mark;
    return id;
  }

  /** The pieces spelled text[start, middle) and text[next, end), and the piece that they make side by side. What is no
   *  token becomes a piece beyond the vocabulary. The result is overwritten by the next call. */
  internPair(text: string, middle: number, next: number): PairPieces {
    const mark = this.buffer.length;
    this.write(text, 0, middle);
    const between = this.buffer.length;
    this.write(text, next, text.length);
    const { bytes, length } = this.buffer;
    const pair = this.pair;
    pair.left = this.find(bytes, mark, between);
    pair.right = this.find(bytes, between, length);
    pair.joined = this.find(bytes, mark, length);
    this.buffer.length = mark;
    if (pair.left < 0) pair.left = this.internBytes(bytes.slice(mark, between));
    if (pair.right < 0) pair.right = this.internBytes(bytes.slice(between, length));
    if (pair.joined < 0) pair.joined = this.internBytes(bytes.slice(mark, length));
    return pair;
  }

  private internBytes(bytes: Uint8Array): number {
    const mark = this.buffer.length;
    this.buffer.writeBytes(bytes);
    return this.found(mark);
  }

  /** The piece of one byte, made if need be. */
  internByte(byte: number): number {
    return this.internBytes(Uint8Array.of(byte));
  }

  private found(mark: number): number {
    const id = this.find(this.buffer.bytes, mark, this.buffer.length);
    if (id >= 0) {
      this.buffer.length = mark;
      return id;
    }
    this.close();
    this.insert(this.count - 1);
    return this.count - 1;
  }

  /** Including pieces beyond the vocabulary. */
  get pieces(): number {
    return this.count;
  }

  lengthOf(id: number): number {
    return this.offsets[id + 1] - this.offsets[id];
  }

  /** What the token stands for in text. A view: valid until a piece is added. */
  bytesOf(id: number): Uint8Array {
    return this.buffer.bytes.subarray(this.offsets[id], this.offsets[id + 1]);
  }

  /** The token as the file spells it. */
  tokenOf(id: number): string {
    const bytes = this.bytesOf(id);
    if (this.types[id] === TokenType.byte) return `<0x${bytes[0].toString(16).toUpperCase().padStart(2, "0")}>`;
    const text = decoder.decode(bytes);
    if (isSpecial(this.types[id]) || this.literals.get(text) === id) return text;
    if (this.spelling === "alphabet") return Array.from(bytes, (b) => byteAlphabet[b]).join("");
    return this.spelling === "spaced" ? text.replaceAll(" ", visibleSpace) : text;
  }

  /** The id of a token as the file spells it. */
  idOf(token: string): number | undefined {
    const special = this.specials.get(token) ?? this.literals.get(token);
    if (special !== undefined) return special;
    const byte = byteOf(token);
    if (byte >= 0 && this.byteIds[byte] >= 0) return this.byteIds[byte];
    const id = this.findPiece(token);
    return id >= 0 && id < this.size && this.tokenOf(id) === token ? id : undefined;
  }

  /** For each byte b: 1 where a piece holds b and then a space, so that text must not be cut between the two. */
  joinsBeforeSpace(): Uint8Array {
    const joins = new Uint8Array(256);
    const { bytes } = this.buffer;
    for (let id = 0; id < this.count; id++) {
      if (id < this.size && (isSpecial(this.types[id]) || this.types[id] === TokenType.byte)) continue;
      const end = this.offsets[id + 1];
      for (let i = this.offsets[id] + 1; i < end; i++) if (bytes[i] === 0x20) joins[bytes[i - 1]] = 1;
    }
    return joins;
  }
}

export function isSpecial(type: number): boolean {
  return type === TokenType.control || type === TokenType.userDefined || type === TokenType.unknown;
}

/** The byte of a token spelled <0xNN>, or -1. */
function byteOf(token: string): number {
  return token.length === 6 && /^<0x[0-9A-Fa-f]{2}>$/.test(token) ? Number.parseInt(token.slice(3, 5), 16) : -1;
}

/** A power of two that so many entries fill to less than two thirds. */
export function tableSize(entries: number): number {
  return 1 << Math.max(4, Math.ceil(Math.log2(entries * 1.6 + 1)));
}

function hashBytes(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0x811c9dc5 | 0;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i], 0x01000193);
  hash ^= hash >>> 15;
  hash = Math.imul(hash, 0x2c1b3c6d);
  return hash ^ (hash >>> 13);
}
