// Owns: reading the stages of a tokenizer.json that stand before and after its vocabulary: normalizers, pre-tokenizers and
// post-processors. A stage that is not known is an error that names it: leaving it out would give other ids.
import { FormatError } from "../base/errors.js";
import { visibleSpace } from "./bytes.js";
import { CharsMap } from "./charsmap.js";
import type { Behavior, Step } from "./pretokenize.js";
import { gpt2Pattern } from "./pretokenizers.js";
import { quoteRegex, toJavaScript } from "./regex.js";
import type { SpacePrefix } from "./tokenizer.js";

export type Json = Readonly<Record<string, unknown>>;

export interface Bert {
  readonly cleanText: boolean;
  readonly splitChinese: boolean;
  readonly lowercase: boolean;
  readonly stripAccents: boolean;
}

/** What the stages before the vocabulary come to. */
export class Pipeline {
  readonly steps: Step[] = [];
  readonly normalizers: ((text: string) => string)[] = [];
  /** The vocabulary spells bytes as letters. */
  alphabet = false;
  /** The vocabulary spells spaces as U+2581. */
  spaced = false;
  spacePrefix: SpacePrefix = "never";
  /** Also where the text begins with a space already. */
  prefixAlways = false;
  bert: Bert | undefined;

  normalizer(stage: Json | null | undefined): void {
    if (stage === null || stage === undefined) return;
    const { normalizers } = this;
    switch (stage.type) {
      case "Sequence":
        for (const inner of list(stage.normalizers)) this.normalizer(inner);
        return;
      case "NFC":
      case "NFD":
      case "NFKC":
      case "NFKD": {
        const form = stage.type;
        normalizers.push((text) => text.normalize(form));
        return;
      }
      case "Lowercase":
        normalizers.push((text) => text.toLowerCase());
        return;
      case "StripAccents":
        normalizers.push((text) => text.replace(/\p{Mn}/gu, ""));
        return;
      case "Strip":
        if (stage.strip_left !== false) normalizers.push((text) => text.trimStart());
        if (stage.strip_right !== false) normalizers.push((text) => text.trimEnd());
        return;
      case "Prepend":
        this.prepend(stage);
        return;
      case "Replace":
        this.replace(stage);
        return;
      case "Precompiled": {
        const map = new CharsMap(base64(String(stage.precompiled_charsmap)));
        normalizers.push((text) => map.normalize(text));
        return;
      }
      case "BertNormalizer": {
        const lowercase = stage.lowercase !== false;
        this.bert = {
          cleanText: stage.clean_text !== false,
          splitChinese: stage.handle_chinese_chars !== false,
          lowercase,
          stripAccents: typeof stage.strip_accents === "boolean" ? stage.strip_accents : lowercase,
        };
        return;
      }
      case "ByteLevel":
        this.alphabet = true;
        return;
    }
    throw unknownStage("normalizer", stage);
  }

  private prepend(stage: Json): void {
    if (stage.prepend !== visibleSpace) throw unknownStage(`normalizer's prefix "${String(stage.prepend)}" of`, stage);
    this.spaced = true;
    this.spacePrefix = "afterSpecial";
    this.prefixAlways = true;
  }

  private replace(stage: Json): void {
    const { String: text, Regex: pattern } = (stage.pattern ?? {}) as { String?: string; Regex?: string };
    const content = String(stage.content ?? "");
    if (text === " " && content === visibleSpace) this.spaced = true;
    const regex = new RegExp(pattern === undefined ? quoteRegex(text ?? "") : toJavaScript(pattern), "vg");
    this.normalizers.push((input) => input.replace(regex, () => content));
  }

  preTokenizer(stage: Json | null | undefined): void {
    if (stage === null || stage === undefined) return;
    switch (stage.type) {
      case "Sequence":
        for (const inner of list(stage.pretokenizers)) this.preTokenizer(inner);
        return;
      case "ByteLevel":
        this.byteLevel(stage);
        return;
      case "Split":
        this.step(splitStep(stage));
        return;
      case "Digits":
        this.step({ kind: "split", pattern: stage.individual_digits === true ? "\\p{N}" : "\\p{N}+" });
        return;
      case "Punctuation":
        this.step({ kind: "split", pattern: "[\\p{P}!-/:-@\\[-`{-~]", behavior: behavior(stage) });
        return;
      case "Whitespace":
        this.step({ kind: "split", pattern: "\\w+|[^\\w\\s]+", behavior: "removed", invert: true });
        return;
      case "WhitespaceSplit":
        this.step({ kind: "split", pattern: "\\s+", behavior: "removed" });
        return;
      case "CharDelimiterSplit":
        this.step({ kind: "split", pattern: quoteRegex(String(stage.delimiter)), behavior: "removed" });
        return;
      case "Metaspace":
        this.metaspace(stage);
        return;
      case "BertPreTokenizer":
        this.bert ??= { cleanText: false, splitChinese: false, lowercase: false, stripAccents: false };
        return;
    }
    throw unknownStage("pre-tokenizer", stage);
  }

