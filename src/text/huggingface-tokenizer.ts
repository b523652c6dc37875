// Owns: a Tokenizer from a Hugging Face folder's JSON files.
import { FormatError } from "../base/errors.js";
import type { HuggingFaceFiles } from "../formats/checkpoint.js";
import type { Tokenizer } from "./tokenizer.js";
export function tokenizerFromHuggingFace(files: HuggingFaceFiles): Tokenizer | undefined {
  if (files.tokenizer === undefined) return undefined;
  throw new FormatError("a tokenizer.json cannot be read yet: use a GGUF");
}
