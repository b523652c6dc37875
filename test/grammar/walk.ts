// Random walks through a grammar over a vocabulary of bytes, some longer tokens and some control tokens: each step draws
// among the tokens that the mask allows, as a model that knows nothing would.

import type { TokenGrammar } from "../../src/engine/types.js";
import { GrammarEngine, type GrammarVocabulary } from "../../src/host/grammar-engine.js";
import { controlSpelling, literal, Rules } from "../../src/text/grammar/ebnf.js";
import { formatBody, isForeign, type OutputFormat } from "../../src/text/grammar/format.js";
import { seededRandom } from "../support/random.js";

const words = [
  '{"',
  '": ',
  '", "',
  '"}',
  '"}]',
  "}}",
  "], ",
  "tool_call",
  "<tool",
  "the ",
  "é",
  "日本",
  "😀",
  "\\n",
  "\\u00",
  "123",
  "</think>\n",
];
const encoder = new TextEncoder();
export const end = 256 + words.length;

export interface World {
  readonly engine: GrammarEngine;
  readonly controls: ReadonlyMap<string, number>;
}

export function world(controlSpellings: readonly string[] = []): World {
  const tokens = words.map((word) => encoder.encode(word));
  const vocabulary: GrammarVocabulary = {
    size: end + 1 + controlSpellings.length,
    // No model writes single bytes of what is no text: 0xC0 and above 0xF4 begin nothing.
    bytesOf: (id) => (id < 128 ? Uint8Array.of(id) : (tokens[id - 256] ?? new Uint8Array(0))),
    isControl: (id) => id >= end,
    encode: (text) => Int32Array.from(encoder.encode(text)),
  };
  const controls = new Map(controlSpellings.map((spelling, i) => [spelling, end + 1 + i]));
  return { engine: new GrammarEngine(vocabulary), controls };
}

export function formatGrammar(format: OutputFormat): TokenGrammar {
  const rules = new Rules();
  const spelling = {
    quoted: literal,
    stop: (mark: string) => ({ head: mark, rest: "" }),
    spelled: (text: string) => text,
  };
  const text = rules.text(formatBody(rules, format, { spelling, close: "", param: "format" }));
  return { text, controls: [], triggers: [], ends: [end], foreign: isForeign(format) };
}

/** Whether a text is of the format: to its end, or so far. Beyond ASCII it may have the vocabulary's characters. */
export async function taken(
  { engine }: World,
  format: OutputFormat,
  text: string,
): Promise<"whole" | "begun" | "refused"> {
  const matching = await engine.open(formatGrammar(format));
  const fits = Array.from(text).every((c) => matching.accept(c < "\x80" ? c.charCodeAt(0) : 256 + words.indexOf(c)));
  const ended = fits && matching.accept(end);
  matching.dispose();
  if (!fits) return "refused";
  return ended ? "whole" : "begun";
}

export interface Walk {
  readonly ids: readonly number[];
  /** Control tokens as marks. */
  readonly text: string;
  readonly complete: boolean;
}

/** The longer it gets, the likelier it closes what is open. */
export async function walk({ engine }: World, grammar: TokenGrammar, seed: number, most = 1500): Promise<Walk> {
  const random = seededRandom(seed);
  const matching = await engine.open(grammar);
  const ids: number[] = [];
  const closers = new Set([34, 93, 125, end, end + 1].concat([259, 260, 261]));
  let complete = false;
  while (ids.length < most) {
    const verdict = await matching.verdict(seed % 2 === 0);
    if (verdict.kind === "end") {
      complete = true;
      break;
    }
    ids.push(...verdict.jump);
    const allowed: number[] = [];
    for (let id = 0; id < verdict.mask.length * 32; id++)
      if ((verdict.mask[id >>> 5] >>> (id & 31)) & 1) allowed.push(id);
    if (allowed.length === 0) throw new Error(`nothing may follow ${textOf(ids)}`);
    const closing = allowed.filter((id) => closers.has(id) || id > end);
    const pick = closing.length > 0 && random.next() < 0.15 + ids.length / 400 ? closing : allowed;
    const id = pick[Math.floor(random.next() * pick.length)];
    if (!matching.accept(id)) throw new Error(`${id} was allowed after ${textOf(ids)}, and is not accepted`);
    if (id === end) {
      complete = true;
      break;
    }
    ids.push(id);
  }
  matching.dispose();
  return { ids, text: textOf(ids), complete };
}

export function textOf(ids: readonly number[]): string {
  return ids.map(pieceOf).join("");
}

export function pieceOf(id: number): string {
  if (id > end) return controlSpelling(id);
  return id < 256 ? String.fromCharCode(id) : (words[id - 256] ?? "");
}
