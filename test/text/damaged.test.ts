// tokenizer.json whose parts are not what they should be: refused by name, never a fault of ours.
import { expect, test } from "vitest";
import { FormatError } from "../../src/base/errors.js";
import { tokenizerFromHuggingFace } from "../../src/text/huggingface-tokenizer.js";
import { bpeJson, type Json } from "./vocabularies.js";

const template = (special_tokens: unknown, piece: unknown = { SpecialToken: { id: "<s>" } }): Json => ({
  post_processor: { type: "TemplateProcessing", single: [piece, { Sequence: { id: "A" } }], special_tokens },
});
const whole = bpeJson({ type: "ByteLevel", use_regex: true, add_prefix_space: false });
const model = (fields: Json): Json => ({ model: { ...(whole.model as Json), ...fields } });

const damaged: [what: string, change: Json, message: RegExp][] = [
  ["added tokens that are no list", { added_tokens: 7 }, /added_tokens must be a list/],
  ["an added token that is nothing", { added_tokens: [null] }, /added_tokens must be a list/],
  ["an added token without its text", { added_tokens: [{ id: 1 }] }, /added_tokens must be a list/],
  ["an added token with an id far outside", { added_tokens: [{ id: 2 ** 40, content: "x" }] }, /ids are whole numbers/],
  ["a vocabulary's entry that is no pair", model({ type: "Unigram", vocab: [null] }), /tokens with their scores/],
  ["a merge that is nothing", model({ merges: [null] }), /each merge must be a pair/],
  ["a merge of one", model({ merges: [["a"]] }), /each merge must be a pair/],
  [
    "a stage that is nothing",
    { normalizer: { type: "Sequence", normalizers: [null] } },
    /sequence of stages must be a list/,
  ],
  ["what is no base64", { normalizer: { type: "Precompiled", precompiled_charsmap: "!!" } }, /not base64/],
  ["a piece that is nothing", template({}, null), /sequence of stages must be a list/],
  ["a special token that is nothing", template({}, { SpecialToken: null }), /special token must have its ids/],
  ["a special token whose ids are no list", template({ "<s>": { ids: 3 } }), /special token must have its ids/],
  ["a token around the text that there is not", template({ "<s>": { ids: [99999] } }), /puts token 99999 around/],
];

test.each(damaged)("refuses %s", (_, change, message) => {
  const build = () => tokenizerFromHuggingFace({ config: {}, tokenizer: { ...whole, ...change } });
  expect(build).toThrow(FormatError);
  expect(build).toThrow(message);
});
