// Owns: `millrace list`.
import { Command } from "commander";
import { catalogue } from "../store/catalogue.js";
import { Store } from "../store/store.js";
import { formatBytes, table } from "./table.js";

export function command(): Command {
  return new Command("list")
    .description("List the models in the local store, and those that can be pulled by name.")
    .option("--json", "print {folder, models, catalogue} as JSON")
    .addHelpText("after", "\nExamples:\n  millrace list\n  millrace list --json")
    .action((options: { json?: boolean }) => {
      const store = new Store();
      const models = store.list();
      const known = catalogue.map(({ name, aliases, title, license, files }) => {
        const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
        return { name, aliases, title, license, bytes };
      });
      if (options.json) {
        const shown = models.map(({ name, path, bytes, license, pulledAt }) => ({
          name,
          path,
          bytes,
          license,
          pulledAt,
        }));
        console.log(JSON.stringify({ folder: store.folder, models: shown, catalogue: known }));
        return;
      }
      if (models.length === 0) console.log(`There is no model in ${store.folder} yet.`);
      else {
        const rows = models.map((model) => [
          model.name,
          formatBytes(model.bytes),
          model.pulledAt.slice(0, 10),
          model.path,
        ]);
        console.log(table([["NAME", "SIZE", "PULLED", "PATH"], ...rows]));
      }
      const missing = known.filter(({ name }) => !models.some((model) => model.name === name));
      for (const { name, title, bytes } of missing) {
        console.log(`millrace pull ${name} would fetch ${title} (${formatBytes(bytes)}).`);
      }
    });
}
