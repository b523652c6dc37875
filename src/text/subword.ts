// Owns: text without special tokens → ids, one class for each kind of vocabulary: byte-pair encoding (with bytes spelled
// as letters, or over characters with byte fallback), SentencePiece's merging by score, and WordPiece. Each works on bytes
// in one scratch buffer and keeps nothing between calls that grows with the text's content.
import { ByteBuffer, characterBytes, type IdList } from "./bytes.js";
import { PairMerger, ScoreMerger } from "./merge.js";
import { PreTokenizer, type Step } from "./pretokenize.js";
import type { Vocabulary } from "./vocabulary.js";

/** The text between two special tokens, normalized already. */
export interface SubwordModel {
  encode(text: string, out: IdList): void;
}

export interface BpeOptions {
  readonly steps: readonly Step[];
  readonly ignoreMerges: boolean;
  /** What stands for a character that has neither token nor byte tokens; undefined: it is left out. */
  readonly unknownId?: number;
  /** Neighbouring unknown characters make one unknown token. */
  readonly fuseUnknown: boolean;
  /** "A B" in the file's spelling, best first. */
  readonly merges: ArrayLike<string | readonly [string, string]>;
}

/** Whether a token's own bytes merge to it: seen when it is first met. */
const untried = 0;
const whole = 1;
const parts = 2;

export class BpeModel implements SubwordModel {
  private readonly merger: PairMerger;
  private readonly preTokenizer: PreTokenizer | undefined;
  private readonly buffer = new ByteBuffer();
  private readonly alphabet: boolean;
  /** The pre-tokenizer's words spell bytes as letters already. */
  private readonly inLetters: boolean;
  /** Of each byte, in an alphabet vocabulary. */
  private readonly bytePieces = new Int32Array(256);
  private readonly state: Uint8Array;
  /** See Vocabulary.joinsBeforeSpace; undefined where words are cut by the pre-tokenizer alone. */
  private readonly joins: Uint8Array | undefined;
  private lastUnknown = false;

  constructor(
    private readonly vocabulary: Vocabulary,
    private readonly options: BpeOptions,
  ) {
    this.alphabet = vocabulary.spelling === "alphabet";
    this.inLetters = options.steps.some(({ kind }) => kind === "alphabet");
    if (this.alphabet) for (let b = 0; b < 256; b++) this.bytePieces[b] = vocabulary.internByte(b);
    this.merger = new PairMerger(options.merges.length);
    for (let rank = 0; rank < options.merges.length; rank++) this.addMerge(options.merges[rank], rank);
    this.state = new Uint8Array(vocabulary.size);
    this.preTokenizer = options.steps.length > 0 ? new PreTokenizer(options.steps) : undefined;
    this.joins = vocabulary.spelling === "spaced" ? vocabulary.joinsBeforeSpace() : undefined;
  }

  private addMerge(merge: string | readonly [string, string], rank: number): void {
    const middle = typeof merge === "string" ? merge.indexOf(" ", 1) : merge[0].length;
    if (middle < 0) return;
    const pair =
      typeof merge === "string"
        ? this.vocabulary.internPair(merge, middle, middle + 1)
        : this.vocabulary.internPair(merge[0] + merge[1], middle, middle);
    this.merger.addPair(pair, rank);
  }

  encode(text: string, out: IdList): void {
    this.lastUnknown = false;
    if (this.preTokenizer === undefined) this.encodeWord(text, 0, text.length, out);
    else this.preTokenizer.split(text, (t, start, end) => this.encodeWord(t, start, end, out));
  }

  private encodeWord(text: string, start: number, end: number, out: IdList): void {
    const { buffer, joins } = this;
    buffer.length = 0;
    if (this.inLetters) buffer.writeAlphabet(text, start, end);
    else buffer.writeText(text, start, end, this.vocabulary.spelling === "spaced");
    if (joins === undefined) {
      this.encodeBytes(0, buffer.length, out);
      return;
    }
    // No piece spans these places, so what lies between them merges by itself.
    let from = 0;
    const bytes = buffer.bytes;
    for (let i = 1; i < buffer.length; i++) {
      if (bytes[i] === 0x20 && bytes[i - 1] !== 0x20 && joins[bytes[i - 1]] === 0) {
        this.encodeBytes(from, i, out);
        from = i;
      }
    }
    if (from < buffer.length) this.encodeBytes(from, buffer.length, out);
  }

  private encodeBytes(start: number, end: number, out: IdList): void {
    const { vocabulary, state } = this;
    const token = vocabulary.find(this.buffer.bytes, start, end);
    const known = token >= 0 && token < vocabulary.size;
    if (known && (state[token] === whole || this.options.ignoreMerges)) {
      out.push(token);
      this.lastUnknown = false;
      return;
    }
    this.merge(start, end);
    const { merger } = this;
    if (known && state[token] === untried) {
      state[token] = merger.count === 1 && merger.id(0) === token ? whole : parts;
    }
    for (let i = 0; i < merger.count; i++) this.output(merger.id(i), merger.start(i), merger.end(i), out);
  }

  private merge(start: number, end: number): void {
    const { merger, vocabulary, bytePieces } = this;
    const bytes = this.buffer.bytes;
    merger.clear();
    if (this.alphabet) for (let i = start; i < end; i++) merger.add(bytePieces[bytes[i]], i);
    else {
      for (let i = start; i < end; ) {
        const next = Math.min(end, i + characterBytes(bytes[i]));
        merger.add(vocabulary.find(bytes, i, next), i);
        i = next;
      }
    }
    merger.merge(end);
  }

