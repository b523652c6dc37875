// Owns: `millrace render MODEL`: chat messages to the text that the model is given.
import { readFileSync } from "node:fs";
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import type { ChatTemplate, RenderOptions } from "../text/chat.js";
import { UsageError } from "./failure.js";
import { readStdinText } from "./input.js";
import { modelArgument, resolveModel } from "./model.js";

interface RenderFlags {
  readonly template?: string;
  readonly name?: string;
}

const bad = (message: string) => new UserError(`standard input: ${message}`, { code: "bad_input" });

/** {messages, tools?, documents?, add_generation_prompt?}; any other field is a variable of the template. */
function parseInput(text: string): RenderOptions {
  let input: unknown;
  try {
    input = JSON.parse(text);
  } catch (error) {
    throw bad(`no JSON (${(error as Error).message}); give {"messages": [{"role": "user", "content": "…"}]}`);
  }
  if (typeof input !== "object" || input === null || Array.isArray(input))
    throw bad("an object with messages is wanted");
  const { messages, tools, documents, add_generation_prompt, ...variables } = input as Record<string, unknown>;
  if (!Array.isArray(messages)) throw bad("messages must be a list");
  for (const [name, value] of Object.entries({ tools, documents })) {
    if (value !== undefined && value !== null && !Array.isArray(value)) throw bad(`${name} must be a list`);
  }
  if (add_generation_prompt !== undefined && typeof add_generation_prompt !== "boolean") {
    throw bad("add_generation_prompt must be true or false");
  }
  return {
    messages,
    ...(Array.isArray(tools) ? { tools } : {}),
    ...(Array.isArray(documents) ? { documents } : {}),
    ...(add_generation_prompt === undefined ? {} : { addGenerationPrompt: add_generation_prompt }),
    variables,
  };
}

function readTemplate(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new UserError(`the template cannot be read: ${(error as Error).message}`, { status: 404, cause: error });
  }
}

function checkSource(model: string | undefined, { template }: RenderFlags): void {
  if (template !== undefined && model !== undefined) {
    throw new UsageError("give a MODEL or --template FILE.jinja, not both");
  }
  if (template === undefined && model === undefined) {
    throw new UsageError("give a MODEL, or a template with --template FILE.jinja");
  }
}

async function templateOf(model: string | undefined, flags: RenderFlags): Promise<ChatTemplate> {
  if (flags.template !== undefined) {
    const { ChatTemplate } = await import("../text/chat.js");
    return new ChatTemplate({ template: readTemplate(flags.template) });
  }
  const { openCheckpoint } = await import("../formats/open.js");
  const { createTextModel, requireTemplate } = await import("../text/text.js");
  const { path } = await resolveModel(model!);
  const checkpoint = await openCheckpoint(path);
  try {
    return requireTemplate(createTextModel(checkpoint.meta));
  } finally {
    checkpoint.close();
  }
}

async function render(model: string | undefined, flags: RenderFlags): Promise<void> {
  checkSource(model, flags);
  const input = parseInput(await readStdinText());
  const template = await templateOf(model, flags);
  process.stdout.write(template.render({ ...input, ...(flags.name === undefined ? {} : { name: flags.name }) }).text);
}

export function command(): Command {
  return new Command("render")
    .description(
      "JSON {messages, tools?, add_generation_prompt?} on standard input to the prompt's text by the model's chat template. " +
        "Other fields of the object are variables of the template (bos_token, enable_thinking…).",
    )
    .argument("[model]", modelArgument)
    .option("--template <file>", "this Jinja template instead of a model's")
    .option("--name <name>", "use the model's template of this name (tool_use, rag…)")
    .addHelpText(
      "after",
      `
Examples:
  echo '{"messages": [{"role": "user", "content": "Hi"}]}' | millrace render smollm2
  millrace render --template chat_template.jinja < messages.json`,
    )
    .action(render);
}
