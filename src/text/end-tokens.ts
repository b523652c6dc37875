// Owns: which tokens end a turn or a text, beyond those that the file names: spellings that published models are known by.
// Source: llama.cpp's llama-vocab.cpp (its end-of-generation and infill tokens), so that a GGUF ends where it ends there.

const endSpellings = [
  "<|eot_id|>",
  "<|im_end|>",
  "<|end|>",
  "<|return|>",
  "<|call|>",
  "<|flush|>",
  "<|calls|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "</s>",
  "<|eom_id|>",
  "<EOT>",
  "_<EOT>",
  "[EOT]",
  "[EOS]",
  "<|end_of_text|>",
  "<end_of_utterance>",
  "<eos>",
  "<turn|>",
  "<|tool_response>",
  "<｜end▁of▁sentence｜>",
  "[e~[",
  // Infill's padding, repository and file tokens: a model that writes one has left the text that it was asked for.
  "<|fim_pad|>",
  "<fim-pad>",
  "<fim_pad>",
  "<PAD>",
  "[PAD]",
  "<|fim_repo|>",
  "<|repo_name|>",
  "<fim-repo>",
  "<REPO>",
  "<reponame>",
  "<|file_sep|>",
];

/** Infill tokens that end nothing but are control tokens whatever the file's types say. */
const infillSpellings = [
  "<|fim_prefix|>",
  "<fim-prefix>",
  "<fim_prefix>",
  "<｜fim▁begin｜>",
  "<PRE>",
  "▁<PRE>",
  "<|code_prefix|>",
  "<|fim_suffix|>",
  "<fim-suffix>",
  "<fim_suffix>",
  "<｜fim▁hole｜>",
  "<SUF>",
  "▁<SUF>",
  "<|code_suffix|>",
  "<|fim_middle|>",
  "<fim-middle>",
  "<fim_middle>",
  "<｜fim▁end｜>",
  "<MID>",
  "▁<MID>",
  "<|code_middle|>",
];

export interface EndTokens {
  readonly ends: ReadonlySet<number>;
  /** Tokens that are control tokens by their spelling, whatever type the file gives them. */
  readonly controls: ReadonlySet<number>;
}

/** idOf looks a token up by its spelling. */
export function endTokensBySpelling(idOf: (token: string) => number | undefined): EndTokens {
  const ends = new Set<number>();
  const controls = new Set<number>();
  for (const spelling of endSpellings) {
    const id = idOf(spelling);
    if (id === undefined) continue;
    ends.add(id);
    controls.add(id);
  }
  for (const spelling of infillSpellings) {
    const id = idOf(spelling);
    if (id !== undefined) controls.add(id);
  }
  const drop = (spelling: string, control: boolean) => {
    const id = idOf(spelling);
    if (id === undefined) return;
    ends.delete(id);
    if (!control) controls.delete(id);
  };
  const has = (spelling: string) => idOf(spelling) !== undefined;
  // Harmony-like formats end every message with <|end|> and the turn with another token.
  const harmony = has("<|return|>") && has("<|call|>");
  const solar = has("<|flush|>") && (has("<|call|>") || has("<|calls|>"));
  if (harmony || solar) drop("<|end|>", true);
  // Here </s> is a token of ordinary text.
  if (has("<|tool_response>") || has("<|plamo:eos|>")) drop("</s>", false);
  return { ends, controls };
}
