// Owns: `millrace push NAME`.
import { Command } from "commander";
import { pushPackage } from "../store/push.js";
import { Store } from "../store/store.js";
import { reported } from "./model.js";

export function command(): Command {
  return new Command("push")
    .description("Send a package to the registry that its name begins with. What is there already is not sent again.")
    .argument("<name>", "[registry/]namespace/model[:tag]")
    .option("--insecure", "the registry may be spoken to without TLS")
    .addHelpText(
      "after",
      `
Examples:
  millrace cp rhymer registry.example.org/me/rhymer && millrace push registry.example.org/me/rhymer
  MILLRACE_REGISTRY_AUTH="registry.example.org=me:secret" millrace push registry.example.org/me/rhymer`,
    )
    .action(async (name: string, { insecure }: { insecure?: boolean }) => {
      await reported((options) => pushPackage(new Store(), name, { ...options, insecure }));
      console.log(`pushed ${name}`);
    });
}
