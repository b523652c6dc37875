// Owns: callers' own grammars (EBNF or GBNF) as rules among others: names get a prefix, character classes and literals are
// written anew, each rule on one line, "." means any character but a line feed. Refuses undefined names and what it cannot
// scan; everything else about the syntax is for the compiler to say.
import { UserError } from "../../base/errors.js";
import { type CharSet, charClass, complement, literal, type Rules, union } from "./ebnf.js";
import { leftRecursive, type Piece } from "./recursion.js";
import { repeated } from "./repeat.js";

const longest = 100_000;
const largestBound = 1000;
const escapes: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, "0": 0 };

interface Token extends Omit<Piece, "kind"> {
  readonly kind: Piece["kind"] | "is";
  readonly at: number;
}

/** Adds the caller's rules; the name of their root. */
export function foreignRule(rules: Rules, grammar: string, param = "format"): string {
  const fail = (at: number, what: string): never => {
    const line = grammar.slice(0, at).split("\n").length;
    throw new UserError(`The grammar, line ${line}: ${what}.`, { code: "invalid_grammar", param });
  };
  if (grammar.length > longest) fail(0, `it has ${grammar.length} characters; at most ${longest} are taken`);
  const tokens = scan(grammar, fail);
  const bodies = new Map<string, (Piece & { readonly at: number })[]>();
  let body: (Piece & { readonly at: number })[] | undefined;
  tokens.forEach((token, i) => {
    if (token.kind === "name" && tokens[i + 1]?.kind === "is") {
      if (bodies.has(token.text)) fail(token.at, `the rule ${token.text} is there twice`);
      body = [];
      bodies.set(token.text, body);
    } else if (token.kind === "is") {
      if (tokens[i - 1]?.kind !== "name") fail(token.at, "::= follows no name");
    } else if (body === undefined) fail(token.at, "a rule must begin with name ::=");
    else body.push({ ...token, kind: token.kind });
  });
  if (!bodies.has("root")) fail(grammar.length, 'there is no rule called "root"');
  const looping = leftRecursive(bodies);
  if (looping !== undefined) {
    const at = tokens.find(({ kind, text }) => kind === "name" && text === looping)!.at;
    fail(at, `the rule ${looping} may begin with itself (left recursion); write what repeats with * or +`);
  }
  const names = new Map([...bodies.keys()].map((name) => [name, rules.fresh(`own_${name}`)]));
  for (const [name, parts] of bodies) {
    for (const { kind, text, at } of parts) {
      if (kind === "name" && !names.has(text)) fail(at, `the rule ${text} is not defined`);
    }
    const text = written(rules, parts, names, fail);
    if (text === "") fail(0, `the rule ${name} is empty`);
    rules.define(names.get(name)!, text);
  }
  return names.get("root")!;
}

type Fail = (at: number, what: string) => never;

/** A rule's body with its bounds written out. */
function written(
  rules: Rules,
  parts: readonly (Piece & { readonly at: number })[],
  names: ReadonlyMap<string, string>,
  fail: Fail,
): string {
  let text = "";
  /** Where the last part begins, and where those brackets do that are open. */
  let last = 0;
  const open: number[] = [];
  for (const { kind, text: part, at } of parts) {
    const bounds = kind === "postfix" ? /^\{(\d+)(,?)(\d*)\}$/.exec(part) : null;
    if (bounds) {
      const min = Number(bounds[1]);
      const max = bounds[3] !== "" ? Number(bounds[3]) : bounds[2] === "" ? min : Number.POSITIVE_INFINITY;
      if (max < min) fail(at, "the bounds are out of order");
      if (min > largestBound || (Number.isFinite(max) && max > largestBound))
        fail(at, `bounds go up to ${largestBound}`);
      const times = repeated(rules, text.slice(last), min, max);
      text = text.slice(0, last) + (times.includes(" ") ? `(${times})` : times);
    } else if (kind === "postfix") text += part;
    else {
      if (text !== "") text += " ";
      if (part !== ")") last = text.length;
      if (part === "(") open.push(text.length);
      if (part === ")") last = open.pop() ?? 0;
      text += kind === "name" ? names.get(part) : part;
    }
  }
  return text;
}

