import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { tokenizerFromGguf } from "../../src/text/gguf-tokenizer.js";
import { tokenizerFromHuggingFace } from "../../src/text/huggingface-tokenizer.js";
import { namedPreTokenizer, preTokenizerNames } from "../../src/text/pretokenizers.js";
import { bpeJson, bpeMetadata, type Json, spmMetadata } from "./vocabularies.js";

const anyText = fc.oneof(
  fc.string({ unit: "grapheme", maxLength: 60 }),
  fc.string({ unit: "binary", maxLength: 30 }),
  fc
    .array(
      fc.constantFrom("the", " cat", "  ", "\n", "don't", "1234", "é", "世界", "🙂", "<|im_end|>", "<tool>", "ſ", "\t"),
    )
    .map((parts) => parts.join("")),
);
const wellFormed = (text: string) => text.replace(/\p{Cs}/gu, "\uFFFD");

describe("a byte-level tokenizer", () => {
  const tokenizer = tokenizerFromGguf(bpeMetadata())!;

  test("decodes what it encoded, whatever the text, with and without special tokens", () => {
    fc.assert(
      fc.property(anyText, fc.boolean(), (text, parseSpecial) => {
        expect(tokenizer.decode(tokenizer.encode(text, { parseSpecial }))).toBe(wellFormed(text));
      }),
      { numRuns: 500 },
    );
  });

  test("matches control tokens only when asked, user-defined ones always, neither inside a literal range", () => {
    const [im, tool] = [tokenizer.idOf("<|im_end|>")!, tokenizer.idOf("<tool>")!];
    const text = "a<|im_end|><tool>b";
    expect(Array.from(tokenizer.encode(text))).not.toContain(im);
    expect(Array.from(tokenizer.encode(text))).toContain(tool);
    expect(Array.from(tokenizer.encode(text, { parseSpecial: true }))).toEqual(expect.arrayContaining([im, tool]));
    const literals = [[1, 11]] as const;
    expect(tokenizer.encode(text, { parseSpecial: true, literals })).toEqual(tokenizer.encode(text));
    const overlapping = [[5, 6]] as const;
    expect(tokenizer.encode(text, { parseSpecial: true, literals: overlapping })).toEqual(tokenizer.encode(text));
  });

  test("puts the beginning once, also where the text has it already", () => {
    const withBos = tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.add_bos_token": true }))!;
    const plain = Array.from(withBos.encode("cat"));
    expect(Array.from(withBos.encode("cat", { addSpecial: true }))).toEqual([withBos.bosId, ...plain]);
    const again = withBos.encode("<|start|>cat", { addSpecial: true, parseSpecial: true });
    expect(Array.from(again)).toEqual([withBos.bosId, ...plain]);
  });

  test("puts the end after a text, and not after one that will be continued", () => {
    const both = tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.add_eos_token": true }))!;
    expect(both.encode("cat", { addSpecial: true }).at(-1)).toBe(both.eosId);
    expect(both.encode("cat", { addSpecial: "begin" }).at(-1)).not.toBe(both.eosId);
  });

  test("cuts a word of a million letters about as fast a letter as one of fifty thousand", () => {
    const letters = (count: number) =>
      Array.from({ length: count }, (_, i) => "thecatonm"[(i * i + 3 * i) % 9]).join("");
    const time = (text: string) => {
      const start = performance.now();
      tokenizer.encode(text);
      return performance.now() - start;
    };
    const [small, large] = [letters(50_000), letters(1_000_000)];
    time(small);
    const each = Math.min(time(small), time(small), time(small));
    expect(time(large)).toBeLessThan(each * 20 * 8);
  });

  test("ends at every token that ends a turn", () => {
    expect(tokenizer.eosIds).toEqual([tokenizer.idOf("<|im_end|>")]);
  });

  test("refuses ids outside the vocabulary", () => {
    expect(() => tokenizer.decode([tokenizer.vocabSize])).toThrow(/not in the vocabulary/);
    expect(() => tokenizer.tokenOf(-1)).toThrow(/not in the vocabulary/);
  });
});

