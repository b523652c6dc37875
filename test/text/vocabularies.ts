// Owns: small vocabularies for tests, trained or written here: as GGUF metadata and as tokenizer.json.
import type { MetaValue } from "../../src/formats/checkpoint.js";
import { byteAlphabet } from "../../src/text/bytes.js";

const corpus = "the cat sat on the mat and the hat; low lower lowest, new newer newest 123 12 1234 don't we'll ".repeat(
  3,
);

/** Byte-level BPE: 256 bytes, then merges found by counting pairs within words. */
export function trainBpe(merges: number): { tokens: string[]; merges: string[] } {
  const words = (corpus.match(/ ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+/gu) ?? []).map((word) =>
    Array.from(new TextEncoder().encode(word), (b) => byteAlphabet[b]),
  );
  const tokens = [...byteAlphabet];
  const found: string[] = [];
  while (found.length < merges) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        const pair = `${word[i]} ${word[i + 1]}`;
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const best = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))[0];
    if (best === undefined) break;
    const [left, right] = best[0].split(" ");
    found.push(best[0]);
    tokens.push(left + right);
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === left && word[i + 1] === right) word.splice(i, 2, left + right);
      }
    }
  }
  return { tokens, merges: found };
}

export const chatTokens = ["<|start|>", "<|im_start|>", "<|im_end|>", "<tool>"];

/** GGUF metadata of a byte-level vocabulary with three control tokens and one user-defined (<tool>) at its end. */
export function bpeMetadata(more: Record<string, MetaValue> = {}): Map<string, MetaValue> {
  const { tokens, merges } = trainBpe(60);
  const all = [...tokens, ...chatTokens];
  const types = Int32Array.from(all, (_, id) => (id < tokens.length ? 1 : id === all.length - 1 ? 4 : 3));
  return new Map<string, MetaValue>(
    Object.entries({
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "gpt-2",
      "tokenizer.ggml.tokens": all,
      "tokenizer.ggml.token_type": types,
      "tokenizer.ggml.merges": merges,
      "tokenizer.ggml.bos_token_id": tokens.length,
      "tokenizer.ggml.eos_token_id": tokens.length + 2,
      ...more,
    }),
  );
}

/** A SentencePiece-type vocabulary: unk, bos, eos, 256 bytes, then pieces with falling scores. */
export function spmMetadata(more: Record<string, MetaValue> = {}): Map<string, MetaValue> {
  const pieces = ["▁the", "▁t", "he", "▁", "▁cat", "cat", "at", "▁c", "t", "h", "e", "c", "a", "é", "\n", "▁▁"];
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);
  const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...pieces];
  return new Map<string, MetaValue>(
    Object.entries({
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.token_type": Int32Array.from(tokens, (_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1)),
      "tokenizer.ggml.scores": Float32Array.from(tokens, (_, id) => (id < 259 ? 0 : 258 - id)),
      ...more,
    }),
  );
}

export type Json = Record<string, unknown>;

/** A tokenizer.json around the trained byte-level vocabulary. */
export function bpeJson(preTokenizer: Json, more: Json = {}): Json {
  const { tokens, merges } = trainBpe(60);
  const added = chatTokens.map((content, i) => ({
    id: tokens.length + i,
    content,
    special: content !== "<tool>",
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  }));
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: preTokenizer,
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
    ...more,
  };
}
