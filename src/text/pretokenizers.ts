// Owns: the pre-tokenizers that GGUF files name (tokenizer.ggml.pre, llama.cpp's names): for each its steps and what the
// name implies where the file says nothing. Patterns are those of the models' own tokenizer.json. An unknown name is an
// error that lists the known ones: a wrong cut gives plausible, worse answers.
import { FormatError } from "../base/errors.js";
import type { Step } from "./pretokenize.js";

export interface NamedPreTokenizer {
  readonly steps: readonly Step[];
  /** A word that is a token is that token, whatever the merges say. */
  readonly ignoreMerges: boolean;
  readonly addBos: boolean;
  /** Text is cut as SentencePiece writes it: raw UTF-8, U+2581 for spaces, <0xNN> for what has no token. */
  readonly spaced: boolean;
}

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const cased = (suffix: string) =>
  `[^\\r\\n\\p{L}\\p{N}]?${upper}*${lower}+${suffix}|[^\\r\\n\\p{L}\\p{N}]?${upper}+${lower}*${suffix}`;
const spaces = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const tail = ` ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${spaces}`;
/** Also what a tokenizer.json means by ByteLevel with use_regex. */
export const gpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const llama3 = `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|${tail}`;
const qwen2 = `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|${tail}`;
const ascii = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]";
const wordsOrMarks = `${ascii}[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+`;
const deepseek3 = `${wordsOrMarks}| ?[\\p{P}\\p{S}]+[\\r\\n]*|${spaces}`;
const cjk = "[\\u4E00-\\u9FA5\\u3040-\\u309F\\u30A0-\\u30FF]+";
const hanAndHangul = "[\\u4E00-\\u9FA5\\u0800-\\u4E00\\uAC00-\\uD7FF]+";
const bloom = " ?[^(\\s|.,!?\\u2026\\u3002\\uFF0C\\u3001\\u0964\\u06D4\\u060C)]+";

const split = (...patterns: string[]): Step[] => patterns.map((pattern) => ({ kind: "split", pattern }));

const newlines = split("[^\\n]+|[\\n]+");

/** DeepSeek LLM's tokenizer.json lists the cased letters of Unicode 11 one by one; this is that list. */
const deepseekLetters =
  "[\\p{Lu}\\p{Ll}\\p{Lt}&&[\\u0000-\\uFFFF]&&[^\\u0560-\\u0588\\u10C7\\u10CD\\u10D0-\\u10FF\\u1C80-\\u1C8F" +
  "\\u2D00-\\u2D2D\\uA790-\\uA7FF\\uAB30-\\uAB6F]]\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}" +
  "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}";

interface Entry {
  readonly names: readonly string[];
  readonly steps: readonly Step[];
  readonly ignoreMerges?: true;
  readonly addBos?: true;
  readonly spaced?: true;
}

