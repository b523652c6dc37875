// A GGUF that holds only a vocabulary: the bytes as tokens, a few words, and three control tokens.
import { ggufBytes } from "../support/gguf-writer.js";

const scored = (list: readonly (readonly [string, number, number])[]) => ({
  tokens: list.map(([token]) => token),
  scores: Float32Array.from(list, ([, score]) => score),
  types: Int32Array.from(list, ([, , type]) => type),
});

/** SentencePiece kind: <unk>, <s>, <end>, 256 bytes, then letters and words. */
export function vocabularyGguf(): Uint8Array {
  const bytes = Array.from({ length: 256 }, (_, i) => {
    return [`<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`, 0, 6] as const;
  });
  const words = ["▁", "a", "b", "ab", "▁ab"].map((word, i) => [word, -10 + i, 1] as const);
  const { tokens, scores, types } = scored([["<unk>", 0, 2], ["<s>", 0, 3], ["<end>", 0, 3], ...bytes, ...words]);
  return ggufBytes({
    meta: {
      "general.architecture": "llama",
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.scores": scores,
      "tokenizer.ggml.token_type": types,
      "tokenizer.ggml.bos_token_id": 1,
      "tokenizer.ggml.eos_token_id": 2,
    },
    tensors: [],
  });
}
