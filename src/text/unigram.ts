// Owns: SentencePiece's unigram vocabularies: the cut of a text whose tokens' log-probabilities add up to most (Viterbi),
// with SentencePiece's normalization before it. A character that no token covers is unknown and costs ten more than the
// least likely token.
import { ByteBuffer, characterBytes, type IdList } from "./bytes.js";
import { CharsMap } from "./charsmap.js";
import { PreTokenizer, type Step } from "./pretokenize.js";
import type { SubwordModel } from "./subword.js";
import { TokenType, type Vocabulary } from "./vocabulary.js";

const unknownPenalty = 10;

export interface UnigramOptions {
  readonly scores: ArrayLike<number>;
  readonly unknownId: number;
  /** An unknown character is its bytes' tokens. */
  readonly byteFallback: boolean;
  readonly charsmap?: Uint8Array;
  /** A space stands before the first word. */
  readonly addSpace: boolean;
  /** Runs of spaces become one, and none stands at the end. */
  readonly mergeSpaces: boolean;
  /** Words that no token crosses. */
  readonly steps?: readonly Step[];
}

export class UnigramModel implements SubwordModel {
  private readonly raw = new ByteBuffer();
  private readonly normal = new ByteBuffer();
  private readonly charsmap: CharsMap | undefined;
  private readonly preTokenizer: PreTokenizer | undefined;
  private readonly unknownScore: number;
  /** Of each place in the text: the best score of a cut up to it, and the last token's id and start. */
  private score = new Float64Array(256);
  private token = new Int32Array(256);
  private from = new Int32Array(256);

  constructor(
    private readonly vocabulary: Vocabulary,
    private readonly options: UnigramOptions,
  ) {
    this.charsmap = options.charsmap === undefined ? undefined : new CharsMap(options.charsmap);
    this.preTokenizer = options.steps?.length ? new PreTokenizer(options.steps) : undefined;
    let least = Number.POSITIVE_INFINITY;
    for (let id = 0; id < vocabulary.size; id++) {
      if (vocabulary.types[id] === TokenType.normal) least = Math.min(least, options.scores[id]);
    }
    this.unknownScore = (least === Number.POSITIVE_INFINITY ? 0 : least) - unknownPenalty;
  }

  encode(text: string, out: IdList): void {
    if (this.preTokenizer === undefined) this.encodeWord(text, out);
    else this.preTokenizer.split(text, (t, start, end) => this.encodeWord(t.slice(start, end), out));
  }

  private encodeWord(text: string, out: IdList): void {
    this.raw.length = 0;
    this.raw.writeText(text, 0, text.length, false);
    this.normalize();
    if (this.normal.length > 0) this.cut(out);
  }

  private normalize(): void {
    const { raw, normal, charsmap } = this;
    const { addSpace, mergeSpaces } = this.options;
    normal.length = 0;
    let inWord = false;
    let spaced = false;
    for (let at = 0; at < raw.length; ) {
      const mapped = charsmap?.match(raw.bytes, at, raw.length);
      const length =
        mapped !== undefined && mapped.length > 0
          ? mapped.length
          : Math.min(characterBytes(raw.bytes[at]), raw.length - at);
      const bytes =
        mapped !== undefined && mapped.length > 0 ? mapped.replacement : raw.bytes.subarray(at, at + length);
      normal.reserve(2 * bytes.length + 2);
      for (let i = 0; i < bytes.length; i++) {
        const visible = bytes[i] === 0xe2 && bytes[i + 1] === 0x96 && bytes[i + 2] === 0x81;
        if (bytes[i] === 0x20 || visible) {
          if (visible) i += 2;
          inWord = false;
          if (!mergeSpaces) normal.bytes[normal.length++] = 0x20;
          continue;
        }
        if (!inWord) {
          inWord = true;
          if ((addSpace && !spaced) || (mergeSpaces && normal.length > 0)) {
            normal.bytes[normal.length++] = 0x20;
            spaced = true;
          }
        }
        normal.bytes[normal.length++] = bytes[i];
      }
      at += length;
    }
  }

  private grow(places: number): void {
    if (places <= this.score.length) return;
    const size = Math.max(places, this.score.length * 2);
    this.score = new Float64Array(size);
    this.token = new Int32Array(size);
    this.from = new Int32Array(size);
  }

  private cut(out: IdList): void {
    const { vocabulary, options, unknownScore } = this;
    const { bytes, length } = this.normal;
    this.grow(length + 1);
    const { score, token, from } = this;
    score.fill(Number.NEGATIVE_INFINITY, 0, length + 1);
    score[0] = 0;
    const offer = (start: number, end: number, id: number, value: number) => {
      if (score[start] + value <= score[end]) return;
      score[end] = score[start] + value;
      token[end] = id;
      from[end] = start;
    };
    for (let start = 0; start < length; ) {
      const next = Math.min(length, start + characterBytes(bytes[start]));
      const limit = Math.min(length, start + vocabulary.maxBytes);
      let covered = false;
      for (let end = next; end <= limit; end = Math.min(length, end + characterBytes(bytes[end]))) {
        const id = vocabulary.find(bytes, start, end);
        if (id >= 0) {
          offer(start, end, id, options.scores[id]);
          if (end === next) covered = true;
        }
        if (end === length) break;
      }
      if (!covered) offer(start, next, -1, unknownScore);
      start = next;
    }
    this.output(length, out);
  }

  private output(length: number, out: IdList): void {
    const ends: number[] = [];
    for (let end = length; end > 0; end = this.from[end]) ends.push(end);
    let unknown = false;
    for (const end of ends.reverse()) {
      const id = this.token[end];
      if (id >= 0) out.push(id);
      else if (!this.fallBack(this.from[end], end, out)) {
        if (!unknown) out.push(this.options.unknownId);
        unknown = true;
        continue;
      }
      unknown = false;
    }
  }

  private fallBack(start: number, end: number, out: IdList): boolean {
    if (!this.options.byteFallback) return false;
    const { byteIds } = this.vocabulary;
    const bytes = this.normal.bytes;
    for (let i = start; i < end; i++) if (byteIds[bytes[i]] < 0) return false;
    for (let i = start; i < end; i++) out.push(byteIds[bytes[i]]);
    return true;
  }
}
