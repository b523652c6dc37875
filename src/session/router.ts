// Owns: taking an answer apart as it comes: reasoning, text, tool calls. It reads by the dialect that the answer's grammar
// was made of (text/grammar/answer.ts), so what was constrained is read exactly; of an answer that no grammar bound, it
// finds the reasoning. Text is held back only while it may be the beginning of a mark.
import type { Dialect } from "../text/dialect.js";
import { type ReasoningStart, withControls } from "../text/grammar/answer.js";

export type Segment =
  | { readonly type: "content" | "reasoning"; readonly text: string }
  /** A name comes with the first piece of a call. */
  | {
      readonly type: "toolCall";
      readonly call: number;
      readonly id: string;
      readonly name?: string;
      readonly arguments: string;
    };

export interface RouterOptions {
  readonly dialect: Dialect;
  readonly reasoning: ReasoningStart;
  /** Calls are looked for. */
  readonly calls: boolean;
  readonly controls: ReadonlyMap<string, number>;
}

type State = "begin" | "reasoning" | "content" | "name" | "arguments" | "between" | "done";

export class AnswerRouter {
  /** Calls begun so far. */
  calls = 0;
  private state: State;
  private held = "";
  /** White space at the beginning of a part is not its own. */
  private fresh = true;
  private reasoned: boolean;
  private id = "";
  private readonly json = new JsonEnd();

  private readonly openReasoning: string;
  private readonly closeReasoning: string;
  private readonly openContent: string;
  private readonly closeContent: string;
  private readonly trigger: string;
  private readonly syntax: { open: string; before: string; middle: string; after: string; between: string };

  constructor(private readonly options: RouterOptions) {
    const { dialect, reasoning, controls } = options;
    const seen = (text: string | undefined) => withControls(text ?? "", controls);
    const { calls } = dialect;
    this.openReasoning = seen(dialect.reasoning?.open);
    this.closeReasoning = seen(dialect.reasoning?.close);
    this.openContent = seen(dialect.content?.open);
    this.closeContent = seen(dialect.content?.close);
    this.trigger = seen(calls.trigger);
    this.syntax = {
      open: seen(calls.open),
      before: seen(calls.before),
      middle: seen(calls.middle),
      after: seen(calls.after),
      between: seen(calls.between),
    };
    this.reasoned = reasoning === "none";
    this.state = reasoning === "inside" ? "reasoning" : "begin";
  }

  push(text: string): Segment[] {
    this.held += text;
    const out: Segment[] = [];
    while (this.advance(out));
    return out;
  }

  /** At the end of the answer, whole or cut. */
  end(): Segment[] {
    const { state, held } = this;
    this.held = "";
    if (held === "" || (state !== "begin" && state !== "reasoning" && state !== "content")) return [];
    return [{ type: state === "reasoning" ? "reasoning" : "content", text: held }];
  }

  /** One move; false where it needs more text. */
  private advance(out: Segment[]): boolean {
    switch (this.state) {
      case "begin":
        return this.begin();
      case "reasoning":
        return this.reasoning(out);
      case "content":
        return this.content(out);
      case "name":
        return this.name(out);
      case "arguments":
        return this.arguments(out);
      case "between":
        return this.between();
      case "done":
        this.held = "";
        return false;
    }
  }

  private begin(): boolean {
    const text = this.held.trimStart();
    const marks: [mark: string, state: State, wanted: boolean][] = [
      [this.openReasoning, "reasoning", !this.reasoned],
      [this.openContent, "content", this.openContent !== ""],
      [this.trigger, "name", this.options.calls],
    ];
    for (const [mark, state, wanted] of marks) {
      if (!wanted || !text.startsWith(mark)) continue;
      this.held = state === "name" ? text.slice(this.opening(0).length) : text.slice(mark.length);
      if (state === "name" && text.length < this.opening(0).length) {
        this.held = text;
        return false;
      }
      this.enter(state);
      return true;
    }
    if (marks.some(([mark, , wanted]) => wanted && mark.startsWith(text))) return false;
    this.enter("content");
    this.fresh = this.reasoned && this.options.reasoning !== "none";
    return true;
  }

  private enter(state: State): void {
    this.state = state;
    this.fresh = true;
  }

  private reasoning(out: Segment[]): boolean {
    const found = this.upTo([this.closeReasoning], "reasoning", true, out);
    if (found === undefined) return false;
    this.reasoned = true;
    this.held = this.held.slice(this.closeReasoning.length);
    this.enter("begin");
    return true;
  }