function scan(grammar: string, fail: Fail): Token[] {
  const tokens: Token[] = [];
  for (let at = 0; at < grammar.length; ) {
    const rest = grammar.slice(at, at + 200);
    const skipped = /^(\s+|#[^\n]*)/.exec(rest);
    if (skipped) {
      at += skipped[0].length;
      continue;
    }
    const start = at;
    const c = grammar[at];
    const name = /^[A-Za-z_][A-Za-z0-9_.-]*/.exec(rest)?.[0];
    const bounds = /^\{\s*\d+\s*(,\s*\d*\s*)?\}/.exec(rest)?.[0];
    let kind: Token["kind"] = "text";
    let text = c;
    if (rest.startsWith("::=")) [kind, text] = ["is", "::="];
    else if (name !== undefined) [kind, text] = ["name", name];
    else if (bounds !== undefined) [kind, text] = ["postfix", bounds.replace(/\s/g, "")];
    else if ("*+?".includes(c)) kind = "postfix";
    else if (c === '"' || c === "[") {
      const [end, written] = c === '"' ? quotedText(grammar, at, fail) : bracket(grammar, at, fail);
      tokens.push({ kind, text: written, at: start });
      at = end;
      continue;
    } else if (c === ".") {
      tokens.push({ kind, text: charClass(complement([[10, 10]]))!, at: start });
      at++;
      continue;
    } else if (!"()|".includes(c)) fail(at, `${JSON.stringify(c)} cannot stand here`);
    tokens.push({ kind, text, at: start });
    at += text === c || kind !== "postfix" ? text.length : bounds!.length;
  }
  return tokens;
}

/** The character at `at`, escaped or not, and where the next begins. */
function character(grammar: string, at: number, fail: Fail): [code: number, end: number] {
  if (at >= grammar.length) fail(at, "it ends within quotes or brackets");
  if (grammar[at] !== "\\") {
    const code = grammar.codePointAt(at)!;
    return [code, at + (code > 0xffff ? 2 : 1)];
  }
  const hex = /^\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})/.exec(grammar.slice(at, at + 12));
  if (hex) {
    const code = Number.parseInt(hex[1].slice(1), 16);
    if (code > 0x10ffff) fail(at, "there is no such character");
    return [code, at + hex[0].length];
  }
  const c = grammar[at + 1] ?? fail(at, "it ends with a backslash");
  if (!(c in escapes) && /[A-Za-z0-9]/.test(c)) fail(at, `the escape \\${c} is not known`);
  return [escapes[c] ?? c.codePointAt(0)!, at + 2];
}

function quotedText(grammar: string, start: number, fail: Fail): [end: number, text: string] {
  let text = "";
  let at = start + 1;
  while (grammar[at] !== '"') {
    if (at >= grammar.length || grammar[at] === "\n") fail(start, "the text in quotes has no end");
    const [code, end] = character(grammar, at, fail);
    if (code < 0x20 && ![9, 10, 13].includes(code)) fail(at, "control characters cannot be part of fixed text");
    text += String.fromCodePoint(code);
    at = end;
  }
  return [at + 1, literal(text)];
}

function bracket(grammar: string, start: number, fail: Fail): [end: number, text: string] {
  let at = start + 1;
  const negated = grammar[at] === "^";
  if (negated) at++;
  let set: CharSet = [];
  while (grammar[at] !== "]") {
    if (at >= grammar.length) fail(start, "the class has no end");
    const [from, afterFrom] = character(grammar, at, fail);
    at = afterFrom;
    let to = from;
    if (grammar[at] === "-" && grammar[at + 1] !== "]") [to, at] = character(grammar, at + 1, fail);
    if (to < from) fail(start, "a range is out of order");
    set = union(set, [[from, to]]);
  }
  const text = charClass(negated ? complement(set) : set) ?? fail(start, "the class is empty");
  return [at + 1, text];
}
