// Owns: `millrace cache` and `millrace cache clear [MODEL]`: pages of key-value caches that this machine's disk keeps.
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import { clearPages, type PagesReport, reportPages } from "../host/page-files.js";
import { pagesFolder } from "../store/folder.js";
import { formatBytes, since, table } from "./table.js";

interface CacheFlags {
  readonly json?: boolean;
}

const withTag = (name: string) => (name.includes(":") ? name : `${name}:latest`);

/** By the name that the model was served under, with or without ":latest", or the beginning of a kind's id. */
const called = (model: string) => (one: PagesReport) =>
  withTag(one.model) === withTag(model) || (model.length >= 6 && one.kind.startsWith(model));

async function show({ json }: CacheFlags): Promise<void> {
  const folder = pagesFolder();
  const all = await reportPages(folder);
  if (json) {
    console.log(JSON.stringify({ folder, caches: all }));
    return;
  }
  const rows = all.map(({ model, kind, device, kvDtype, tokens, pages, bytes, hits, oldestAt, usedAt }) => [
    ...[model, kind.slice(0, 12), `${device.split(",")[0]}, ${kvDtype}`, tokens, pages, formatBytes(bytes), hits],
    ...[oldestAt, usedAt].map((at) => (at === undefined ? "" : since(new Date(at)))),
  ]);
  console.log(table([["MODEL", "ID", "MADE ON", "TOKENS", "PAGES", "SIZE", "HITS", "OLDEST", "LAST USED"], ...rows]));
}

async function clear(model: string | undefined, { json }: CacheFlags): Promise<void> {
  const folder = pagesFolder();
  const all = await reportPages(folder);
  const wanted = model === undefined ? all : all.filter(called(model));
  if (model !== undefined && wanted.length === 0) {
    const names = [...new Set(all.map((one) => one.model))].join(", ") || "none";
    throw new UserError(`no pages of a model "${model}" are kept; there are those of: ${names}`, {
      status: 404,
      code: "cache_not_found",
    });
  }
  clearPages(
    folder,
    wanted.map(({ kind }) => kind),
  );
  const bytes = wanted.reduce((sum, one) => sum + one.bytes, 0);
  const pages = wanted.reduce((sum, one) => sum + one.pages, 0);
  if (json) console.log(JSON.stringify({ folder, pages, bytes, caches: wanted.map(({ kind }) => kind) }));
  else console.log(`removed ${pages} pages, ${formatBytes(bytes)}`);
}

export function command(): Command {
  const clearing = new Command("clear")
    .description("Remove the pages of a model, or all; a server that runs goes on, and computes them again.")
    .argument("[model]", "what MODEL or ID the list shows")
    .option("--json", "print {folder, pages, bytes, caches} as JSON")
    .action((model: string | undefined, _flags: CacheFlags, self: Command) =>
      clear(model, self.optsWithGlobals<CacheFlags>()),
    );
  return new Command("cache")
    .description(
      "Show the prompts' computed pages that are kept on disk: a server finds them again after a restart. Of each model: " +
        "tokens, pages, bytes, how many pages were fetched, when the oldest and the latest was written or used.",
    )
    .option("--json", "print {folder, caches} as JSON")
    .addHelpText("after", "\nExamples:\n  millrace cache\n  millrace cache clear smollm2\n  millrace cache clear")
    .addCommand(clearing)
    .action(show);
}
