// Owns: `millrace rm NAME…`.
import { Command } from "commander";
import { Store } from "../store/store.js";

export function command(): Command {
  return new Command("rm")
    .description("Remove packages, and free the content that nothing else names.")
    .argument("<names...>", "packages in the local store")
    .addHelpText("after", "\nExamples:\n  millrace rm smollm2\n  millrace rm rhymer hf.co/owner/repo")
    .action(async (names: readonly string[]) => {
      const store = new Store();
      for (const name of names) {
        await store.remove(name);
        console.log(`deleted ${name}`);
      }
    });
}
