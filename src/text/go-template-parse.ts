// Owns: the syntax of Go's text/template as chat templates use it: text and {{ actions }} with their trimming, if, with,
// range, else if, break, continue, define and template, pipelines, variables, parentheses. What is not read (block,
// numbers other than decimal) is a FormatError that names the line.
import { FormatError } from "../base/errors.js";

export type Operand =
  | { readonly kind: "literal"; readonly value: string | number | boolean | null }
  /** names: .A.B after it; empty for the dot alone. */
  | { readonly kind: "dot"; readonly names: readonly string[] }
  | { readonly kind: "variable"; readonly variable: string; readonly names: readonly string[] }
  | { readonly kind: "function"; readonly name: string }
  | { readonly kind: "pipe"; readonly pipe: Pipe; readonly names: readonly string[] };

export type Command = readonly Operand[];

export interface Pipe {
  /** $a := or $i, $e := */
  readonly variables: readonly string[];
  readonly assigns: boolean;
  readonly commands: readonly Command[];
}

interface Branch {
  readonly pipe: Pipe;
  readonly body: readonly Node[];
  readonly otherwise: readonly Node[];
}

export type Node =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "action"; readonly pipe: Pipe; readonly line: number }
  | ({ readonly kind: "if" | "with" | "range"; readonly line: number } & Branch)
  | { readonly kind: "break" | "continue" }
  | { readonly kind: "template"; readonly name: string; readonly pipe: Pipe | null; readonly line: number };

export interface ParsedTemplate {
  readonly nodes: readonly Node[];
  /** define */
  readonly named: ReadonlyMap<string, readonly Node[]>;
}

export class GoSyntaxError extends FormatError {
  constructor(line: number, message: string) {
    super(`the template's line ${line}: ${message}`);
  }
}

interface Action {
  readonly tokens: readonly string[];
  readonly line: number;
}

type Piece = string | Action;

const tokenPattern =
  /\s+|"(?:[^"\\\n]|\\.)*"|`[^`]*`|:=|[=|(),]|\$\w*(?:\.\w+)*|\.(?:\w+(?:\.\w+)*)?|[+-]?\d+(?:\.\d+)?(?![\w.])|[A-Za-z_]\w*/y;

/** Text and actions by turns, trimmed; comments are gone. */
function pieces(source: string): Piece[] {
  const out: Piece[] = [];
  let at = 0;
  let trimNext = false;
  const lineAt = (offset: number) => source.slice(0, offset).split("\n").length;
  const addText = (text: string) => {
    const kept = trimNext ? text.trimStart() : text;
    if (kept !== "") out.push(kept);
  };
  for (;;) {
    const open = source.indexOf("{{", at);
    if (open < 0) {
      addText(source.slice(at));
      return out;
    }
    const trimsBefore = /^\{\{-\s/.test(source.slice(open, open + 4));
    const before = source.slice(at, open);
    addText(trimsBefore ? before.trimEnd() : before);
    const line = lineAt(open);
    const inner = open + (trimsBefore ? 3 : 2);
    const comment = /^\s*\/\*[\s\S]*?\*\/(\s-)?\s*\}\}/.exec(source.slice(inner));
    if (comment !== null) {
      at = inner + comment[0].length;
      trimNext = comment[1] !== undefined;
      continue;
    }
    const { tokens, end, trims } = readAction(source, inner, line);
    out.push({ tokens, line });
    at = end;
    trimNext = trims;
  }
}

function readAction(source: string, from: number, line: number): { tokens: string[]; end: number; trims: boolean } {
  const tokens: string[] = [];
  for (let at = from; ; ) {
    const close = /^(\s-)?\}\}/.exec(source.slice(at, at + 4));
    if (close !== null) return { tokens, end: at + close[0].length, trims: close[1] !== undefined };
    tokenPattern.lastIndex = at;
    const token = tokenPattern.exec(source)?.[0];
    if (token === undefined) {
      const shown = source.slice(at, at + 20).split("\n")[0];
      throw new GoSyntaxError(
        line,
        shown === "" ? "a {{ that does not end" : `${JSON.stringify(shown)} is not understood`,
      );
    }
    // A name right behind a value is that value's field only after ")"; spaces tell arguments apart.
    if (/^\s/.test(token)) {
      if (source.slice(at + token.length - 1).match(/^\s-\}\}/)) {
        at += token.length - 1;
        continue;
      }
      tokens.push(" ");
    } else tokens.push(token);
    at += token.length;
  }
}

