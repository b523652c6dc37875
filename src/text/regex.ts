// Owns: reading the regular expressions that tokenizers are published with (Oniguruma's and Rust's dialect) and writing
// them as JavaScript's, with the `v` flag. What the two dialects mean differently is written out: \s and \w are Unicode's,
// (?i: groups list both cases and the folds ſ and K, possessive and atomic groups become a lookahead with a
// backreference, ^ and $ stand at lines. Refuses what tokenizers do not use: captures by reference, recursion, \G, \X.
import { FormatError } from "../base/errors.js";

const space = "\\p{White_Space}";
const word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const edge = `(?:(?<=[${word}])(?![${word}])|(?<![${word}])(?=[${word}]))`;
const inside = `(?:(?<=[${word}])(?=[${word}])|(?<![${word}])(?![${word}]))`;

/** Inside a class these are spliced in; outside they stand in brackets. */
const classes: Readonly<Record<string, string>> = {
  s: space,
  d: "\\p{Nd}",
  w: word,
  h: "0-9A-Fa-f",
};

const anchors: Readonly<Record<string, string>> = {
  A: "(?<![\\s\\S])",
  z: "(?![\\s\\S])",
  Z: "(?=\\n?(?![\\s\\S]))",
  b: edge,
  B: inside,
  R: "(?:\\r\\n|[\\n-\\r\\u0085\\u2028\\u2029])",
  N: "[^\\n]",
  K: "",
};

const controls: Readonly<Record<string, number>> = { r: 13, n: 10, t: 9, f: 12, v: 11, a: 7, e: 27, "0": 0 };

const posix: Readonly<Record<string, string>> = {
  alpha: "\\p{Alphabetic}",
  digit: "\\p{Nd}",
  alnum: "\\p{Alphabetic}\\p{Nd}",
  upper: "\\p{Uppercase}",
  lower: "\\p{Lowercase}",
  space,
  punct: "\\p{P}\\p{S}",
  cntrl: "\\p{Cc}",
  word,
  xdigit: "0-9A-Fa-f",
};

/** A published pattern as a JavaScript one. Throws FormatError with the place where it cannot be read. */
export function toJavaScript(pattern: string): string {
  return new Translator(pattern).translate();
}

/** Compiled for searching from lastIndex. */
export function compile(pattern: string, sticky: boolean): RegExp {
  return new RegExp(toJavaScript(pattern), sticky ? "vy" : "vg");
}

/** Matches exactly this text. */
export function quoteRegex(text: string): string {
  return Array.from(text, (c) => literal(c.codePointAt(0)!)).join("");
}

class Translator {
  private readonly characters: string[];
  private at = 0;
  private captures = 0;

  constructor(private readonly pattern: string) {
    this.characters = Array.from(pattern);
  }

  translate(): string {
    const out = this.alternatives(false);
    if (this.at < this.characters.length) this.fail(`unbalanced "${this.characters[this.at]}"`);
    return out;
  }

  private fail(what: string): never {
    throw new FormatError(
      `a pre-tokenizer's pattern cannot be used: ${what} at character ${this.at} of ${this.pattern}`,
    );
  }

  private peek(text: string): boolean {
    for (let i = 0; i < text.length; i++) if (this.characters[this.at + i] !== text[i]) return false;
    return true;
  }

  private take(text: string): boolean {
    if (!this.peek(text)) return false;
    this.at += text.length;
    return true;
  }

  /** To the closing parenthesis or the end. */
  private alternatives(folded: boolean): string {
    let out = "";
    let fold = folded;
    while (this.at < this.characters.length && !this.peek(")")) {
      if (this.take("|")) {
        out += "|";
        continue;
      }
      if (this.take("(?i)")) {
        fold = true;
        continue;
      }
      out += this.quantified(fold);
    }
    return out;
  }

  private quantified(folded: boolean): string {
    let atom = this.atom(folded);
    for (;;) {
      const quantifier = this.quantifier();
      if (quantifier === undefined) return atom;
      const { text, interval } = quantifier;
      if (this.take("?")) atom = `${atom}${text}?`;
      else if (!interval && this.take("+")) atom = this.atomic(`${atom}${text}`);
      else atom = `${atom}${text}`;
      // A quantifier of a quantifier applies to the whole.
      if (this.peek("*") || this.peek("+") || this.peek("?")) atom = `(?:${atom})`;
    }
  }

