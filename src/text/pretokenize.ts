// Owns: cutting text into words before subwords are looked for: a list of steps, each of which cuts every word of the step
// before. A step's pattern is in the published dialect (regex.ts). Words are ranges of a string; nothing is dropped unless
// a step says so.
import { toAlphabet } from "./bytes.js";
import { compile } from "./regex.js";

/** What becomes of a match: a word of its own, joined to its neighbour on one side or to matches beside it, or dropped. */
export type Behavior = "isolated" | "removed" | "mergedWithPrevious" | "mergedWithNext" | "contiguous";

export type Step =
  | { readonly kind: "split"; readonly pattern: string; readonly behavior?: Behavior; readonly invert?: boolean }
  /** Runs of digits in groups of three, the first group taking what is left over: 12345 is 12, 345. */
  | { readonly kind: "digitGroups" }
  /** What follows sees the UTF-8 bytes as letters (bytes.ts). */
  | { readonly kind: "alphabet" };

export type EmitWord = (text: string, start: number, end: number) => void;

type Cut = (text: string, start: number, end: number, emit: EmitWord) => void;

export class PreTokenizer {
  private readonly cuts: readonly Cut[];

  constructor(steps: readonly Step[]) {
    this.cuts = steps.map(cutOf);
  }

  /** Emits the words of `text` in order. */
  split(text: string, emit: EmitWord): void {
    this.run(0, text, 0, text.length, emit);
  }

  private run(index: number, text: string, start: number, end: number, emit: EmitWord): void {
    if (start === end) return;
    if (index === this.cuts.length) {
      emit(text, start, end);
      return;
    }
    const last = index + 1 === this.cuts.length;
    // A later step sees its word alone: what its lookaheads and anchors see ends there.
    const then: EmitWord = last
      ? emit
      : (t, s, e) => {
          if (e > s) this.run(index + 1, t, s, e, emit);
        };
    if (start === 0 && end === text.length) this.cuts[index](text, 0, end, then);
    else {
      const alone = text.slice(start, end);
      this.cuts[index](alone, 0, alone.length, then);
    }
  }
}

function cutOf(step: Step): Cut {
  if (step.kind === "split") return splitCut(step);
  return step.kind === "digitGroups" ? digitGroupsCut() : alphabetCut;
}

const alphabetCut: Cut = (text, start, end, emit) => {
  const letters = toAlphabet(text.slice(start, end));
  emit(letters, 0, letters.length);
};

function splitCut({ pattern, behavior = "isolated", invert = false }: Step & { kind: "split" }): Cut {
  const here = compile(pattern, true);
  const ahead = compile(pattern, false);
  if (behavior === "isolated") return isolatedCut(here, ahead);
  return (text, _start, end, emit) => {
    const pieces: { start: number; end: number; match: boolean }[] = [];
    let at = 0;
    ahead.lastIndex = 0;
    for (let m = ahead.exec(text); m !== null; m = ahead.exec(text)) {
      if (m[0].length === 0) {
        ahead.lastIndex += text.codePointAt(m.index)! > 0xffff ? 2 : 1;
        continue;
      }
      if (m.index > at) pieces.push({ start: at, end: m.index, match: invert });
      pieces.push({ start: m.index, end: ahead.lastIndex, match: !invert });
      at = ahead.lastIndex;
    }
    if (at < end) pieces.push({ start: at, end, match: invert });
    joinPieces(pieces, behavior, (start, to) => emit(text, start, to));
  };
}

/** Most patterns match everywhere, so the next match is first looked for where the last one ended: no match object. */
function isolatedCut(here: RegExp, ahead: RegExp): Cut {
  return (text, start, end, emit) => {
    let at = start;
    while (at < end) {
      here.lastIndex = at;
      if (here.test(text) && here.lastIndex > at) {
        emit(text, at, here.lastIndex);
        at = here.lastIndex;
        continue;
      }
      let search = at;
      let match: RegExpExecArray | null;
      do {
        ahead.lastIndex = search;
        match = ahead.exec(text);
        search = match === null ? end : match.index + 1;
      } while (match !== null && match[0].length === 0 && match.index === at);
      const stop = match === null ? end : match.index;
      emit(text, at, stop);
      at = stop;
    }
  };
}

function joinPieces(
  pieces: readonly { start: number; end: number; match: boolean }[],
  behavior: Exclude<Behavior, "isolated">,
  emit: (start: number, end: number) => void,
): void {
  if (behavior === "removed") {
    for (const piece of pieces) if (!piece.match) emit(piece.start, piece.end);
    return;
  }
  const words: { start: number; end: number }[] = [];
  let last: { match: boolean } | undefined;
  for (const piece of pieces) {
    const join =
      last !== undefined &&
      (behavior === "contiguous"
        ? piece.match === last.match
        : behavior === "mergedWithPrevious"
          ? piece.match && !last.match
          : last.match && !piece.match);
    if (join) words[words.length - 1].end = piece.end;
    else words.push({ start: piece.start, end: piece.end });
    last = piece;
  }
  for (const { start, end } of words) emit(start, end);
}

function digitGroupsCut(): Cut {
  const digits = /\p{N}+/gu;
  return (text, _start, end, emit) => {
    let at = 0;
    digits.lastIndex = 0;
    for (let m = digits.exec(text); m !== null; m = digits.exec(text)) {
      if (m.index > at) emit(text, at, m.index);
      const run = Array.from(m[0]);
      at = m.index;
      for (let i = 0; i < run.length; ) {
        const group = i === 0 && run.length % 3 > 0 ? run.length % 3 : 3;
        const length = run.slice(i, i + group).join("").length;
        emit(text, at, at + length);
        at += length;
        i += group;
      }
    }
    if (at < end) emit(text, at, end);
  };
}