const reserved = new Set(["if", "with", "range", "else", "end", "define", "template", "block", "break", "continue"]);

class Parser {
  private at = 0;
  private loops = 0;
  readonly named = new Map<string, readonly Node[]>();

  constructor(private readonly pieces: readonly Piece[]) {}

  /** Up to an action whose keyword is one of `until`, which is returned and taken. */
  list(until: readonly string[]): { nodes: Node[]; end: ActionReader | null } {
    const nodes: Node[] = [];
    while (this.at < this.pieces.length) {
      const piece = this.pieces[this.at++];
      if (typeof piece === "string") {
        nodes.push({ kind: "text", text: piece });
        continue;
      }
      const reader = new ActionReader(piece);
      const keyword = reader.keyword();
      if (keyword !== null && until.includes(keyword)) return { nodes, end: reader };
      const node = this.node(keyword, reader);
      if (node !== null) nodes.push(node);
    }
    return { nodes, end: null };
  }

  private node(keyword: string | null, reader: ActionReader): Node | null {
    const { line } = reader;
    switch (keyword) {
      case null:
        return { kind: "action", pipe: reader.pipe(true), line };
      case "if":
      case "with":
      case "range":
        return this.branch(keyword, reader);
      case "break":
      case "continue":
        reader.finish();
        if (this.loops === 0) throw new GoSyntaxError(line, `${keyword} stands outside of a range`);
        return { kind: keyword };
      case "define": {
        const name = reader.text();
        reader.finish();
        this.named.set(name, this.body(line, "define"));
        return null;
      }
      case "template": {
        const name = reader.text();
        return { kind: "template", name, pipe: reader.isDone() ? null : reader.pipe(true), line };
      }
      default:
        throw new GoSyntaxError(line, `{{ ${keyword} }} is not ${keyword === "block" ? "supported" : "expected here"}`);
    }
  }

  private body(line: number, keyword: string): Node[] {
    const { nodes, end } = this.list(["end"]);
    if (end === null) throw new GoSyntaxError(line, `{{ ${keyword} }} has no {{ end }}`);
    end.finish();
    return nodes;
  }

  private branch(kind: "if" | "with" | "range", reader: ActionReader): Node {
    const { line } = reader;
    const pipe = reader.pipe(true);
    if (kind === "range") this.loops++;
    const { nodes: body, end } = this.list(["end", "else"]);
    if (kind === "range") this.loops--;
    if (end === null) throw new GoSyntaxError(line, `{{ ${kind} }} has no {{ end }}`);
    return { kind, pipe, body, otherwise: end.taken === "else" ? this.otherwise(end, line, kind) : [], line };
  }

  private otherwise(reader: ActionReader, line: number, kind: string): readonly Node[] {
    const next = reader.isDone() ? null : reader.keyword();
    if (next === "if" || next === "with") return [this.branch(next, reader)];
    reader.finish();
    return this.body(line, kind);
  }
}

/** One action's tokens, from left to right. */
class ActionReader {
  private at = 0;
  readonly line: number;
  taken: string | null = null;
  private readonly tokens: readonly string[];

  constructor({ tokens, line }: Action) {
    this.tokens = tokens;
    this.line = line;
  }

  private skipSpace(): void {
    while (this.tokens[this.at] === " ") this.at++;
  }

  private peek(): string | undefined {
    this.skipSpace();
    return this.tokens[this.at];
  }

  isDone(): boolean {
    return this.peek() === undefined;
  }