  private atomic(inner: string): string {
    return `(?:(?=(${inner}))\\${++this.captures})`;
  }

  private quantifier(): { text: string; interval: boolean } | undefined {
    for (const text of ["*", "+", "?"]) if (this.take(text)) return { text, interval: false };
    const match = /^\{(\d*)(,?)(\d*)\}/.exec(this.characters.slice(this.at, this.at + 16).join(""));
    if (match === null || (match[1] === "" && match[3] === "")) return undefined;
    this.at += match[0].length;
    return { text: `{${match[1] || "0"}${match[2]}${match[3]}}`, interval: true };
  }

  private atom(folded: boolean): string {
    const c = this.characters[this.at];
    if (c === "(") return this.group(folded);
    if (c === "[") {
      this.at++;
      return this.charClass(folded);
    }
    this.at++;
    if (c === ".") return "[^\\n]";
    if (c === "^") return "(?<![^\\n])";
    if (c === "$") return "(?![^\\n])";
    if (c === "\\") return this.escape(folded);
    if (c === "*" || c === "+" || c === "?") this.fail(`nothing before "${c}"`);
    return foldedLiteral(c.codePointAt(0)!, folded);
  }

  private group(folded: boolean): string {
    this.at++;
    const close = (inner: string, head: string) => {
      if (!this.take(")")) this.fail("a parenthesis is not closed");
      return `${head}${inner})`;
    };
    for (const head of ["?=", "?!", "?<=", "?<!", "?:"]) {
      if (this.take(head)) return close(this.alternatives(folded), `(${head}`);
    }
    if (this.take("?i:")) return close(this.alternatives(true), "(?:");
    if (this.take("?-i:")) return close(this.alternatives(false), "(?:");
    if (this.take("?>")) {
      const number = ++this.captures;
      return close(this.alternatives(folded), "(?:(?=(").concat(`)\\${number})`);
    }
    if (this.take("?<") || this.take("?P<")) {
      while (this.at < this.characters.length && !this.take(">")) this.at++;
    } else if (this.peek("?")) this.fail("an unknown kind of group");
    return close(this.alternatives(folded), "(?:");
  }

  private escape(folded: boolean): string {
    const c = this.characters[this.at];
    if (c !== undefined && c in anchors) {
      this.at++;
      return anchors[c];
    }
    const set = this.escapedSet();
    if (set !== undefined) return set.startsWith("\\p{") && set.indexOf("}") === set.length - 1 ? set : `[${set}]`;
    return foldedLiteral(this.escapedCharacter(), folded);
  }

  /** \s, \p{L} and the like as what stands inside brackets; undefined for an escaped character. */
  private escapedSet(): string | undefined {
    const c = this.characters[this.at];
    if (c === undefined) this.fail("a lone backslash");
    const lower = c.toLowerCase();
    if (lower in classes && "sdwhSDWH".includes(c)) {
      this.at++;
      return c === lower ? classes[c] : `[^${classes[lower]}]`;
    }
    if (lower !== "p") return undefined;
    this.at++;
    let name = this.characters[this.at++];
    if (name === "{") {
      const end = this.characters.indexOf("}", this.at);
      if (end < 0) this.fail("a property is not closed");
      name = this.characters.slice(this.at, end).join("");
      this.at = end + 1;
    }
    const negated = name.startsWith("^");
    return property(negated ? name.slice(1) : name, (c === "P") !== negated) ?? this.fail(`unknown property "${name}"`);
  }