describe("GGUF metadata", () => {
  test("without a tokenizer gives none", () => {
    expect(tokenizerFromGguf(new Map())).toBeUndefined();
    expect(tokenizerFromGguf(new Map([["tokenizer.ggml.model", "no_vocab"]]))).toBeUndefined();
  });

  test("with an unknown pre-tokenizer or vocabulary is an error that lists the known ones", () => {
    expect(() => tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.pre": "gpt-99" }))).toThrow(
      /"gpt-99".*llama-bpe.*qwen2/,
    );
    expect(() => tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.model": "rwkv" }))).toThrow(/"rwkv".*gpt2, llama/);
  });

  test("with missing or broken parts is an error that names them", () => {
    const without = (key: string) => {
      const values = bpeMetadata();
      values.delete(key);
      return () => tokenizerFromGguf(values);
    };
    expect(without("tokenizer.ggml.merges")).toThrow(/merges/);
    expect(without("tokenizer.ggml.tokens")).toThrow(/tokens/);
    expect(() => tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.token_type": new Int32Array(3) }))).toThrow(/types/);
    expect(() => tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.tokens": new Int32Array(3) }))).toThrow(
      /list of strings/,
    );
    expect(() => tokenizerFromGguf(bpeMetadata({ "tokenizer.ggml.add_bos_token": 1 }))).toThrow(/true or false/);
    expect(() => tokenizerFromGguf(spmMetadata({ "tokenizer.ggml.scores": new Float32Array(2) }))).toThrow(/score/);
  });

  test("that names no pre-tokenizer warns of the default", () => {
    const values = bpeMetadata();
    values.delete("tokenizer.ggml.pre");
    expect(tokenizerFromGguf(values)!.warnings[0]).toMatch(/pre-tokenizer/);
  });
});

describe("a SentencePiece-type tokenizer", () => {
  const tokenizer = tokenizerFromGguf(spmMetadata())!;
  const pieces = (text: string, options = {}) =>
    Array.from(tokenizer.encode(text, options), (id) => tokenizer.tokenOf(id));

  test("merges the piece with the highest score first and falls back to bytes", () => {
    expect(pieces("the cat")).toEqual(["▁the", "▁cat"]);
    expect(pieces("thé")).toEqual(["▁t", "h", "é"]);
    expect(pieces("ü")).toEqual(["▁", "<0xC3>", "<0xBC>"]);
  });

  test("never takes text for a control or byte token", () => {
    expect(pieces("<s>the</s><0x41>")).not.toContain("<s>");
    expect(pieces("<s>the</s><0x41>")).not.toContain("<0x41>");
    expect(pieces("<s>the", { parseSpecial: true })).toEqual(["<s>", "▁the"]);
  });

  test("decodes what it encoded, but for U+2581, which is a space to it", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(wellFormed(text).replaceAll("▁", " "));
      }),
      { numRuns: 500 },
    );
  });

  test("leaves the space out where the file says so", () => {
    const bare = tokenizerFromGguf(spmMetadata({ "tokenizer.ggml.add_space_prefix": false }))!;
    expect(bare.tokenOf(bare.encode("cat")[0])).toBe("cat");
    expect(bare.decode(bare.encode(" cat"))).toBe(" cat");
  });
});

