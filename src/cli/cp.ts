// Owns: `millrace cp SOURCE DESTINATION`.
import { Command } from "commander";
import { Store } from "../store/store.js";

export function command(): Command {
  return new Command("cp")
    .description("Give a package another name. Nothing is copied: both name the same content.")
    .argument("<source>", "a package in the local store")
    .argument("<destination>", "[registry/][namespace/]model[:tag]")
    .addHelpText("after", "\nExamples:\n  millrace cp smollm2 registry.example.org/me/smollm2")
    .action(async (source: string, destination: string) => {
      await new Store().copy(source, destination);
      console.log(`copied ${source} to ${destination}`);
    });
}
