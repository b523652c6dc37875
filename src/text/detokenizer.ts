// Owns: turning a stream of token ids into text, whole characters only: the bytes of an unfinished UTF-8 character wait for
// the token that finishes them. No token is decoded twice.
import type { Tokenizer } from "./tokenizer.js";

export interface DetokenizerOptions {
  /** Control tokens give no text. Default true. */
  readonly skipSpecial?: boolean;
  /** Take away the space that SentencePiece puts before a text: right where the ids are a whole text, wrong where they
   *  continue one. Default false. */
  readonly stripLeadingSpace?: boolean;
}

export class Detokenizer {
  private decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  private readonly skipSpecial: boolean;
  private strip: boolean;

  constructor(
    private readonly tokenizer: Tokenizer,
    { skipSpecial = true, stripLeadingSpace = false }: DetokenizerOptions = {},
  ) {
    this.skipSpecial = skipSpecial;
    this.strip = stripLeadingSpace && tokenizer.addsSpace;
  }

  /** The text that this token completes; "" while a character is unfinished or for a hidden token. */
  push(id: number): string {
    const control = this.tokenizer.isControl(id);
    if (control && this.skipSpecial) return "";
    let bytes = this.tokenizer.decodeBytes(id);
    if (!control && this.strip) {
      if (bytes[0] === 0x20) bytes = bytes.subarray(1);
      this.strip = false;
    }
    return this.decoder.decode(bytes, { stream: true });
  }

  /** At the end: an unfinished character becomes U+FFFD. */
  flush(): string {
    return this.decoder.decode();
  }
}