describe("named pre-tokenizers", () => {
  test("lose nothing of any text", async () => {
    const { PreTokenizer } = await import("../../src/text/pretokenize.js");
    const texts = fc.sample(anyText, { numRuns: 40, seed: 7 }).map(wellFormed);
    for (const name of preTokenizerNames) {
      const preTokenizer = new PreTokenizer(namedPreTokenizer(name).steps);
      for (const text of texts) {
        const words: string[] = [];
        preTokenizer.split(text, (t, start, end) => words.push(t.slice(start, end)));
        expect(words.join(""), name).toBe(text);
        expect(words).not.toContain("");
      }
    }
  });

  const cut: [name: string, text: string, words: string[]][] = [
    ["llama-bpe", "I'LL 12345\n\n x", ["I", "'LL", " ", "123", "45", "\n\n", " x"]],
    ["llama-bpe", "it'ſ", ["it", "'ſ"]],
    ["qwen2", "a 12  b", ["a", " ", "1", "2", " ", " b"]],
    ["qwen35", "नमस्ते", ["नमस्ते"]],
    ["gpt-2", "I'LL don't\n\n x", ["I", "'", "LL", " don", "'t", "\n\n", " x"]],
    ["smollm", "ab 12", ["ab", " ", "1", "2"]],
    ["deepseek-v3", "#include 你好1234", ["#include", " ", "你好", "123", "4"]],
    ["deepseek-coder", "f (x)12\n", ["f", " (", "x", ")", "1", "2", "\n"]],
    ["falcon", "a++ 1234", ["a", "++", " ", "123", "4"]],
    ["tekken", "camelCase ÉCOLE", ["camel", "Case", " ÉCOLE"]],
    ["gpt-4o", "HTTPServer's 1234", ["HTTPServer's", " ", "123", "4"]],
    ["kimi-k2", "你好World", ["你好", "World"]],
    ["tiny_aya", "1234567", ["1", "234", "567"]],
    ["superbpe", "x12345", ["x", "12", "345"]],
    ["gemma4", "a b\n\nc", ["a b", "\n\n", "c"]],
    ["bailingmoe", "x'LL\n\ny", ["x", "'LL", "\n\n", "y"]],
  ];

  test.each(cut)("%s cuts %j", async (name, text, expected) => {
    const { PreTokenizer } = await import("../../src/text/pretokenize.js");
    const words: string[] = [];
    new PreTokenizer(namedPreTokenizer(name).steps).split(text, (t, start, end) => words.push(t.slice(start, end)));
    expect(words).toEqual(expected);
  });
});

const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
const split = (Regex: string, behavior = "Isolated") => ({
  type: "Split",
  pattern: { Regex },
  behavior,
  invert: false,
});
const sequence = (...pretokenizers: Json[]) => ({ type: "Sequence", pretokenizers });
const bare = { ...byteLevel, use_regex: false };

