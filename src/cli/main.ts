#!/usr/bin/env node
// Owns: the millrace command: which subcommands there are, and what happens when one fails. Each subcommand is a file of
// its own that is loaded only when it is asked for, so that the command starts quickly.
import { Command, CommanderError } from "commander";
import { reportFailure } from "./failure.js";

interface Entry {
  readonly name: string;
  readonly alias?: string;
  readonly summary: string;
  readonly load: () => Promise<{ command(): Command }>;
}

const commands: readonly Entry[] = [
  { name: "run", summary: "answer a prompt, or chat", load: () => import("./run.js") },
  { name: "serve", summary: "serve models over HTTP, as OpenAI's API does", load: () => import("./serve.js") },
  { name: "create", summary: "make a package from a Modelfile", load: () => import("./create.js") },
  { name: "show", summary: "show what a package is", load: () => import("./show.js") },
  { name: "pull", summary: "fetch a model into the local store", load: () => import("./pull.js") },
  {
    name: "plan",
    summary: "what a model will need and do here, before it is fetched",
    load: () => import("./plan.js"),
  },
  { name: "push", summary: "send a package to its registry", load: () => import("./push.js") },
  { name: "list", alias: "ls", summary: "list the packages in the local store", load: () => import("./list.js") },
  { name: "ps", summary: "list the models that a server has loaded", load: () => import("./ps.js") },
  { name: "stop", summary: "unload a model from a server", load: () => import("./stop.js") },
  { name: "cp", summary: "give a package another name", load: () => import("./cp.js") },
  { name: "rm", summary: "remove packages", load: () => import("./rm.js") },
  { name: "cache", summary: "show and clear kept pages of prompts", load: () => import("./cache.js") },
  { name: "key", summary: "make an API key for a server", load: () => import("./key.js") },
  { name: "inspect", summary: "show what a model file holds and what it will use", load: () => import("./inspect.js") },
  { name: "bench", summary: "measure latency or throughput", load: () => import("./bench.js") },
  { name: "convert", summary: "write a model as a GGUF file, quantised or not", load: () => import("./convert.js") },
  { name: "completion", summary: "print a shell's completion script", load: () => import("./completion.js") },
  { name: "tokenize", summary: "text to token ids", load: () => import("./tokenize.js") },
  { name: "render", summary: "chat messages to the prompt's text", load: () => import("./render.js") },
];

const examples = `
Examples:
  millrace run smollm2 "Why is the sky blue?"     answer one prompt
  millrace run ./model.gguf                       chat with a model of yours
  millrace serve smollm2                          an OpenAI-compatible server on http://127.0.0.1:11434
  millrace pull hf:owner/repo/file.gguf           fetch a model from the Hugging Face hub

A MODEL is a package's name ([registry/][namespace/]model[:tag]), a name in the catalogue (smollm2), the path of a .gguf
file or of a Hugging Face folder, or hf:owner/repo[@revision][/file]. "millrace COMMAND --help" tells more of each command.`;

/** Errors of the command line become exceptions, also those of subcommands of subcommands. */
function throwing(command: Command): Command {
  command.exitOverride().configureOutput({ outputError: () => {} });
  for (const child of command.commands) throwing(child);
  return command;
}

async function main(argv: readonly string[]): Promise<void> {
  const { version } = await import("../host/version.js");
  const program = new Command("millrace")
    .description("Run open-weight language models on this machine.")
    .version(version(), "-v, --version")
    .addHelpText("after", examples);
  const wanted = argv.find((argument) => !argument.startsWith("-"));
  for (const { name, alias, summary, load } of commands) {
    const named = (word: string | undefined) => word !== undefined && (word === name || word === alias);
    if (named(wanted) || (wanted === "help" && argv.some(named))) program.addCommand((await load()).command());
    else program.command(name).description(summary);
  }
  if (argv.length === 0) program.outputHelp();
  else await throwing(program).parseAsync(argv, { from: "user" });
}

// A reader that has had enough (head, less) is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (error instanceof CommanderError && error.exitCode === 0) process.exitCode = 0;
  else process.exitCode = reportFailure(error);
}
