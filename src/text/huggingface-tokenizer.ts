// Owns: a Tokenizer from a Hugging Face folder's JSON files: tokenizer.json for how text is cut, tokenizer_config.json,
// config.json and generation_config.json for which tokens begin and end a text. Refuses, by name, what it cannot do
// exactly. Source: the `tokenizers` library's serialization.
import { FormatError } from "../base/errors.js";
import type { HuggingFaceFiles } from "../formats/checkpoint.js";
import { visibleSpace } from "./bytes.js";
import { endTokensBySpelling } from "./end-tokens.js";
import { type Json, Pipeline, postProcessor } from "./huggingface-pipeline.js";
import type { SpecialToken } from "./special-matcher.js";
import { BpeModel, type SubwordModel, WordPieceModel } from "./subword.js";
import { Tokenizer } from "./tokenizer.js";
import { UnigramModel } from "./unigram.js";
import { type Spelling, TokenType, Vocabulary } from "./vocabulary.js";

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  readonly single_word?: boolean;
}

/** Undefined where the folder has no tokenizer.json. */
export function tokenizerFromHuggingFace(files: HuggingFaceFiles): Tokenizer | undefined {
  const json = files.tokenizer;
  if (json === undefined) return undefined;
  const model = json.model as Json | undefined;
  if (typeof model !== "object" || model === null) throw new FormatError("tokenizer.json has no model");
  const kind = String(model.type ?? (model.merges === undefined ? "WordPiece" : "BPE"));
  const pipeline = new Pipeline();
  pipeline.normalizer(json.normalizer as Json | null | undefined);
  pipeline.preTokenizer(json.pre_tokenizer as Json | null | undefined);
  if (pipeline.bert !== undefined && kind !== "WordPiece") {
    throw new FormatError(`tokenizer.json cuts words as BERT does for a ${kind} vocabulary, which is not supported`);
  }
  const added = addedTokens(json.added_tokens ?? []);
  const { tokens, scores } = tokenList(kind, model, added);
  const spelling = spellingOf(kind, pipeline);
  const types = typesOf(tokens, added, model.byte_fallback === true);
  const vocabulary = new Vocabulary({ tokens, types, spelling });
  const processed = postProcessor(json.post_processor as Json | null | undefined);
  const ids = idsOf(files, vocabulary);
  const sides = configured(files, ids, processed);
  for (const id of [...sides.prefix, ...sides.suffix]) {
    if (!(id >= 0 && id < vocabulary.size))
      throw new FormatError(`tokenizer.json puts token ${id} around a text, which it lacks`);
  }
  return new Tokenizer({
    vocabulary,
    model: subwordModel(kind, model, vocabulary, pipeline, scores),
    specials: added.map(specialToken),
    normalize: normalizerOf(pipeline),
    spacePrefix: pipeline.spacePrefix,
    prefix: pipeline.spaced ? visibleSpace : " ",
    prefixAlways: pipeline.prefixAlways,
    leadingSpace: kind === "WordPiece" || (pipeline.spaced && pipeline.spacePrefix !== "never"),
    prefixIds: sides.prefix,
    suffixIds: sides.suffix,
    bosId: ids.bos,
    eosId: ids.eos,
    unknownId: ids.unknown,
    padId: ids.pad,
    eosIds: endsOf(files, vocabulary, added, ids.eos),
    warnings: [],
  });
}

function addedTokens(list: unknown): readonly AddedToken[] {
  const proper = (token: unknown) =>
    typeof token === "object" && token !== null && typeof (token as AddedToken).content === "string";
  if (Array.isArray(list) && list.every(proper)) return list;
  throw new FormatError("tokenizer.json: added_tokens must be a list of objects with an id and their content");
}

function spellingOf(kind: string, pipeline: Pipeline): Spelling {
  if (kind === "WordPiece") return "spaced";
  if (pipeline.alphabet) return "alphabet";
  return pipeline.spaced ? "spaced" : "plain";
}

/** Tokens by id; ids that nothing has are "". WordPiece's are turned round, as GGUF writes them: the beginnings of words
 *  carry the visible space, and what continues a word carries nothing. */
function tokenList(kind: string, model: Json, added: readonly AddedToken[]): { tokens: string[]; scores: number[] } {
  const scores: number[] = [];
  const tokens: string[] = [];
  if (Array.isArray(model.vocab)) {
    for (const entry of model.vocab as readonly unknown[]) {
      const [token, score] = Array.isArray(entry) ? entry : [];
      if (typeof token !== "string" || typeof score !== "number") {
        throw new FormatError("tokenizer.json: the vocabulary must be a list of tokens with their scores");
      }
      tokens.push(token);
      scores.push(score);
    }
  } else if (typeof model.vocab === "object" && model.vocab !== null) {
    const mark = String(model.continuing_subword_prefix ?? "##");
    for (const [token, id] of Object.entries(model.vocab as Record<string, number>)) {
      if (kind !== "WordPiece") tokens[checkedId(id)] = token;
      else tokens[checkedId(id)] = token.startsWith(mark) ? token.slice(mark.length) : `▁${token}`;
    }
  } else throw new FormatError("tokenizer.json has no vocabulary");
  for (const { id, content } of added) tokens[checkedId(id)] = content;
  for (let id = 0; id < tokens.length; id++) tokens[id] ??= "";
  return { tokens, scores };
}

function checkedId(id: number): number {
  if (Number.isInteger(id) && id >= 0 && id < 2 ** 24) return id;
  throw new FormatError(`tokenizer.json gives a token the id ${id}; ids are whole numbers from 0`);
}

