// A folder's tokenizer written as GGUF metadata and read back gives the same ids.
import { describe, expect, test } from "vitest";
import type { HuggingFaceFiles, MetaValue } from "../../src/formats/checkpoint.js";
import { tokenizerFromGguf } from "../../src/text/gguf-tokenizer.js";
import { tokenizerFromHuggingFace } from "../../src/text/huggingface-tokenizer.js";
import { createTextModel } from "../../src/text/text.js";
import { ggufTokenizer } from "../../src/text/to-gguf.js";
import { bpeJson, type Json } from "./vocabularies.js";

const samples = [
  "the cat sat on the mat, lowest 12345 don't  we'll\n\nnew\tnewest",
  "<|im_start|>user\nhat<|im_end|>",
  "<tool> the<tool>é😀 \u0000",
  "",
  " ",
];

const values = (files: HuggingFaceFiles, size = 0) =>
  new Map<string, MetaValue>([...ggufTokenizer(files, size)].map(([key, typed]) => [key, typed.value as MetaValue]));

const llama3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const splitBy = (pattern: string): Json => ({
  type: "Sequence",
  pretokenizers: [
    { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
    { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
  ],
});
const byteLevel: Json = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
const digits: Json = { type: "Sequence", pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel] };

/** SentencePiece's BPE as tokenizer.json spells it: 256 bytes, pieces, merges in order. */
function spaced(): Json {
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);
  const letters = ["▁", "t", "h", "e", "c", "a", "s", "o", "n", "m", "l", "w"];
  const merges = ["t h", "th e", "▁ the", "▁ t", "a t", "c at", "▁ cat", "o n"];
  const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...letters, ...merges.map((pair) => pair.replace(" ", ""))];
  const replace = { type: "Replace", pattern: { String: " " }, content: "▁" };
  return {
    added_tokens: [0, 1, 2].map((id) => ({ id, content: tokens[id], special: true })),
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace] },
    pre_tokenizer: null,
    post_processor: null,
    model: {
      type: "BPE",
      unk_token: "<unk>",
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}

describe("the same ids from folder and file", () => {
  test.each<[string, Json]>([
    ["byte-level, GPT-2's cut", bpeJson(byteLevel)],
    ["byte-level, Llama 3's cut", bpeJson(splitBy(llama3))],
    ["byte-level, digits one by one", bpeJson(digits)],
    ["pieces with spaces, bytes for the rest", spaced()],
  ])("%s", (_, tokenizer) => {
    const files = { config: {}, tokenizer };
    const own = tokenizerFromHuggingFace(files)!;
    const read = tokenizerFromGguf(values(files))!;
    for (const text of samples) {
      for (const parseSpecial of [false, true]) {
        expect([...read.encode(text, { parseSpecial })], text).toEqual([...own.encode(text, { parseSpecial })]);
      }
    }
    const ids = own.encode(samples[0]);
    expect(read.decode(ids)).toBe(own.decode(ids));
  });
});

test("special tokens, a chat template and padding go with it", () => {
  const tokenizer = bpeJson(byteLevel);
  const tokenizerConfig = {
    bos_token: "<|start|>",
    eos_token: "<|im_end|>",
    chat_template: "{{ messages[0].content }}",
  };
  const files = { config: {}, tokenizer, tokenizerConfig };
  const own = tokenizerFromHuggingFace(files)!;
  const read = values(files, own.vocabSize + 3);
  const text = createTextModel({ kind: "gguf", values: read });
  expect(text.tokenizer!.vocabSize).toBe(own.vocabSize + 3);
  expect([text.tokenizer!.bosId, text.tokenizer!.eosId, text.tokenizer!.addBos]).toEqual([
    own.bosId,
    own.eosId,
    own.addBos,
  ]);
  expect(text.tokenizer!.eosIds).toEqual(own.eosIds);
  expect(text.template!.source).toBe("{{ messages[0].content }}");
});

test("no tokenizer is said, and a cut that has no name in GGUF is refused", () => {
  expect(values({ config: {} }).get("tokenizer.ggml.model")).toBe("no_vocab");
  expect(() => values({ config: {}, tokenizer: bpeJson(splitBy("x+")) })).toThrow(/GGUF has no name for the way/);
});
