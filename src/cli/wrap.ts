// Owns: an answer on a terminal: words that do not fit on a line go to the next, and reasoning is set apart in grey.
const grey = "\x1b[90m";
const plain = "\x1b[0m";

/** Text in pieces → text with line breaks at spaces. A word longer than a line is left to the terminal. */
export class WordWrap {
  private column = 0;
  private word = "";

  /** columns: of the terminal; 0: nothing is changed. */
  constructor(private readonly columns: number) {}

  push(piece: string): string {
    if (this.columns === 0) return piece;
    let out = "";
    for (const char of piece) {
      if (char === "\n") {
        out += this.take() + char;
        this.column = 0;
      } else if (char === " " || char === "\t") {
        out += this.take();
        // A space at the end of a full line would begin the next.
        if (this.column < this.columns) out += char;
        this.column++;
      } else this.word += char;
    }
    return out;
  }

  flush(): string {
    return this.take();
  }

  private take(): string {
    const { word } = this;
    if (word === "") return "";
    this.word = "";
    const length = [...word].length;
    const breaks = this.column > 0 && this.column + length > this.columns && length <= this.columns;
    this.column = (breaks ? 0 : this.column) + length;
    return (breaks ? "\n" : "") + word;
  }
}

export interface AnswerView {
  readonly onText: (text: string) => void;
  readonly onReasoning: (text: string) => void;
  /** Writes what is held back; ends the line where the answer did not. */
  end(): void;
}

/** hideThinking: reasoning is not shown. */
export function answerView(
  out: { write(text: string): unknown; readonly isTTY?: boolean; readonly columns?: number },
  { wordWrap, hideThinking }: { wordWrap: boolean; hideThinking: boolean },
): AnswerView {
  const tty = out.isTTY === true;
  const wrap = new WordWrap(tty && wordWrap ? (out.columns ?? 0) : 0);
  let reasoning = false;
  let last = "\n";
  const write = (text: string) => {
    if (text === "") return;
    out.write(text);
    last = text;
  };
  const leaveReasoning = () => {
    if (!reasoning) return;
    reasoning = false;
    write(`${wrap.flush()}${tty ? plain : ""}\n...done thinking.\n\n`);
  };
  return {
    onText(text) {
      leaveReasoning();
      write(wrap.push(text));
    },
    onReasoning(text) {
      if (hideThinking) return;
      if (!reasoning) write(`Thinking...\n${tty ? grey : ""}`);
      reasoning = true;
      write(wrap.push(text));
    },
    end() {
      leaveReasoning();
      write(wrap.flush());
      if (!last.endsWith("\n")) out.write("\n");
    },
  };
}
