// Owns: SentencePiece's precompiled normalization: a table from byte sequences to their replacements, held as an
// XOR-compressed double array. Checks every index: the table comes from a file. Where Hugging Face's library
// replaces a whole grapheme for its first character's sake, this does as SentencePiece does. Source: SentencePiece's normalizer and
// S. Kanda, "Space- and time-efficient string dictionaries" (2018).
//
//   | u32 bytes of array | array of u32 nodes | replacements, each ended by 0 |
import { FormatError } from "../base/errors.js";
import { ByteBuffer, characterBytes } from "./bytes.js";

export class CharsMap {
  private readonly nodes: DataView;
  private readonly nodeCount: number;
  private readonly replacements: Uint8Array;

  constructor(map: Uint8Array) {
    const view = new DataView(map.buffer, map.byteOffset, map.byteLength);
    const arrayBytes = map.length >= 4 ? view.getUint32(0, true) : 0;
    if (map.length < 4 || arrayBytes + 4 >= map.length) {
      throw new FormatError("the tokenizer's normalization table (precompiled charsmap) is truncated");
    }
    this.nodes = new DataView(map.buffer, map.byteOffset + 4, arrayBytes);
    this.nodeCount = arrayBytes >> 2;
    this.replacements = map.subarray(4 + arrayBytes);
  }

  /** The text with every longest match replaced. */
  normalize(text: string): string {
    const bytes = encoder.encode(text);
    const out = new ByteBuffer(bytes.length * 2);
    for (let at = 0; at < bytes.length; ) {
      const { length, replacement } = this.match(bytes, at, bytes.length);
      const kept = Math.min(characterBytes(bytes[at]), bytes.length - at);
      out.writeBytes(length > 0 ? replacement : bytes.subarray(at, at + kept));
      at += length > 0 ? length : kept;
    }
    return decoder.decode(out.bytes.subarray(0, out.length));
  }

  private node(index: number): number {
    if (index >= this.nodeCount) throw new FormatError("the tokenizer's normalization table points outside itself");
    return this.nodes.getUint32(index * 4, true);
  }

  /** The longest replaced sequence at bytes[at, end): its length (0: none) and what replaces it. */
  match(bytes: Uint8Array, at: number, end: number): { length: number; replacement: Uint8Array } {
    let length = 0;
    let found = 0;
    let index = base(this.node(0));
    for (let i = at; i < end && bytes[i] !== 0; i++) {
      index = (index ^ bytes[i]) >>> 0;
      const node = this.node(index);
      if ((node & 0x800000ff) !== bytes[i]) break;
      index = (index ^ base(node)) >>> 0;
      if (((node >>> 8) & 1) === 1) {
        length = i - at + 1;
        found = this.node(index) & 0x7fffffff;
      }
    }
    if (length === 0) return { length, replacement: this.replacements.subarray(0, 0) };
    const stop = this.replacements.indexOf(0, found);
    if (stop < 0) throw new FormatError("the tokenizer's normalization table has a replacement without an end");
    return { length, replacement: this.replacements.subarray(found, stop) };
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Where a node's children begin: bits 10 to 30, scaled by 256 where bit 9 is set. */
function base(node: number): number {
  return ((node >>> 10) << ((node & (1 << 9)) >>> 6)) >>> 0;
}