const entries: readonly Entry[] = [
  {
    names: ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
    steps: split(llama3),
    ignoreMerges: true,
    addBos: true,
  },
  { names: ["dbrx", "smaug-bpe", "chatglm-bpe"], steps: split(llama3) },
  { names: ["glm4", "glm5"], steps: split(llama3), ignoreMerges: true },
  {
    names: ["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
    steps: split(qwen2),
  },
  {
    names: ["qwen35"],
    steps: split(
      `${contractions}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${spaces}`,
    ),
  },
  {
    names: [
      "gpt-2",
      "phi-2",
      "jina-es",
      "jina-de",
      "gigachat",
      "jina-v2-es",
      "jina-v2-de",
      "jina-v1-en",
      "jina-v2-code",
      "roberta-bpe",
      "a.x-4.0",
      "mellum",
      "modern-bert",
      "mpt",
      "olmo",
      "jais",
      "trillion",
      "granite-docling",
      "exaone4",
    ],
    steps: split(gpt2Pattern),
  },
  {
    names: ["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
    steps: split("\\p{N}", gpt2Pattern),
  },
  { names: ["falcon"], steps: split("[\\p{P}\\$\\+<=>\\^~\\|`]+", gpt2Pattern, "[0-9][0-9][0-9]") },
  { names: ["default"], steps: split("[\\p{P}\\$\\+<=>\\^~\\|]+", gpt2Pattern, "\\p{N}+", "[0-9][0-9][0-9]") },
  {
    names: ["deepseek-llm"],
    steps: split(
      "[\\r\\n]",
      `\\s?[${deepseekLetters}]+`,
      "\\s?[!-/:-~\\uFF01-\\uFF0F\\uFF1A-\\uFF5E\\u2018-\\u201F\\u3000-\\u3002]+",
      "\\s+$",
      hanAndHangul,
      "\\p{N}",
    ),
  },
  {
    names: ["deepseek-coder"],
    steps: split("[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", hanAndHangul, "\\p{N}"),
  },
  { names: ["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], steps: split("\\p{N}{1,3}", cjk, deepseek3) },
  {
    names: ["spark2_5"],
    steps: split("\\p{N}{1,3}", cjk, `${wordsOrMarks}| ?[\\p{P}\\p{S}]+|[\\r\\n]|\\s+(?!\\S)|\\s+`, "\\p{N}"),
  },
  {
    names: ["youtu"],
    steps: split(
      "[\\uAC00-\\uD7A3\\u3131-\\u318E]+|[\\uFF01\\u2026\\u201C\\u201D\\u2018\\u2019\\u2014\\uFF1A\\uFF1B\\uFF0C\\u3001-\\u303F" +
        `\\uFE30-\\uFE4F]+|[\\u3105-\\u312F]+|${cjk}`,
      `${cased(`${contractions}?`)}|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`,
    ),
    ignoreMerges: true,
  },
  {
    names: ["tekken"],
    steps: split(`${cased("")}|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`),
    ignoreMerges: true,
    addBos: true,
  },
  {
    names: ["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
    steps: split(`${cased(`${contractions}?`)}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`),
  },
  {
    names: ["granite-embed-multi-97m"],
    steps: split(`${cased(`${contractions}?`)}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`),
    ignoreMerges: true,
  },
  {
    names: ["tiny_aya", "cohere2moe"],
    steps: [
      { kind: "digitGroups" },
      ...split(`${cased(`${contractions}?`)}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`),
    ],
  },
  { names: ["superbpe"], steps: [...split("\\p{N}+"), { kind: "digitGroups" }] },
  { names: ["poro-chat", "bloom", "gpt3-finnish"], steps: split(bloom) },
  { names: ["viking"], steps: split(bloom, "\\p{N}") },
  {
    names: ["jais-2"],
    steps: split(
      `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|` +
        `${[512, 256, 128, 64, 32, 16, 8, 4].map((n) => `\\s{${n}}(?!\\S)`).join("|")}|\\s{1,2}(?!\\S)|\\s{1}`,
    ),
  },
  {
    names: ["bailingmoe", "bailingmoe2", "llada-moe"],
    steps: split(
      "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|" +
        "\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
    ),
  },
  {
    names: ["seed-coder"],
    steps: split(`${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|${spaces}`),
  },
  { names: ["ufakzeka"], steps: split(`[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|${tail}`) },
  { names: ["laguna"], steps: [...newlines, ...split(qwen2)] },
  {
    names: ["exaone-moe"],
    steps: split(
      `${contractions}|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}|` +
        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
    ),
  },
  {
    names: ["minicpm5"],
    steps: split("\\p{N}{1,3}", `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+|${tail}`),
    ignoreMerges: true,
  },
  {
    names: ["afmoe"],
    steps: [
      { kind: "digitGroups" },
      ...split(
        "[\\u4E00-\\u9FFF\\u3400-\\u4DBF\\uF900-\\uFAFF\\u3040-\\u30FF\\uFF65-\\uFF9F\\u2F00-\\u2FDF\\u0E40-\\u0EFF" +
          "\\u1780-\\u17FF\\u1000-\\u109F\\uAA60-\\uAA7F\\uA9E0-\\uA9FF\\uAC00-\\uD7AF\\u1100-\\u11FF]+",
        deepseek3,
      ),
    ],
  },
  {
    names: ["chameleon"],
    steps: split(
      "<sentinel:[0-9]+>",
      "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
      "([\\t\\n]|    |  )",
      "\\p{N}",
      "[\\p{P}!-/:-@\\[-`{-~]",
      gpt2Pattern,
    ),
    addBos: true,
  },
  {
    names: ["kimi-k2"],
    steps: split(
      `[\\p{Han}]+|${cased(`${contractions}?`).replaceAll("\\p{M}]", "\\p{M}&&[^\\p{Han}]]")}|\\p{N}{1,3}|${tail}`,
    ),
  },
  { names: ["gemma4", "granite-embed-multi-311m", "sarvam-moe"], steps: newlines, spaced: true },
];

const byName = new Map(
  entries.flatMap(({ names, steps, ignoreMerges = false, addBos = false, spaced = false }) =>
    names.map((name): [string, NamedPreTokenizer] => [name, { steps, ignoreMerges, addBos, spaced }]),
  ),
);

export const preTokenizerNames: readonly string[] = [...byName.keys()].sort();

export function namedPreTokenizer(name: string): NamedPreTokenizer {
  const found = byName.get(name);
  if (found !== undefined) return found;
  throw new FormatError(
    `the model's pre-tokenizer is "${name}" (tokenizer.ggml.pre), which is not known; known: ${preTokenizerNames.join(", ")}`,
  );
}

/** A name that cuts text with exactly these patterns, preferring one that says the same of merges; undefined: there is none. */
export function preTokenizerName(patterns: readonly string[], ignoreMerges: boolean): string | undefined {
  const same = entries.filter(
    ({ steps, spaced }) =>
      !spaced &&
      steps.length === patterns.length &&
      steps.every((step, i) => step.kind === "split" && step.pattern === patterns[i]),
  );
  return (same.find((entry) => (entry.ignoreMerges ?? false) === ignoreMerges) ?? same[0])?.names[0];
}
