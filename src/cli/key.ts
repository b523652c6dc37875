// Owns: `millrace key NAME`: makes an API key for `millrace serve --key-file`.
import { Command, InvalidArgumentError } from "commander";
import { bestPriority, isScope, type KeyTerms, newKey, type Scope, scopes } from "../server/keys.js";
import { numberIn, wholeNumber } from "./flags.js";

interface KeyFlags extends KeyTerms {
  readonly scopes: Scope[];
}

function scopeList(text: string): Scope[] {
  const named = text.split(",");
  if (named.every(isScope)) return named;
  throw new InvalidArgumentError(`It must be one or more of ${scopes.join(", ")}, with commas between them.`);
}

export function command(): Command {
  return new Command("key")
    .description("Make an API key: the key itself goes to standard error, its line for --key-file to standard output.")
    .argument("<name>", "whose key it is, as logs call it")
    .option("--scopes <list>", `what it may do, of ${scopes.join(",")}`, scopeList, ["infer"])
    .option("--weight <n>", "its share where keys want more than there is (default: 1)", numberIn(0.01, 100))
    .option("--budget <tokens>", "that it may spend a day, UTC (default: as many as it likes)", wholeNumber(0))
    .option(
      "--priority <n>",
      "the best that its requests may ask for, where there are other keys; lower ones go first (default: 0)",
      wholeNumber(bestPriority, 0),
    )
    .addHelpText(
      "after",
      `
Examples:
  millrace key alice >> keys.txt                        may ask models
  millrace key batch --weight 0.2 --budget 5000000 >> keys.txt
  millrace key prometheus --scopes metrics >> keys.txt  may read /metrics
  millrace serve smollm2 --key-file keys.txt`,
    )
    .action((name: string, { scopes, ...terms }: KeyFlags) => {
      const { key, line } = newKey(name, scopes, terms);
      process.stderr.write(`${key}\n`);
      process.stdout.write(`${line}\n`);
    });
}
