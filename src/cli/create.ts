// Owns: `millrace create NAME`: a package from a Modelfile.
import { existsSync, readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { quantisations } from "../formats/quant/recipe.js";
import { createPackage } from "../store/create.js";
import { parseModelfile } from "../store/modelfile.js";
import { Store } from "../store/store.js";
import { UsageError } from "./failure.js";
import { readStdinText } from "./input.js";
import { reported } from "./model.js";

interface CreateFlags {
  readonly file?: string;
  readonly quantize?: string;
  readonly draftQuantize?: string;
  readonly json?: boolean;
}

/** The Modelfile's text and the folder that its paths are relative to. */
async function modelfile(file: string | undefined): Promise<{ text: string; folder: string }> {
  if (file === "-") return { text: await readStdinText(), folder: process.cwd() };
  const path = resolve(file ?? "Modelfile");
  if (existsSync(path)) return { text: readFileSync(path, "utf8"), folder: dirname(path) };
  if (file !== undefined) throw new UsageError(`there is no Modelfile ${path}`);
  // As Ollama: without one, the model of this folder.
  return { text: "FROM .\n", folder: process.cwd() };
}

async function create(name: string, flags: CreateFlags): Promise<void> {
  const { text, folder } = await modelfile(flags.file);
  const { warnings, ...recipe } = parseModelfile(text);
  for (const warning of warnings) process.stderr.write(`${warning}\n`);
  const { quantizeModel } = await import("../host/convert.js");
  const made = await reported(({ report, signal }) =>
    createPackage(
      new Store(),
      name,
      { ...recipe, folder, quantize: flags.quantize, draftQuantize: flags.draftQuantize },
      { report: { ...report, status: report.note }, signal, quantizer: quantizeModel },
    ),
  );
  if (flags.json) console.log(JSON.stringify({ name: made.name, digest: made.digest, path: made.path }));
  else console.log(`created ${made.name}`);
}

function quantisation(text: string): string {
  if ((quantisations as readonly string[]).includes(text.toLowerCase())) return text;
  throw new InvalidArgumentError(`It must be one of ${quantisations.join(", ")}.`);
}

export function command(): Command {
  return new Command("create")
    .description("Make a package from a Modelfile: a model with its system prompt, parameters, template and adapters.")
    .argument("<name>", "[registry/][namespace/]model[:tag]")
    .option(
      "-f, --file <path>",
      "the Modelfile; -: standard input (default: ./Modelfile, else the model in this folder)",
    )
    .option("-q, --quantize <type>", `quantise F32, F16 or BF16 weights: ${quantisations.join(", ")}`, quantisation)
    .option("--draft-quantize <type>", "quantise the DRAFT's weights", quantisation)
    .option("--json", "print {name, digest, path} as JSON")
    .addHelpText(
      "after",
      `
Examples:
  printf 'FROM smollm2\\nSYSTEM You answer in rhymes.\\n' | millrace create rhymer -f -
  millrace create my-model -f ./Modelfile
  millrace create small -f ./Modelfile -q q4_K_M`,
    )
    .action(create);
}
