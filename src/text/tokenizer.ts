// Owns: the tokenizer that everything above text/ sees: special tokens are found first, the text between them is
// normalized and handed to the vocabulary's model, and what the model wants before and after a text is put there. Built
// by gguf-tokenizer.ts or huggingface-tokenizer.ts. Not for several threads at once: it works in scratch buffers.
import { UserError } from "../base/errors.js";
import { IdList, wellFormed } from "./bytes.js";
import { SpecialMatcher, type SpecialToken } from "./special-matcher.js";
import type { SubwordModel } from "./subword.js";
import { TokenType, type Vocabulary } from "./vocabulary.js";

export interface EncodeOptions {
  /** Put the model's own beginning (BOS) and end around the text, where it has such. A beginning that the text already
   *  has is not doubled. "begin": only the beginning, for a text that will be continued. Default false. */
  readonly addSpecial?: boolean | "begin";
  /** Spellings of control tokens become those tokens; otherwise they stay text. User-defined tokens always match.
   *  Default false. */
  readonly parseSpecial?: boolean;
  /** With parseSpecial: ranges of the text (UTF-16 units, ascending, apart) in which no control token is seen. */
  readonly literals?: readonly (readonly [start: number, end: number])[];
}

/** When a space is put before text: before all text that follows a special token or begins; only at the very beginning. */
export type SpacePrefix = "never" | "first" | "afterSpecial";

export interface TokenizerParts {
  readonly vocabulary: Vocabulary;
  readonly model: SubwordModel;
  readonly specials: readonly SpecialToken[];
  readonly normalize?: (text: string) => string;
  readonly spacePrefix: SpacePrefix;
  /** What is put: a space by default, or U+2581 where the text that the model sees spells spaces so. */
  readonly prefix?: string;
  /** It is put even where the text begins with a space. Default true. */
  readonly prefixAlways?: boolean;
  /** The first token of a text carries a space that the text does not have. */
  readonly leadingSpace: boolean;
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];
  readonly bosId?: number;
  readonly eosId?: number;
  readonly unknownId?: number;
  readonly padId?: number;
  readonly eosIds: readonly number[];
  /** What the builder had to assume: for people. */
  readonly warnings: readonly string[];
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

export class Tokenizer {
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  /** The file's end-of-sequence token. */
  readonly eosId: number | undefined;
  readonly unknownId: number | undefined;
  readonly padId: number | undefined;
  /** Every token that ends an answer: eos, end of turn, end of message and their known spellings. Ascending. */
  readonly eosIds: readonly number[];
  readonly addBos: boolean;
  readonly addEos: boolean;
  /** The first piece of a text carries a space that the text does not have. */
  readonly addsSpace: boolean;
  readonly warnings: readonly string[];
  private readonly matcher: SpecialMatcher;
  private readonly vocabulary: Vocabulary;

  constructor(private readonly parts: TokenizerParts) {
    this.vocabulary = parts.vocabulary;
    this.vocabSize = parts.vocabulary.size;
    this.bosId = parts.bosId;
    this.eosId = parts.eosId;
    this.unknownId = parts.unknownId;
    this.padId = parts.padId;
    this.eosIds = parts.eosIds;
    this.addBos = parts.bosId !== undefined && parts.prefixIds.includes(parts.bosId);
    this.addEos = parts.suffixIds.length > 0;
    this.addsSpace = parts.leadingSpace;
    this.warnings = parts.warnings;
    this.matcher = new SpecialMatcher(parts.specials);
  }

  encode(text: string, options: EncodeOptions = {}): Int32Array {
    const { model, normalize, spacePrefix, prefix = " ", prefixAlways = true, prefixIds, suffixIds } = this.parts;
    const { addSpecial = false, parseSpecial = false, literals = [] } = options;
    const input = wellFormed(text);
    const out = new IdList();
    if (addSpecial !== false) for (const id of prefixIds) out.push(id);
    const prefixed = out.length;
    let afterSpecial = true;
    this.matcher.partition(
      input,
      parseSpecial,
      literals,
      (start, end) => {
        const spaced = spacePrefix === "afterSpecial" ? afterSpecial : spacePrefix === "first" && start === 0;
        const piece = start === 0 && end === input.length ? input : input.slice(start, end);
        const normalized = normalize === undefined ? piece : normalize(piece);
        const put = spaced && (prefixAlways || !(normalized.startsWith(" ") || normalized.startsWith(prefix)));
        if (normalized !== "") model.encode(put ? prefix + normalized : normalized, out);
        afterSpecial = false;
      },
      (special) => {
        out.push(special.id);
        afterSpecial = true;
      },
    );
    const ids = this.undouble(out, prefixed);
    if (addSpecial === true) for (const id of suffixIds) ids.push(id);
    return ids.take();
  }

  /** The text begins with the very tokens that were put before it: once is enough. */
  private undouble(out: IdList, prefixed: number): IdList {
    if (prefixed === 0 || out.length < 2 * prefixed) return out;
    for (let i = 0; i < prefixed; i++) if (out.ids[i] !== out.ids[prefixed + i]) return out;
    out.ids.copyWithin(0, prefixed, out.length);
    out.length -= prefixed;
    return out;
  }

  /** What a token stands for in text, control tokens by their spelling. A view, for reading at once. */
  decodeBytes(id: number): Uint8Array {
    if (!(id >= 0 && id < this.vocabSize)) {
      throw new UserError(`token id ${id} is not in the vocabulary; ids are 0 to ${this.vocabSize - 1}`);
    }
    return this.vocabulary.bytesOf(id);
  }

  /** Control and unknown tokens: what a reader of the text does not see. */
  isControl(id: number): boolean {
    const type = this.vocabulary.types[id];
    return type === TokenType.control || type === TokenType.unknown;
  }

  isEnd(id: number): boolean {
    return this.eosIds.includes(id);
  }

  /** The text of a whole sequence of ids; the space that encode put before it is taken away again. */
  decode(ids: ArrayLike<number>, { skipSpecial = false }: { skipSpecial?: boolean } = {}): string {
    let text = "";
    let first = this.addsSpace;
    const stream = new TextDecoder("utf-8", { ignoreBOM: true });
    for (let i = 0; i < ids.length; i++) {
      if (this.isControl(ids[i])) {
        if (skipSpecial) continue;
        text += stream.decode() + decoder.decode(this.decodeBytes(ids[i]));
        first = false;
        continue;
      }
      let bytes = this.decodeBytes(ids[i]);
      if (first && bytes[0] === 0x20) bytes = bytes.subarray(1);
      first = false;
      text += stream.decode(bytes, { stream: true });
    }
    return text + stream.decode();
  }

  /** The token as the vocabulary spells it: "Ġhello", "▁hello", "<0x0A>". */
  tokenOf(id: number): string {
    if (!(id >= 0 && id < this.vocabSize)) throw new UserError(`token id ${id} is not in the vocabulary`);
    return this.vocabulary.tokenOf(id);
  }

  /** One of TokenType. */
  typeOf(id: number): number {
    return this.vocabulary.types[id];
  }

  idOf(token: string): number | undefined {
    return this.vocabulary.idOf(token);
  }

  /** Spellings of control tokens, which a caller's text must not be taken for. */
  get controlSpellings(): readonly string[] {
    return this.matcher.specials.filter((s) => s.control).map((s) => s.text);
  }
}
