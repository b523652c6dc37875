// Owns: the way from a Hugging Face folder's tokenizer to GGUF metadata: what gguf-tokenizer.ts reads as the same
// tokenizer. Refuses, by name, what GGUF has no words for. Source: gguf.md and llama.cpp's convert_hf_to_gguf.py.
import { FormatError } from "../base/errors.js";
import type { HuggingFaceFiles } from "../formats/checkpoint.js";
import type { TypedValue } from "../formats/gguf-writer.js";
import { type Json, Pipeline } from "./huggingface-pipeline.js";
import { tokenizerFromHuggingFace } from "./huggingface-tokenizer.js";
import { preTokenizerName } from "./pretokenizers.js";
import { createTextModel } from "./text.js";
import { TokenType } from "./vocabulary.js";

/** Metadata keys and values; a model without a tokenizer says so. Ids up to vocabSize without a token get one that is unused. */
export function ggufTokenizer(files: HuggingFaceFiles, vocabSize: number): Map<string, TypedValue> {
  const values = new Map<string, TypedValue>();
  const set = (key: string, value: TypedValue) => values.set(`tokenizer.ggml.${key}`, value);
  const tokenizer = tokenizerFromHuggingFace(files);
  const json = files.tokenizer;
  if (tokenizer === undefined || json === undefined) {
    set("model", { type: "string", value: "no_vocab" });
    return values;
  }
  const model = json.model as Json;
  const kind = String(model.type ?? "BPE");
  const pipeline = new Pipeline();
  pipeline.normalizer(json.normalizer as Json | null | undefined);
  pipeline.preTokenizer(json.pre_tokenizer as Json | null | undefined);
  const count = Math.max(vocabSize, tokenizer.vocabSize);
  const types = Int32Array.from({ length: count }, (_, id) =>
    id < tokenizer.vocabSize ? tokenizer.typeOf(id) : TokenType.unused,
  );
  const tokens = Array.from(types, (type, id) => (type === TokenType.unused ? `[PAD${id}]` : tokenizer.tokenOf(id)));
  set("tokens", { type: "array", of: "string", value: tokens });
  set("token_type", { type: "array", of: "i32", value: types });
  if (kind === "BPE" && pipeline.alphabet) byteLevel(set, model, pipeline);
  else if (kind === "BPE" && pipeline.spaced) spaced(set, model, pipeline, tokens);
  else
    throw new FormatError(`a ${kind} tokenizer of this kind cannot be written to GGUF yet; keep the model as a folder`);
  const id = (key: string, value: number | undefined) => {
    if (value !== undefined) set(`${key}_token_id`, { type: "u32", value });
  };
  id("bos", tokenizer.bosId);
  id("eos", tokenizer.eosId);
  id("unknown", tokenizer.unknownId);
  id("padding", tokenizer.padId);
  set("add_bos_token", { type: "bool", value: tokenizer.addBos });
  set("add_eos_token", { type: "bool", value: tokenizer.addEos });
  const template = createTextModel({ kind: "huggingface", files }).template?.source;
  if (template !== undefined) values.set("tokenizer.chat_template", { type: "string", value: template });
  return values;
}

type Set = (key: string, value: TypedValue) => void;

function byteLevel(set: Set, model: Json, pipeline: Pipeline): void {
  const patterns = pipeline.steps
    .filter(({ kind }) => kind !== "alphabet")
    .map((step) => {
      return step.kind === "split" && (step.behavior ?? "isolated") === "isolated" && !step.invert ? step.pattern : "";
    });
  const name = preTokenizerName(patterns, model.ignore_merges === true);
  if (name === undefined) {
    throw new FormatError("GGUF has no name for the way this tokenizer.json cuts text; keep the model as a folder");
  }
  set("model", { type: "string", value: "gpt2" });
  set("pre", { type: "string", value: name });
  set("merges", { type: "array", of: "string", value: merges(model).map((pair) => pair.join(" ")) });
}

/** SentencePiece's BPE: what a merge makes is found by its score, so earlier merges score higher. */
function spaced(set: Set, model: Json, pipeline: Pipeline, tokens: readonly string[]): void {
  const rank = new Map<string, number>();
  for (const [i, [left, right]] of merges(model).entries()) if (!rank.has(left + right)) rank.set(left + right, i);
  const unmerged = 1e6;
  set("model", { type: "string", value: "llama" });
  set("scores", {
    type: "array",
    of: "f32",
    value: Float32Array.from(tokens, (token) => -(rank.get(token) ?? unmerged)),
  });
  set("add_space_prefix", { type: "bool", value: pipeline.spacePrefix !== "never" });
}

function merges(model: Json): [string, string][] {
  const list = model.merges as readonly (string | readonly [string, string])[];
  return list.map((pair) => {
    if (typeof pair !== "string") return [pair[0], pair[1]];
    const at = pair.indexOf(" ", 1);
    return [pair.slice(0, at), pair.slice(at + 1)];
  });
}
