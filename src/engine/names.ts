// Owns: what a full page is called: SHA-256 over (its parent's name, its tokens), from a root that mixes in the salt and
// the adapter. Equal names mean equal tokens from position 0 on, under the same salt.
import { sha256Words } from "../base/sha256.js";

/** One sequence's chain: names of its pages so far, made as the tokens become known. */
export class PageNames {
  private parent: Int32Array;
  private readonly keys: string[] = [];
  private readonly input: Int32Array;

  /** lasting: the salt means the same in another process. */
  constructor(
    private readonly pageTokens: number,
    salt: string,
    readonly lasting = true,
  ) {
    this.parent = sha256Words(new TextEncoder().encode(salt));
    this.input = new Int32Array(8 + pageTokens);
  }

  /** Name of page `index` of the sequence; its tokens must be known. */
  at(index: number, tokens: Int32Array): string {
    while (this.keys.length <= index) {
      const from = this.keys.length * this.pageTokens;
      this.input.set(this.parent);
      this.input.set(tokens.subarray(from, from + this.pageTokens), 8);
      this.parent = sha256Words(new Uint8Array(this.input.buffer));
      this.keys.push(keyOf(this.parent));
    }
    return this.keys[index];
  }
}

/** The 256 bits as 16 UTF-16 units: the shortest key that a Map takes. */
function keyOf(words: Int32Array): string {
  const units = new Uint16Array(words.buffer, words.byteOffset, 16);
  return String.fromCharCode(...units);
}
