// Owns: one choice's way from tokens to text: detokenizer, then stop strings; and which token's text has been given out.
//
//   decoded text   "The answer is 4 2 Us|er:"          offsets are UTF-16 units of all text decoded so far
//   given out      ^^^^^^^^^^^^^^^^^^                  what follows is held back while it may become a stop string
//   tokens         a token goes out with the first of its text; the rest wait in `pending`
import type { TokenLogprobs } from "../engine/types.js";
import type { StopMatcher } from "../text/stop.js";
import type { TextStream } from "./needs.js";
import type { Delta, DeltaToken } from "./types.js";

type Content = Delta & { type: "content" };

export class ChoiceText {
  /** The stop string that was found; nothing may be pushed after it. */
  stop: string | undefined;
  /** Tokens pushed so far. */
  count = 0;
  /** Of tools: none is looked for. */
  readonly calls = 0;
  private pending: DeltaToken[] = [];
  private decoded = 0;
  private given = 0;

  /** Without a detokenizer tokens have no text. */
  constructor(
    private readonly index: number,
    private readonly detokenizer: TextStream | undefined,
    private readonly matcher: StopMatcher | undefined,
    private readonly bytesOf: (id: number) => Uint8Array,
    /** Stop strings do not count before so many tokens. */
    private readonly minTokens: number,
  ) {}

  push(id: number, logprobs: TokenLogprobs | undefined): Content[] {
    this.count += 1;
    this.pending.push({ id, bytes: this.bytesOf(id), offset: this.decoded, logprobs });
    if (this.detokenizer === undefined) return [this.content("", this.pending.splice(0))];
    return this.give(this.detokenizer.push(id));
  }

  /** A token that ends the choice and gives no text. */
  pushSilent(id: number, logprobs: TokenLogprobs | undefined): void {
    this.count += 1;
    this.pending.push({ id, bytes: this.bytesOf(id), offset: this.decoded, logprobs });
  }

  /** What is still held back, once no token can follow. */
  flush(): Content[] {
    if (this.stop !== undefined || this.detokenizer === undefined) return [];
    const last = this.give(this.detokenizer.flush());
    if (this.stop !== undefined || this.matcher === undefined) return last;
    return [...last, ...this.take(this.matcher.flush())];
  }

  /** Tokens that never went out. */
  rest(): readonly DeltaToken[] {
    return this.pending;
  }

  private give(text: string): Content[] {
    this.decoded += text.length;
    if (this.matcher === undefined || this.count < this.minTokens) return this.take(text);
    const found = this.matcher.push(text);
    this.stop = found.stop;
    return this.take(found.text);
  }

  private take(text: string): Content[] {
    if (text === "") return [];
    this.given += text.length;
    const waiting = this.pending.findIndex((token) => token.offset >= this.given);
    return [this.content(text, this.pending.splice(0, waiting < 0 ? this.pending.length : waiting))];
  }

  private content(text: string, tokens: readonly DeltaToken[]): Content {
    return { type: "content", index: this.index, text, tokens };
  }
}
