// Owns: a Tokenizer from a GGUF file's metadata (tokenizer.ggml.*), with the defaults that llama.cpp gives where a file
// says nothing. Refuses vocabularies that it does not know by name. Source: gguf.md and llama.cpp's llama-vocab.cpp.
import { FormatError } from "../base/errors.js";
import type { MetaValue } from "../formats/checkpoint.js";
import { endTokensBySpelling } from "./end-tokens.js";
import { namedPreTokenizer } from "./pretokenizers.js";
import type { SpecialToken } from "./special-matcher.js";
import { BpeModel, ScoreModel, type SubwordModel, WordPieceModel } from "./subword.js";
import { Tokenizer } from "./tokenizer.js";
import { UnigramModel } from "./unigram.js";
import { isSpecial, type Spelling, TokenType, Vocabulary } from "./vocabulary.js";

type Values = ReadonlyMap<string, MetaValue>;

const models = ["gpt2", "llama", "bert", "t5", "gemma4"] as const;
type ModelName = (typeof models)[number];

/** What a kind of vocabulary has where the file does not say. */
interface Defaults {
  readonly spelling: Spelling;
  readonly bos?: number;
  readonly eos?: number;
  readonly unknown?: number;
  readonly pad?: number;
  readonly addBos: boolean;
  readonly addEos: boolean;
  readonly addSpace: boolean;
}

function defaultsOf(model: ModelName, values: Values): Defaults {
  const none = { addBos: false, addEos: false, addSpace: false };
  if (model === "llama")
    return { ...none, spelling: "spaced", bos: 1, eos: 2, unknown: 0, addBos: true, addSpace: true };
  if (model === "bert") {
    return { ...none, spelling: "spaced", bos: 101, eos: 102, unknown: 100, pad: 0, addBos: true, addEos: true };
  }
  if (model === "t5") return { ...none, spelling: "spaced", eos: 1, unknown: 2, pad: 0, addEos: true, addSpace: true };
  if (model === "gemma4") return { ...none, spelling: "spaced", addBos: true };
  const named = namedPreTokenizer(preName(values));
  return { ...none, spelling: named.spaced ? "spaced" : "alphabet", addBos: named.addBos };
}

/** Undefined where the file has no tokenizer: such a model takes token ids. */
export function tokenizerFromGguf(values: Values): Tokenizer | undefined {
  const name = values.get("tokenizer.ggml.model");
  if (name === undefined || name === "no_vocab" || name === "none") return undefined;
  if (!models.includes(name as ModelName)) {
    throw new FormatError(
      `the model's tokenizer is "${String(name)}" (tokenizer.ggml.model); known: ${models.join(", ")}`,
    );
  }
  const model = name as ModelName;
  const defaults = defaultsOf(model, values);
  const tokens = stringArray(values, "tokenizer.ggml.tokens");
  if (tokens === undefined || tokens.length === 0)
    throw new FormatError("the model has no tokens (tokenizer.ggml.tokens)");
  const ends = endTokensBySpelling(lookup(tokens));
  const types = typesOf(values, tokens.length, ends.controls);
  const vocabulary = new Vocabulary({ tokens, types, spelling: defaults.spelling });
  const warnings: string[] = [];
  if (model === "gpt2" && values.get("tokenizer.ggml.pre") === undefined) {
    warnings.push(
      "the file does not name its pre-tokenizer (tokenizer.ggml.pre): text is cut as llama.cpp's default does, which may " +
        "not be how the model was trained",
    );
  }
  const ids = specialIds(values, tokens.length, defaults);
  const eos = new Set(ends.ends);
  for (const id of [ids.eos, idAt(values, "eot", tokens.length), idAt(values, "eom", tokens.length)]) {
    if (id !== undefined) eos.add(id);
  }
  const addBos = model === "gemma4" || flag(values, "add_bos_token", defaults.addBos);
  // Unigram vocabularies put it themselves, after normalization, and WordPiece's pieces carry it.
  const addSpace = model === "bert" || flag(values, "add_space_prefix", defaults.addSpace);
  const addEos = flag(values, model === "bert" ? "add_sep_token" : "add_eos_token", defaults.addEos);
  const end =
    model === "bert"
      ? (idAt(values, "seperator", tokens.length) ?? idAt(values, "separator", tokens.length) ?? ids.eos)
      : ids.eos;
  return new Tokenizer({
    vocabulary,
    model: subwordModel(model, values, vocabulary, ids.unknown),
    specials: specialTokens(vocabulary, values),
    spacePrefix: model === "llama" && addSpace ? "afterSpecial" : "never",
    leadingSpace: addSpace,
    prefixIds: addBos && ids.bos !== undefined ? [ids.bos] : [],
    suffixIds: addEos && end !== undefined ? [end] : [],
    bosId: ids.bos,
    eosId: ids.eos,
    unknownId: ids.unknown,
    padId: ids.pad,
    eosIds: [...eos].sort((a, b) => a - b),
    warnings,
  });
}

function preName(values: Values): string {
  const pre = values.get("tokenizer.ggml.pre");
  return pre === undefined || pre === "" ? "default" : String(pre);
}