  /** What follows this stage sees bytes as letters: among them ², which counts as a digit. */
  private step(step: Step): void {
    if (this.alphabet && !this.steps.some(({ kind }) => kind === "alphabet")) this.steps.push({ kind: "alphabet" });
    this.steps.push(step);
  }

  private byteLevel(stage: Json): void {
    if (stage.add_prefix_space === true) {
      if (this.steps.length > 0) throw unknownStage("pre-tokenizer with add_prefix_space after another,", stage);
      this.spacePrefix = "afterSpecial";
    }
    if (stage.use_regex !== false) this.step({ kind: "split", pattern: gpt2Pattern });
    this.alphabet = true;
  }

  private metaspace(stage: Json): void {
    if (stage.replacement !== undefined && stage.replacement !== visibleSpace) {
      throw unknownStage(`pre-tokenizer's replacement "${String(stage.replacement)}" of`, stage);
    }
    this.spaced = true;
    const scheme = stage.prepend_scheme ?? (stage.add_prefix_space === false ? "never" : "always");
    if (scheme === "always") this.spacePrefix = "afterSpecial";
    else if (scheme === "first") this.spacePrefix = "first";
    if (stage.split !== false) this.step({ kind: "split", pattern: "[ \\u2581]", behavior: "mergedWithNext" });
  }
}

/** Ids before and after a single text. */
export function postProcessor(stage: Json | null | undefined): { prefix: number[]; suffix: number[] } {
  const none = { prefix: [], suffix: [] };
  if (stage === null || stage === undefined) return none;
  switch (stage.type) {
    case "ByteLevel":
      return none;
    case "Sequence": {
      const all = list(stage.processors).map(postProcessor);
      return { prefix: all.flatMap((p) => p.prefix), suffix: all.flatMap((p) => p.suffix) };
    }
    case "BertProcessing":
    case "RobertaProcessing":
      return { prefix: [pairId(stage.cls)], suffix: [pairId(stage.sep)] };
    case "TemplateProcessing":
      return templateProcessing(stage);
  }
  throw unknownStage("post-processor", stage);
}

function templateProcessing(stage: Json): { prefix: number[]; suffix: number[] } {
  const named = (stage.special_tokens ?? {}) as Record<string, { ids?: unknown } | null>;
  const prefix: number[] = [];
  const suffix: number[] = [];
  let side = prefix;
  for (const piece of list(stage.single)) {
    const special = piece.SpecialToken as { id?: unknown } | null | undefined;
    if (special === undefined) side = suffix;
    else side.push(...tokenIds(named[String(special?.id)]?.ids));
  }
  return { prefix, suffix };
}

function tokenIds(ids: unknown): readonly number[] {
  if (Array.isArray(ids) && ids.every((id) => Number.isInteger(id) && id >= 0)) return ids;
  throw new FormatError("tokenizer.json: a post-processor's special token must have its ids");
}

function pairId(pair: unknown): number {
  const id = Array.isArray(pair) ? pair[1] : undefined;
  if (typeof id === "number") return id;
  throw new FormatError("tokenizer.json: a post-processor's token must be a pair of its text and its id");
}

function splitStep(stage: Json): Step {
  const { String: text, Regex: pattern } = (stage.pattern ?? {}) as { String?: string; Regex?: string };
  if (text === undefined && pattern === undefined) throw unknownStage("pre-tokenizer without a pattern:", stage);
  return {
    kind: "split",
    pattern: pattern ?? quotedForPublished(text!),
    behavior: behavior(stage),
    invert: stage.invert === true,
  };
}

/** In the published dialect, which regex.ts reads. */
function quotedForPublished(text: string): string {
  return Array.from(text, (c) => `\\x{${c.codePointAt(0)!.toString(16)}}`).join("");
}

function behavior(stage: Json): Behavior {
  const name = String(stage.behavior ?? "Isolated");
  const camel = name.charAt(0).toLowerCase() + name.slice(1);
  const known: readonly Behavior[] = ["isolated", "removed", "mergedWithPrevious", "mergedWithNext", "contiguous"];
  const found = known.find((b) => b === camel);
  if (found === undefined) throw unknownStage(`behavior "${name}" of`, stage);
  return found;
}

function unknownStage(what: string, stage: Json): FormatError {
  return new FormatError(`tokenizer.json has a ${what} "${String(stage.type)}", which is not supported`);
}

function list(value: unknown): readonly Json[] {
  if (!Array.isArray(value) || value.some((stage) => typeof stage !== "object" || stage === null)) {
    throw new FormatError("tokenizer.json: a sequence of stages must be a list of objects");
  }
  return value as readonly Json[];
}

function base64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  } catch (error) {
    throw new FormatError("tokenizer.json: the precompiled normalization is not base64", error);
  }
}
