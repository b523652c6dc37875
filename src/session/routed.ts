// Owns: one choice's way from tokens to deltas where an answer has parts: detokenizer, router, and stop strings, which end
// its text and are not looked for in reasoning and calls. Control tokens that the dialect names reach the router as marks.
import type { TokenLogprobs } from "../engine/types.js";
import { controlSpelling } from "../text/grammar/ebnf.js";
import type { StopMatcher } from "../text/stop.js";
import type { TextStream } from "./needs.js";
import type { AnswerRouter, Segment } from "./router.js";
import type { Delta, DeltaToken } from "./types.js";

export type PartDelta = Exclude<Delta, { type: "start" | "finish" }>;

export class RoutedText {
  /** The stop string that was found; nothing may be pushed after it. */
  stop: string | undefined;
  count = 0;
  private pending: DeltaToken[] = [];
  private decoded = 0;

  constructor(
    private readonly index: number,
    private readonly detokenizer: TextStream,
    private readonly router: AnswerRouter,
    private readonly matcher: StopMatcher | undefined,
    private readonly marks: ReadonlySet<number>,
    private readonly bytesOf: (id: number) => Uint8Array,
  ) {}

  get calls(): number {
    return this.router.calls;
  }

  push(id: number, logprobs: TokenLogprobs | undefined): PartDelta[] {
    this.pushSilent(id, logprobs);
    const text = this.marks.has(id) ? this.detokenizer.flush() + controlSpelling(id) : this.detokenizer.push(id);
    this.decoded += text.length;
    return text === "" ? [] : this.deltas(this.router.push(text));
  }

  /** A token that gives no text. */
  pushSilent(id: number, logprobs: TokenLogprobs | undefined): void {
    this.count += 1;
    this.pending.push({ id, bytes: this.bytesOf(id), offset: this.decoded, logprobs });
  }

  /** What is still held back, once no token can follow. */
  flush(): PartDelta[] {
    if (this.stop !== undefined) return [];
    const rest = this.router.push(this.detokenizer.flush());
    const deltas = this.deltas([...rest, ...this.router.end()]);
    const held = this.stop === undefined ? (this.matcher?.flush() ?? "") : "";
    return held === "" ? deltas : [...deltas, this.content(held)];
  }

  /** Tokens that never went out. */
  rest(): readonly DeltaToken[] {
    return this.pending;
  }

  private deltas(segments: readonly Segment[]): PartDelta[] {
    const out: PartDelta[] = [];
    for (const segment of segments) {
      if (segment.type === "content") {
        const found = this.matcher?.push(segment.text) ?? { text: segment.text };
        if (found.text !== "") out.push(this.content(found.text));
        this.stop = found.stop;
        if (this.stop !== undefined) return out;
      } else out.push({ ...segment, index: this.index, tokens: this.pending.splice(0) });
    }
    return out;
  }

  private content(text: string): PartDelta {
    return { type: "content", index: this.index, text, tokens: this.pending.splice(0) };
  }
}