  private content(out: Segment[]): boolean {
    const marks = [
      ...(this.options.calls ? [this.trigger] : []),
      ...(this.closeContent === "" ? [] : [this.closeContent]),
    ];
    const found = this.upTo(marks, "content", this.options.calls, out);
    if (found === undefined) return false;
    if (found === this.trigger && this.options.calls) {
      const opening = this.opening(0);
      if (this.held.length < opening.length) return false;
      this.held = this.held.slice(opening.length);
      this.enter("name");
    } else this.enter("done");
    return true;
  }

  /** Gives out what comes before the first of the marks and leaves `held` at it; undefined where none is there yet. */
  private upTo(
    marks: readonly string[],
    type: "content" | "reasoning",
    trim: boolean,
    out: Segment[],
  ): string | undefined {
    if (this.fresh) {
      this.held = this.held.trimStart();
      if (this.held === "") return undefined;
    }
    let at = -1;
    let found: string | undefined;
    for (const mark of marks) {
      const start = this.held.indexOf(mark);
      if (start < 0 || (at >= 0 && start >= at)) continue;
      at = start;
      found = mark;
    }
    let text = this.held.slice(0, at < 0 ? this.held.length - this.pending(marks) : at);
    const rest = this.held.slice(text.length);
    const kept = trim ? text.length - text.trimEnd().length : 0;
    text = text.slice(0, text.length - kept);
    if (text !== "") {
      out.push({ type, text });
      this.fresh = false;
    }
    // White space before a mark is the mark's; before more text it is the text's.
    this.held = at >= 0 ? rest : this.held.slice(text.length);
    return found;
  }

  /** How much of the end may be the beginning of a mark. */
  private pending(marks: readonly string[]): number {
    let most = 0;
    for (const mark of marks) {
      for (let length = Math.min(mark.length - 1, this.held.length); length > most; length--) {
        if (this.held.endsWith(mark.slice(0, length))) most = length;
      }
    }
    return most;
  }

  // ---- calls

  private opening(i: number): string {
    const before = this.syntax.before.replace("{i}", String(i));
    return i === 0 ? this.syntax.open + before : this.syntax.between + before;
  }

  private name(out: Segment[]): boolean {
    const end = this.held.indexOf(this.syntax.middle);
    if (end < 0) return false;
    this.id = callId(this.options.dialect.calls.idLength);
    out.push({ type: "toolCall", call: this.calls, id: this.id, name: this.held.slice(0, end), arguments: "" });
    this.held = this.held.slice(end + this.syntax.middle.length);
    this.calls++;
    this.json.begin();
    this.enter("arguments");
    return true;
  }

  private arguments(out: Segment[]): boolean {
    if (this.held === "") return false;
    const end = this.json.find(this.held);
    const text = end < 0 ? this.held : this.held.slice(0, end);
    this.held = this.held.slice(text.length);
    out.push({ type: "toolCall", call: this.calls - 1, id: this.id, arguments: text });
    if (end < 0) return false;
    this.enter("between");
    return true;
  }

  private between(): boolean {
    const { after } = this.syntax;
    const next = after + this.opening(this.calls);
    if (this.options.dialect.calls.between !== undefined && this.held.startsWith(next)) {
      this.held = this.held.slice(next.length);
      this.enter("name");
      return true;
    }
    if (next.startsWith(this.held)) return false;
    this.enter("done");
    return true;
  }
}

/** Where a JSON object ends, in pieces of its text. */
class JsonEnd {
  private depth = 0;
  private quoted = false;
  private escaped = false;

  begin(): void {
    this.depth = 0;
    this.quoted = false;
    this.escaped = false;
  }

  /** The place after its last brace; -1: not in this piece. */
  find(text: string): number {
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (this.quoted) {
        if (this.escaped) this.escaped = false;
        else if (c === "\\") this.escaped = true;
        else if (c === '"') this.quoted = false;
      } else if (c === '"') this.quoted = true;
      else if (c === "{" || c === "[") this.depth++;
      else if ((c === "}" || c === "]") && --this.depth === 0) return i + 1;
    }
    return -1;
  }
}

function callId(length: number | undefined): string {
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  const random = crypto.getRandomValues(new Uint8Array(length ?? 24));
  const text = Array.from(random, (byte) => alphabet[byte % alphabet.length]).join("");
  return length === undefined ? `call_${text}` : text;
}