  private escapedCharacter(): number {
    const c = this.characters[this.at++];
    if (c in controls) return controls[c];
    if (c === "x" || c === "u") {
      const rest = this.characters.slice(this.at, this.at + 12).join("");
      const match = (
        c === "x" ? /^(?:\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{2}))/ : /^(?:\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{4}))/
      ).exec(rest);
      if (match === null) this.fail(`a \\${c} without its number`);
      this.at += match[0].length;
      return Number.parseInt(match[1] ?? match[2], 16);
    }
    if (/[0-9A-Za-z]/.test(c)) this.fail(`an unknown escape \\${c}`);
    return c.codePointAt(0)!;
  }

  /** After the opening bracket. */
  private charClass(folded: boolean): string {
    const negated = this.take("^");
    const operands: string[] = [];
    let items = "";
    let first = true;
    for (;;) {
      const c = this.characters[this.at];
      if (c === undefined) this.fail("a bracket is not closed");
      if (c === "]" && !first) {
        this.at++;
        break;
      }
      first = false;
      if (this.take("&&")) {
        operands.push(items);
        items = "";
        continue;
      }
      items += this.classItem(folded);
    }
    operands.push(items);
    const body = operands.length === 1 ? items : operands.map((o) => `[${o}]`).join("&&");
    return `[${negated ? "^" : ""}${body}]`;
  }

  private classItem(folded: boolean): string {
    if (this.peek("[:")) {
      const match = /^\[:(\^?)([a-z]+):\]/.exec(this.characters.slice(this.at, this.at + 12).join(""));
      if (match !== null && match[2] in posix) {
        this.at += match[0].length;
        return match[1] === "" ? posix[match[2]] : `[^${posix[match[2]]}]`;
      }
    }
    if (this.take("[")) return this.charClass(folded);
    if (this.peek("\\")) {
      this.at++;
      const set = this.escapedSet();
      if (set !== undefined) return set;
      return this.range(this.escapedCharacter(), folded);
    }
    return this.range(this.characters[this.at++].codePointAt(0)!, folded);
  }

  private range(from: number, folded: boolean): string {
    const next = this.characters[this.at + 1];
    if (!this.peek("-") || next === "]" || next === "[" || next === undefined) return foldedRange(from, from, folded);
    const mark = this.at++;
    let to: number;
    if (this.take("\\")) {
      const set = this.escapedSet();
      if (set !== undefined) {
        this.at = mark;
        return foldedRange(from, from, folded);
      }
      to = this.escapedCharacter();
    } else to = this.characters[this.at++].codePointAt(0)!;
    if (to < from) this.fail("a range that ends before it begins");
    return foldedRange(from, to, folded);
  }
}

function literal(code: number): string {
  const c = String.fromCodePoint(code);
  return /[0-9A-Za-z]/.test(c) ? c : `\\u{${code.toString(16)}}`;
}

/** Every character that a letter equals when case is ignored (simple case folding). */
function folds(code: number): number[] {
  const c = String.fromCodePoint(code);
  const all = new Set([code]);
  for (const other of [c.toLowerCase(), c.toUpperCase()]) {
    if (other.length === String.fromCodePoint(other.codePointAt(0)!).length) all.add(other.codePointAt(0)!);
  }
  if (c === "s" || c === "S") all.add(0x17f);
  if (c === "k" || c === "K") all.add(0x212a);
  return [...all];
}

function foldedLiteral(code: number, folded: boolean): string {
  const all = folded ? folds(code) : [code];
  return all.length === 1 ? literal(code) : `[${all.map(literal).join("")}]`;
}

function foldedRange(from: number, to: number, folded: boolean): string {
  const plain = from === to ? literal(from) : `${literal(from)}-${literal(to)}`;
  if (!folded) return plain;
  if (to - from > 0x200)
    throw new FormatError("a pre-tokenizer's pattern ignores case in a range of over 512 characters");
  const others = new Set<number>();
  for (let code = from; code <= to; code++) for (const f of folds(code)) if (f < from || f > to) others.add(f);
  return plain + [...others].map(literal).join("");
}

/** \p{name} under the name that JavaScript knows it by. */
function property(name: string, negated: boolean): string | undefined {
  const letter = negated ? "P" : "p";
  const capital = name.charAt(0).toUpperCase() + name.slice(1);
  const long: Record<string, string> = { Space: "White_Space", Alpha: "Alphabetic", Digit: "Nd", Upper: "Uppercase" };
  for (const candidate of [name, capital, long[capital], `Script=${name}`, `Script=${capital}`]) {
    if (candidate === undefined) continue;
    try {
      new RegExp(`\\p{${candidate}}`, "v");
      return `\\${letter}{${candidate}}`;
    } catch {
      // Not the name of a property: try the next.
    }
  }
  return undefined;
}