describe("tokenizer.json", () => {
  const shapes: [string, Json][] = [
    ["GPT-2's", bpeJson(byteLevel)],
    ["StarCoder's", bpeJson(sequence({ type: "Digits", individual_digits: true }, byteLevel))],
    [
      "Llama 3's",
      bpeJson(
        sequence(
          split(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          ),
          bare,
        ),
      ),
    ],
    ["one with NFC", bpeJson(byteLevel, { normalizer: { type: "NFC" } })],
    ["one with punctuation", bpeJson(sequence({ type: "Punctuation", behavior: "Isolated" }, bare))],
    ["one with lower case", bpeJson(byteLevel, { normalizer: { type: "Lowercase" } })],
  ];

  // What JavaScript's \s and \p{N} mean differs from the published dialect, so the oracle sees plainer texts.
  const plainText = fc
    .array(
      fc.constantFrom(
        "the",
        " cat",
        "Sat",
        " ",
        "\n",
        "don't",
        " we'LL",
        "12",
        "3",
        "é",
        "世界",
        "!?",
        "<|im_end|>",
        "<tool>",
        "lower",
      ),
    )
    .map((parts) => parts.join(""));

  test.each(shapes)("%s shape gives what @huggingface/tokenizers gives", (_name, json) => {
    const tokenizer = tokenizerFromHuggingFace({ config: {}, tokenizer: json })!;
    const oracle = new Oracle(json as object, {});
    fc.assert(
      fc.property(plainText, (text) => {
        const expected = oracle.encode(text, { add_special_tokens: false }).ids;
        expect(Array.from(tokenizer.encode(text, { parseSpecial: true }))).toEqual(expected);
      }),
      { numRuns: 200 },
    );
  });

  test("says where text begins and ends, and which tokens end it", () => {
    const json = bpeJson(byteLevel);
    const id = (content: string) =>
      (json.added_tokens as { id: number; content: string }[]).find((t) => t.content === content)!.id;
    const special = { "<|start|>": { id: "<|start|>", ids: [id("<|start|>")], tokens: ["<|start|>"] } };
    const single = [{ SpecialToken: { id: "<|start|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }];
    const tokenizer = tokenizerFromHuggingFace({
      config: { eos_token_id: 7 },
      generationConfig: { eos_token_id: [8, 9] },
      tokenizer: { ...json, post_processor: { type: "TemplateProcessing", single, pair: [], special_tokens: special } },
      tokenizerConfig: { bos_token: { content: "<|start|>" }, eos_token: "<|im_end|>" },
    })!;
    expect(tokenizer.addBos).toBe(true);
    expect(tokenizer.encode("cat", { addSpecial: true })[0]).toBe(id("<|start|>"));
    expect(tokenizer.eosIds).toEqual([7, 8, 9, id("<|im_end|>")]);
    expect(tokenizer.eosId).toBe(id("<|im_end|>"));
  });

  test("with parts that are not supported is an error that names them", () => {
    const load = (json: Json) => () => tokenizerFromHuggingFace({ config: {}, tokenizer: json });
    expect(load(bpeJson({ type: "UnicodeScripts" }))).toThrow(/pre-tokenizer "UnicodeScripts"/);
    expect(load(bpeJson(byteLevel, { normalizer: { type: "Nmt" } }))).toThrow(/normalizer "Nmt"/);
    expect(load(bpeJson(byteLevel, { post_processor: { type: "Odd" } }))).toThrow(/post-processor "Odd"/);
    expect(load(bpeJson(byteLevel, { model: { type: "WordLevel", vocab: {} } }))).toThrow(
      /"WordLevel".*BPE, Unigram, WordPiece/,
    );
    expect(load(bpeJson(sequence(split("(a)\\1"), bare)))).toThrow(/pattern cannot be used/);
  });
});

const metaspace = { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true };

describe("a unigram vocabulary", () => {
  const vocab: [string, number][] = [
    ["<unk>", 0],
    ["▁", -4],
    ["▁cat", -3],
    ["▁c", -3.5],
    ["a", -2],
    ["t", -2],
    ["at", -2.5],
    ["s", -3],
  ];
  const json = {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: metaspace,
    model: { type: "Unigram", unk_id: 0, vocab },
  };
  const tokenizer = tokenizerFromHuggingFace({ config: {}, tokenizer: json })!;
  const pieces = (text: string) => Array.from(tokenizer.encode(text), (id) => tokenizer.tokenOf(id));

  test("is cut where the scores add up to most", () => {
    expect(pieces("cats cat")).toEqual(["▁cat", "s", "▁cat"]);
    expect(pieces("at")).toEqual(["▁", "at"]);
  });

  test("makes one unknown token of neighbouring unknown characters", () => {
    expect(pieces("xyz cat")).toEqual(["▁", "<unk>", "▁cat"]);
  });
});

describe("a WordPiece vocabulary", () => {
  const names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##ed", "cafe", "!", "世"];
  const json = {
    added_tokens: [1, 2, 3].map((id) => ({ id, content: names[id], special: true })),
    normalizer: {
      type: "BertNormalizer",
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: { type: "BertProcessing", sep: ["[SEP]", 3], cls: ["[CLS]", 2] },
    model: { type: "WordPiece", unk_token: "[UNK]", vocab: Object.fromEntries(names.map((name, id) => [name, id])) },
  };
  const tokenizer = tokenizerFromHuggingFace({ config: {}, tokenizer: json })!;

  test("is cut at the longest pieces, lower-cased, without accents, words with unknown parts whole", () => {
    expect(Array.from(tokenizer.encode("Playing CAFÉ! play\u0000ed 世", { addSpecial: true }))).toEqual([
      2, 4, 5, 7, 8, 4, 6, 9, 3,
    ]);
    expect(Array.from(tokenizer.encode("playx play"))).toEqual([1, 4]);
  });
});
