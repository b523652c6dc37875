// Owns: `millrace show NAME`: what a package is and says; with a flag, one part of it as it is.
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { aboutModel, capabilitiesOf } from "../store/about.js";
import { modelfileOf } from "../store/modelfile.js";
import { parameterLines } from "../store/parameters.js";
import { type Package, Store } from "../store/store.js";
import { UsageError } from "./failure.js";
import { table } from "./table.js";

interface ShowFlags {
  readonly license?: boolean;
  readonly modelfile?: boolean;
  readonly parameters?: boolean;
  readonly template?: boolean;
  readonly system?: boolean;
  readonly verbose?: boolean;
  readonly json?: boolean;
}

/** What a Modelfile's FROM says of a package that is here. */
export function modelfileText(one: Package): string {
  const head = `# To make a package of your own from this one, write this in place of FROM:\n# FROM ${one.name}\n\n`;
  return head + modelfileOf([one.path, ...(one.projectors ?? [])], one);
}

/** The package's own template, else the model's. */
function templateOf(one: Package, checkpoint: Checkpoint): string {
  if (one.template !== undefined) return one.template.text;
  const { meta } = checkpoint;
  const own =
    meta.kind === "gguf"
      ? meta.values.get("tokenizer.chat_template")
      : (meta.files.chatTemplate ?? meta.files.tokenizerConfig?.chat_template);
  return typeof own === "string" ? own : "";
}

const parametersText = (one: Package) =>
  table(
    parameterLines(one.parameters).map(([name, value]) => [
      name,
      typeof value === "string" ? JSON.stringify(value) : String(value),
    ]),
  );

function part(one: Package, checkpoint: Checkpoint, flags: ShowFlags): string | null {
  const wanted = (["license", "modelfile", "parameters", "template", "system"] as const).filter((name) => flags[name]);
  if (wanted.length > 1)
    throw new UsageError(`show one part at a time: ${wanted.map((name) => `--${name}`).join(" or ")}`);
  switch (wanted[0]) {
    case "license":
      return (one.license ?? []).join("\n\n");
    case "modelfile":
      return modelfileText(one).trimEnd();
    case "parameters":
      return parametersText(one);
    case "template":
      return templateOf(one, checkpoint);
    case "system":
      return one.system ?? "";
    default:
      return null;
  }
}

const section = (title: string, lines: string) =>
  lines === ""
    ? ""
    : `  ${title}\n${lines
        .split("\n")
        .map((line) => `    ${line}`)
        .join("\n")}\n\n`;

/** The first lines of a long text. */
const beginning = (text: string) => {
  const lines = text.trim().split("\n");
  return lines.length > 3 ? `${lines.slice(0, 2).join("\n")}\n…` : lines.join("\n");
};

async function overview(one: Package, checkpoint: Checkpoint, flags: ShowFlags): Promise<string> {
  const { config } = one;
  const { contextLength, embeddingLength, embeds } = await aboutModel(one.path);
  const model: [string, string][] = [
    ["architecture", config.family],
    ["parameters", config.parameterSize],
    ["context length", String(contextLength ?? "")],
    ["embedding length", String(embeddingLength ?? "")],
    ["quantization", config.quantization],
    ["requires", config.requires ?? ""],
  ];
  const vision = one.projectors === undefined ? [] : ["vision (not read by millrace)"];
  const capabilities = [...capabilitiesOf(templateOf(one, checkpoint), embeds), ...vision].join("\n");
  const metadata = flags.verbose && checkpoint.meta.kind === "gguf" ? [...checkpoint.meta.values] : [];
  const shown = (value: unknown) =>
    typeof value === "object"
      ? `[${(value as { length: number }).length} values]`
      : beginning(String(value)).replaceAll("\n", "\\n");
  return [
    section("Model", table(model.filter(([, value]) => value !== ""))),
    section("Capabilities", capabilities),
    section("Adapters", (one.adapters ?? []).join("\n")),
    section("Parameters", parametersText(one)),
    section("System", beginning(one.system ?? "")),
    section("License", beginning(one.license?.[0] ?? "")),
    section("Metadata", table(metadata.map(([key, value]) => [key, shown(value)]))),
    flags.verbose
      ? section(
          "Tensors",
          table([...checkpoint.tensors.values()].map((t) => [t.name, t.type, `[${t.shape.join(", ")}]`])),
        )
      : "",
  ]
    .join("")
    .trimEnd();
}

async function show(name: string, flags: ShowFlags): Promise<void> {
  const one = new Store().package(name);
  if (one === null) {
    throw new UserError(`there is no package ${JSON.stringify(name)} here; millrace list shows what there is`, {
      status: 404,
      code: "model_not_found",
    });
  }
  const { openCheckpoint } = await import("../formats/open.js");
  const checkpoint = await openCheckpoint(one.path);
  try {
    if (flags.json) {
      console.log(JSON.stringify({ ...one, template: templateOf(one, checkpoint), modelfile: modelfileText(one) }));
      return;
    }
    console.log(part(one, checkpoint, flags) ?? (await overview(one, checkpoint, flags)));
  } finally {
    checkpoint.close();
  }
}

export function command(): Command {
  return new Command("show")
    .description("Show what a package is: its model, parameters, system prompt and licence.")
    .argument("<name>", "a package in the local store")
    .option("--license", "print the licence")
    .option("--modelfile", "print a Modelfile that makes the same package")
    .option("--parameters", "print the parameters")
    .option("--template", "print the chat template")
    .option("--system", "print the system prompt")
    .option("-v, --verbose", "also the file's metadata and tensors")
    .option("--json", "print everything as JSON")
    .addHelpText("after", "\nExamples:\n  millrace show smollm2\n  millrace show rhymer --modelfile > Modelfile")
    .action(show);
}
