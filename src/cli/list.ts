// Owns: `millrace list`, `millrace ls`.
import { Command } from "commander";
import { catalogue } from "../store/catalogue.js";
import { type Package, Store } from "../store/store.js";
import { formatBytes, since, table } from "./table.js";

interface ListFlags {
  readonly json?: boolean;
}

/** What people wrote after a name: "*:latest" is all of them. */
const begins = (filter: string) => (one: Package) => one.name.toLowerCase().startsWith(filter.toLowerCase());

function list(filter: string | undefined, flags: ListFlags): void {
  const store = new Store();
  const all = store.list();
  const packages = filter === undefined ? all : all.filter(begins(filter));
  const known = catalogue.map(({ name, aliases, title, license, files }) => {
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    return { name, aliases, title, license, bytes };
  });
  if (flags.json) {
    const models = packages.map(({ name, digest, path, bytes, modifiedAt, config }) => {
      return { name, digest, path, bytes, modifiedAt, ...config };
    });
    console.log(JSON.stringify({ folder: store.folder, models, catalogue: known }));
    return;
  }
  const rows = packages.map(({ name, digest, bytes, modifiedAt }) => [
    name,
    digest.slice(0, 12),
    formatBytes(bytes),
    since(modifiedAt),
  ]);
  console.log(table([["NAME", "ID", "SIZE", "MODIFIED"], ...rows]));
  if (filter !== undefined) return;
  const missing = known.filter(({ name }) => !all.some((one) => one.name === `${name}:latest`));
  for (const { name, title, bytes } of missing) {
    process.stderr.write(`millrace pull ${name} would fetch ${title} (${formatBytes(bytes)}).\n`);
  }
}

export function command(): Command {
  return new Command("list")
    .alias("ls")
    .description("List the packages in the local store, and those of the catalogue that can be pulled.")
    .argument("[name]", "only those whose names begin so")
    .option("--json", "print {folder, models, catalogue} as JSON")
    .addHelpText("after", "\nExamples:\n  millrace list\n  millrace ls smol\n  millrace list --json")
    .action(list);
}