  finish(): void {
    if (!this.isDone()) throw this.unexpected();
  }

  private unexpected(): GoSyntaxError {
    return new GoSyntaxError(this.line, `${JSON.stringify(this.peek() ?? "}}")} is not expected here`);
  }

  keyword(): string | null {
    const token = this.peek();
    if (token === undefined) throw new GoSyntaxError(this.line, "an action is empty");
    if (!reserved.has(token)) return null;
    this.at++;
    this.taken = token;
    return token;
  }

  text(): string {
    const token = this.peek();
    if (token === undefined || !/^["`]/.test(token)) throw this.unexpected();
    this.at++;
    return unquoted(token, this.line);
  }

  /** whole: to the end of the action; otherwise up to ")". */
  pipe(whole: boolean): Pipe {
    const { variables, assigns } = this.declaration();
    const commands: Command[] = [];
    for (;;) {
      commands.push(this.command());
      const token = this.peek();
      if (token === "|") {
        this.at++;
        continue;
      }
      if (whole ? token === undefined : token === ")") break;
      throw this.unexpected();
    }
    if (!whole) this.at++;
    return { variables, assigns, commands };
  }

  private declaration(): { variables: string[]; assigns: boolean } {
    const start = this.at;
    const variables: string[] = [];
    while (/^\$\w+$/.test(this.peek() ?? "")) {
      variables.push(this.tokens[this.at++]);
      const token = this.peek();
      if (token === ",") {
        this.at++;
        continue;
      }
      if (token === ":=" || token === "=") {
        this.at++;
        return { variables, assigns: token === "=" };
      }
      break;
    }
    this.at = start;
    return { variables: [], assigns: false };
  }

  private command(): Command {
    const operands: Operand[] = [];
    for (let token = this.peek(); token !== undefined && token !== "|" && token !== ")"; token = this.peek()) {
      operands.push(this.operand(token));
    }
    if (operands.length === 0) throw this.unexpected();
    return operands;
  }

  private operand(token: string): Operand {
    this.at++;
    if (token === "(") {
      const pipe = this.pipe(false);
      const next = this.tokens[this.at];
      const names = next?.startsWith(".") && next.length > 1 ? next.slice(1).split(".") : [];
      if (names.length > 0) this.at++;
      return { kind: "pipe", pipe, names };
    }
    if (token.startsWith(".")) return { kind: "dot", names: token === "." ? [] : token.slice(1).split(".") };
    if (token.startsWith("$")) {
      const [variable, ...names] = token.split(".");
      return { kind: "variable", variable, names };
    }
    if (/^["`]/.test(token)) return { kind: "literal", value: unquoted(token, this.line) };
    if (/^[+-]?\d/.test(token)) return { kind: "literal", value: Number(token) };
    if (token === "true" || token === "false") return { kind: "literal", value: token === "true" };
    if (token === "nil") return { kind: "literal", value: null };
    if (/^[A-Za-z_]/.test(token) && !reserved.has(token)) return { kind: "function", name: token };
    this.at--;
    throw this.unexpected();
  }
}

const escapes: Readonly<Record<string, string>> = {
  ...{ n: "\n", t: "\t", r: "\r", a: "\x07", b: "\b", f: "\f", v: "\v", "\\": "\\", '"': '"', "'": "'" },
};

function unquoted(token: string, line: number): string {
  const inner = token.slice(1, -1);
  if (token.startsWith("`")) return inner;
  return inner.replace(/\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[\s\S])/g, (_all, code: string) => {
    if (/^[uUx]./.test(code)) return String.fromCodePoint(Number.parseInt(code.slice(1), 16));
    const plain = escapes[code];
    if (plain === undefined) throw new GoSyntaxError(line, `\\${code} is no escape`);
    return plain;
  });
}

/** Throws FormatError with the line of what cannot be read. */
export function parseGoTemplate(source: string): ParsedTemplate {
  const parser = new Parser(pieces(source));
  const { nodes } = parser.list([]);
  return { nodes, named: parser.named };
}
