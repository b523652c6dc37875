// Owns: `millrace tokenize MODEL`.
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import { readStdinText } from "./input.js";
import { modelArgument, resolveModel } from "./model.js";

interface TokenizeFlags {
  readonly bos?: boolean;
  readonly special?: boolean;
}

async function tokenize(model: string, flags: TokenizeFlags): Promise<void> {
  const { openCheckpoint } = await import("../formats/open.js");
  const { createTokenizer } = await import("../text/text.js");
  const { name, path } = await resolveModel(model);
  const checkpoint = await openCheckpoint(path);
  try {
    const tokenizer = createTokenizer(checkpoint.meta);
    if (tokenizer === undefined) {
      throw new UserError(`${name} has no tokenizer: it takes and gives token ids`, { code: "no_tokenizer" });
    }
    for (const warning of tokenizer.warnings) process.stderr.write(`${name}: ${warning}\n`);
    const text = await readStdinText();
    const ids = tokenizer.encode(text, { addSpecial: flags.bos ?? false, parseSpecial: flags.special ?? false });
    console.log(JSON.stringify(Array.from(ids)));
  } finally {
    checkpoint.close();
  }
}

export function command(): Command {
  return new Command("tokenize")
    .description(
      "Standard input, byte for byte, to a JSON array of token ids. A GGUF that holds only a vocabulary will do.",
    )
    .argument("<model>", modelArgument)
    .option(
      "--bos",
      "put around the text what the model wants there: its beginning (BOS), and its end where it has one",
    )
    .option("--special", "spellings of special tokens become those tokens; otherwise they stay text")
    .addHelpText(
      "after",
      `
Examples:
  printf 'Hello, world' | millrace tokenize smollm2
  printf '<|im_start|>user' | millrace tokenize smollm2 --special
  millrace tokenize ./vocabulary.gguf --bos < text.txt`,
    )
    .action(tokenize);
}