function typesOf(tokens: readonly string[], added: readonly AddedToken[], byteFallback: boolean): Uint8Array {
  const types = new Uint8Array(tokens.length).fill(TokenType.normal);
  for (let id = 0; id < tokens.length; id++) {
    if (tokens[id] === "") types[id] = TokenType.unused;
    else if (byteFallback && /^<0x[0-9A-F]{2}>$/.test(tokens[id])) types[id] = TokenType.byte;
  }
  for (const { id, special } of added) types[id] = special === true ? TokenType.control : TokenType.userDefined;
  return types;
}

function specialToken(token: AddedToken): SpecialToken {
  return {
    id: token.id,
    text: token.content,
    control: token.special === true,
    stripLeft: token.lstrip === true,
    stripRight: token.rstrip === true,
    singleWord: token.single_word === true,
  };
}

function subwordModel(
  kind: string,
  model: Json,
  vocabulary: Vocabulary,
  pipeline: Pipeline,
  scores: readonly number[],
): SubwordModel {
  const unknown = typeof model.unk_token === "string" ? vocabulary.idOf(model.unk_token) : undefined;
  if (kind === "BPE") {
    for (const field of ["continuing_subword_prefix", "end_of_word_suffix"]) {
      if (model[field]) throw new FormatError(`tokenizer.json: BPE with ${field} is not supported`);
    }
    const { merges } = model;
    if (!Array.isArray(merges)) throw new FormatError("tokenizer.json: the BPE model has no merges");
    if (!merges.every(isMerge)) throw new FormatError("tokenizer.json: each merge must be a pair of tokens");
    return new BpeModel(vocabulary, {
      steps: pipeline.steps,
      ignoreMerges: model.ignore_merges === true,
      unknownId: unknown,
      fuseUnknown: model.fuse_unk === true,
      merges,
    });
  }
  if (kind === "Unigram") {
    return new UnigramModel(vocabulary, {
      scores: Float64Array.from({ length: vocabulary.size }, (_, id) => scores[id] ?? 0),
      unknownId: typeof model.unk_id === "number" ? model.unk_id : (unknown ?? 0),
      byteFallback: model.byte_fallback === true,
      addSpace: false,
      mergeSpaces: false,
      steps: pipeline.steps,
    });
  }
  if (kind === "WordPiece") {
    if (pipeline.bert === undefined) throw new FormatError("tokenizer.json: WordPiece without BERT's pre-tokenizer");
    return new WordPieceModel(vocabulary, {
      ...pipeline.bert,
      unknownId: unknown ?? 0,
      maxWordCharacters: typeof model.max_input_chars_per_word === "number" ? model.max_input_chars_per_word : 100,
    });
  }
  throw new FormatError(`tokenizer.json has a model of type "${kind}"; supported: BPE, Unigram, WordPiece`);
}

function isMerge(merge: unknown): merge is string | [string, string] {
  if (typeof merge === "string") return true;
  return Array.isArray(merge) && merge.length === 2 && merge.every((token) => typeof token === "string");
}

function normalizerOf({ normalizers }: Pipeline): ((text: string) => string) | undefined {
  if (normalizers.length === 0) return undefined;
  return (text) => normalizers.reduce((t, normalize) => normalize(t), text);
}

/** bos_token and the like as the files spell them: a text, or an object with its content. */
export function tokenSpellings(files: HuggingFaceFiles): Record<string, string> {
  const spellings: Record<string, string> = {};
  for (const [name, value] of Object.entries({ ...files.specialTokensMap, ...files.tokenizerConfig })) {
    if (!name.endsWith("_token") || value === null) continue;
    const content = typeof value === "object" ? (value as { content?: unknown }).content : value;
    if (typeof content === "string") spellings[name] = content;
  }
  return spellings;
}

interface Ids {
  readonly bos?: number;
  readonly eos?: number;
  readonly unknown?: number;
  readonly pad?: number;
}

function idsOf(files: HuggingFaceFiles, vocabulary: Vocabulary): Ids {
  const spellings = tokenSpellings(files);
  const find = (name: string) => {
    const spelled = spellings[`${name}_token`];
    if (spelled !== undefined) return vocabulary.idOf(spelled);
    return numbers(files.config[`${name}_token_id`])[0];
  };
  return { bos: find("bos"), eos: find("eos"), unknown: find("unk"), pad: find("pad") };
}

/** Llama's and Gemma's tokenizer classes put BOS and EOS as tokenizer_config.json says, whatever the post-processor does. */
function configured(files: HuggingFaceFiles, ids: Ids, processed: { prefix: number[]; suffix: number[] }) {
  const config = files.tokenizerConfig ?? {};
  if (!/Llama|Gemma/.test(String(config.tokenizer_class ?? ""))) return processed;
  const side = (flag: unknown, id: number | undefined, given: number[]) => {
    if (flag === false) return [];
    return flag === true && id !== undefined ? [id] : given;
  };
  return {
    prefix: side(config.add_bos_token, ids.bos, processed.prefix),
    suffix: side(config.add_eos_token, ids.eos, processed.suffix),
  };
}

function endsOf(
  files: HuggingFaceFiles,
  vocabulary: Vocabulary,
  added: readonly AddedToken[],
  eos: number | undefined,
): number[] {
  const special = new Map(added.filter((t) => t.special === true).map((t) => [t.content, t.id]));
  const ends = new Set(endTokensBySpelling((token) => special.get(token)).ends);
  const text = (files.config.text_config ?? {}) as Json;
  for (const source of [files.generationConfig ?? {}, files.config, text]) {
    for (const id of numbers(source.eos_token_id)) if (id < vocabulary.size) ends.add(id);
  }
  if (eos !== undefined) ends.add(eos);
  return [...ends].sort((a, b) => a - b);
}

function numbers(value: unknown): number[] {
  const all = Array.isArray(value) ? value : [value];
  return all.filter((v): v is number => Number.isInteger(v) && v >= 0);
}
