// Owns: `millrace key NAME`: makes an API key for `millrace serve --key-file`.
import { Command, InvalidArgumentError } from "commander";
import { isScope, newKey, type Scope, scopes } from "../server/keys.js";

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
    .addHelpText(
      "after",
      `
Examples:
  millrace key alice >> keys.txt                        may ask models
  millrace key prometheus --scopes metrics >> keys.txt  may read /metrics
  millrace serve smollm2 --key-file keys.txt`,
    )
    .action((name: string, flags: { scopes: Scope[] }) => {
      const { key, line } = newKey(name, flags.scopes);
      process.stderr.write(`${key}\n`);
      process.stdout.write(`${line}\n`);
    });
}
