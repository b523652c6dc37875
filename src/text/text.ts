// Owns: what a model file says of its text, as one call: its tokenizer, where it has one.
import type { CheckpointMeta } from "../formats/checkpoint.js";
import { tokenizerFromGguf } from "./gguf-tokenizer.js";
import type { Tokenizer } from "./tokenizer.js";

/** Undefined where the checkpoint has no tokenizer: such a model is served by token ids. */
export function createTokenizer(meta: CheckpointMeta): Tokenizer | undefined {
  return meta.kind === "gguf" ? tokenizerFromGguf(meta.values) : undefined;
}
