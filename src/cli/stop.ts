// Owns: `millrace stop NAME`: a server unloads a model.
import { Command } from "commander";
import { askServer } from "./remote.js";

export function command(): Command {
  return new Command("stop")
    .description("Unload a model from a running server, once it has answered what it is asked.")
    .argument("<name>", "a model that the server has")
    .addHelpText("after", "\nExamples:\n  millrace stop smollm2")
    .action(async (name: string) => {
      await (await askServer("/api/generate", { model: name, keep_alive: 0, stream: false })).text();
      console.log(`stopped ${name}`);
    });
}