  private output(id: number, start: number, end: number, out: IdList): void {
    const { vocabulary } = this;
    if (id >= 0 && id < vocabulary.size) {
      out.push(id);
      this.lastUnknown = false;
      return;
    }
    const bytes = this.buffer.bytes;
    for (let i = start; i < end; i++) {
      const piece = this.alphabet ? this.bytePieces[bytes[i]] : vocabulary.byteIds[bytes[i]];
      if (piece >= 0 && piece < vocabulary.size) {
        out.push(piece);
        this.lastUnknown = false;
      } else if (this.alphabet || i === start) this.unknown(out);
    }
  }

  private unknown(out: IdList): void {
    const { unknownId, fuseUnknown } = this.options;
    if (unknownId === undefined || (fuseUnknown && this.lastUnknown)) return;
    out.push(unknownId);
    this.lastUnknown = true;
  }
}

export class ScoreModel implements SubwordModel {
  private readonly merger: ScoreMerger;
  private readonly buffer = new ByteBuffer();
  private readonly joins: Uint8Array;

  constructor(
    private readonly vocabulary: Vocabulary,
    scores: ArrayLike<number>,
    private readonly unknownId: number | undefined,
  ) {
    this.merger = new ScoreMerger(vocabulary, scores);
    this.joins = vocabulary.joinsBeforeSpace();
  }

  encode(text: string, out: IdList): void {
    const { buffer, joins } = this;
    buffer.length = 0;
    buffer.writeText(text, 0, text.length, true);
    const bytes = buffer.bytes;
    let from = 0;
    for (let i = 1; i < buffer.length; i++) {
      if (bytes[i] === 0x20 && bytes[i - 1] !== 0x20 && joins[bytes[i - 1]] === 0) {
        this.encodeBytes(from, i, out);
        from = i;
      }
    }
    if (from < buffer.length) this.encodeBytes(from, buffer.length, out);
  }

  private encodeBytes(start: number, end: number, out: IdList): void {
    const { merger, vocabulary } = this;
    const bytes = this.buffer.bytes;
    merger.bytes = bytes;
    merger.clear();
    for (let i = start; i < end; ) {
      const next = Math.min(end, i + characterBytes(bytes[i]));
      merger.add(vocabulary.find(bytes, i, next), i);
      i = next;
    }
    merger.merge(end);
    for (let s = 0; s < merger.count; s++) {
      const id = merger.id(s);
      if (id >= 0) out.push(id);
      else this.fallBack(merger.start(s), merger.end(s), out);
    }
  }

  /** A character without a token: its bytes' tokens, or one unknown token where the vocabulary lacks those. */
  private fallBack(start: number, end: number, out: IdList): void {
    const { byteIds } = this.vocabulary;
    const bytes = this.buffer.bytes;
    for (let i = start; i < end; i++) {
      const id = byteIds[bytes[i]];
      if (id >= 0) out.push(id);
      else if (i === start && this.unknownId !== undefined) out.push(this.unknownId);
    }
  }
}

export interface WordPieceOptions {
  readonly unknownId: number;
  readonly lowercase: boolean;
  readonly stripAccents: boolean;
  /** Control characters and U+FFFD are left out, and Chinese characters stand alone. */
  readonly cleanText: boolean;
  readonly splitChinese: boolean;
  /** A longer word is unknown. In characters. */
  readonly maxWordCharacters: number;
}

const chinese =
  /[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}]/u;
/** BERT counts every ASCII character that is neither letter nor digit as punctuation. */
const punctuation = /[\p{P}!-/:-@[-`{-~]/u;
const blank = /[\p{White_Space}]/u;
const unwanted = /[\p{Cc}\p{Cf}\p{Cn}\p{Co}\uFFFD]/u;

/** Longest match first within each word; a word with a part that has no piece is unknown as a whole. Pieces that begin a
 *  word carry the visible space, as GGUF writes them. */
export class WordPieceModel implements SubwordModel {
  private readonly buffer = new ByteBuffer();

  constructor(
    private readonly vocabulary: Vocabulary,
    private readonly options: WordPieceOptions,
  ) {}

  encode(text: string, out: IdList): void {
    for (const word of this.words(text)) this.encodeWord(word, out);
  }

  private words(text: string): string[] {
    const { lowercase, stripAccents, cleanText, splitChinese } = this.options;
    const words: string[] = [];
    let word = "";
    const finish = () => {
      if (word !== "") words.push(word);
      word = "";
    };
    for (const c of stripAccents ? text.normalize("NFD") : text) {
      // Line ends and tabs are control characters too, but part words.
      if (cleanText && unwanted.test(c) && !/[\t\n\r]/.test(c)) continue;
      if (blank.test(c)) {
        finish();
        continue;
      }
      if (stripAccents && /\p{Mn}/u.test(c)) continue;
      const lower = lowercase ? c.toLowerCase() : c;
      if (punctuation.test(c) || (splitChinese && chinese.test(c))) {
        finish();
        words.push(lower);
      } else word += lower;
    }
    finish();
    return words;
  }

  private encodeWord(word: string, out: IdList): void {
    const { buffer, vocabulary, options } = this;
    const before = out.length;
    buffer.length = 0;
    buffer.writeText(` ${word}`, 0, word.length + 1, false);
    let length = 0;
    for (const _ of word) length++;
    for (let start = 0; start < buffer.length; ) {
      let end = Math.min(buffer.length, start + vocabulary.maxBytes);
      let id = -1;
      if (length <= options.maxWordCharacters) {
        while (end > start && (id = vocabulary.find(buffer.bytes, start, end)) < 0) end--;
      }
      if (id < 0) {
        out.length = before;
        out.push(options.unknownId);
        return;
      }
      out.push(id);
      start = end;
    }
  }
}