function subwordModel(
  model: ModelName,
  values: Values,
  vocabulary: Vocabulary,
  unknownId: number | undefined,
): SubwordModel {
  if (model === "gpt2" || model === "gemma4") {
    const merges = stringArray(values, "tokenizer.ggml.merges");
    if (merges === undefined) throw new FormatError("the model's tokenizer has no merges (tokenizer.ggml.merges)");
    const { steps, ignoreMerges } = namedPreTokenizer(model === "gemma4" ? "gemma4" : preName(values));
    return new BpeModel(vocabulary, { steps, ignoreMerges, fuseUnknown: false, merges });
  }
  if (model === "bert") {
    const lowercase = flag(values, "normalizer.lowercase", true);
    return new WordPieceModel(vocabulary, {
      unknownId: unknownId ?? 0,
      lowercase,
      stripAccents: flag(values, "normalizer.strip_accents", lowercase),
      cleanText: true,
      splitChinese: true,
      maxWordCharacters: Number.POSITIVE_INFINITY,
    });
  }
  const scores = numberArray(values, "tokenizer.ggml.scores");
  if (scores === undefined || scores.length < vocabulary.size) {
    throw new FormatError("the model's tokenizer needs a score for each token (tokenizer.ggml.scores)");
  }
  for (let i = 0; i < vocabulary.size; i++) {
    if (Number.isNaN(scores[i]))
      throw new FormatError(`the score of token ${i} is not a number (tokenizer.ggml.scores)`);
  }
  if (model === "llama") return new ScoreModel(vocabulary, scores, unknownId);
  const charsmap = values.get("tokenizer.ggml.precompiled_charsmap");
  return new UnigramModel(vocabulary, {
    scores,
    unknownId: unknownId ?? 0,
    byteFallback: false,
    charsmap: ArrayBuffer.isView(charsmap)
      ? new Uint8Array(charsmap.buffer, charsmap.byteOffset, charsmap.byteLength)
      : undefined,
    addSpace: flag(values, "add_space_prefix", true),
    mergeSpaces: flag(values, "remove_extra_whitespaces", false),
  });
}

/** Looks for few spellings among many tokens in one pass. */
function lookup(tokens: ArrayLike<string>): (token: string) => number | undefined {
  const candidates = new Map<string, number>();
  for (let id = 0; id < tokens.length; id++) {
    const token = tokens[id];
    const first = token.charCodeAt(0);
    const bracketed = first === 0x3c || first === 0x5b || first === 0x5f || first === 0x2581;
    if (bracketed && token.length >= 4 && token.length <= 24) {
      const last = token.charCodeAt(token.length - 1);
      if (last === 0x3e || last === 0x5d || last === 0x5b) candidates.set(token, id);
    }
  }
  return (token) => candidates.get(token);
}

function typesOf(values: Values, size: number, controls: ReadonlySet<number>): Uint8Array {
  const stored = numberArray(values, "tokenizer.ggml.token_type");
  if (stored !== undefined && stored.length < size) {
    throw new FormatError(`the vocabulary has ${size} tokens but ${stored.length} types (tokenizer.ggml.token_type)`);
  }
  const types = new Uint8Array(size).fill(TokenType.normal);
  if (stored !== undefined) for (let id = 0; id < size; id++) types[id] = stored[id];
  for (const id of controls) types[id] = TokenType.control;
  return types;
}

function specialTokens(vocabulary: Vocabulary, values: Values): SpecialToken[] {
  // The file has no field for it: Phi-3's tokens take the white space after them, all but three.
  const modelName = String(values.get("general.name") ?? "").toLowerCase();
  const phi3 = modelName.includes("phi-3") || modelName.includes("phi3");
  const specials: SpecialToken[] = [];
  for (const [text, id] of vocabulary.specials) {
    if (!isSpecial(vocabulary.types[id])) continue;
    specials.push({
      id,
      text,
      control: vocabulary.types[id] !== TokenType.userDefined,
      stripLeft: false,
      stripRight: phi3 && text !== "<unk>" && text !== "<s>" && text !== "<|endoftext|>",
      singleWord: false,
    });
  }
  return specials;
}

function specialIds(values: Values, size: number, defaults: Defaults) {
  const or = (key: string, fallback: number | undefined) =>
    idAt(values, key, size) ?? (fallback !== undefined && fallback < size ? fallback : undefined);
  return {
    bos: idAt(values, "bos", size) ?? or("cls", defaults.bos),
    eos: or("eos", defaults.eos),
    unknown: or("unknown", defaults.unknown),
    pad: or("padding", defaults.pad),
  };
}

function idAt(values: Values, key: string, size: number): number | undefined {
  const value = values.get(`tokenizer.ggml.${key}_token_id`);
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < size ? value : undefined;
}

function flag(values: Values, key: string, fallback: boolean): boolean {
  const value = values.get(`tokenizer.ggml.${key}`);
  if (value === undefined) return fallback;
  if (typeof value !== "boolean")
    throw new FormatError(`tokenizer.ggml.${key} is ${String(value)}; it must be true or false`);
  return value;
}

function stringArray(values: Values, key: string): readonly string[] | undefined {
  const value = values.get(key);
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || (value.length > 0 && typeof value[0] !== "string")) {
    throw new FormatError(`${key} must be a list of strings`);
  }
  return value as readonly string[];
}

function numberArray(values: Values, key: string): ArrayLike<number> | undefined {
  const value = values.get(key);
  if (value === undefined) return undefined;
  if (!ArrayBuffer.isView(value)) throw new FormatError(`${key} must be a list of numbers`);
  return value as unknown as ArrayLike<number>;
}
