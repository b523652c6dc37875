// Owns: `millrace ps`: what a server has loaded.
import { Command } from "commander";
import { askServer } from "./remote.js";
import { formatBytes, since, table } from "./table.js";

/** One entry of GET /api/ps. */
interface Loaded {
  readonly name: string;
  readonly digest: string;
  readonly size: number;
  readonly size_vram: number;
  readonly context_length: number;
  readonly expires_at: string;
}

function processor({ size, size_vram: vram }: Loaded): string {
  if (vram === 0 || size === 0) return "100% CPU";
  const gpu = Math.round((100 * vram) / size);
  return gpu >= 100 ? "100% GPU" : `${100 - gpu}%/${gpu}% CPU/GPU`;
}

/** Models that are kept carry a time beyond anybody's patience. */
function until(expires: string): string {
  const years = (new Date(expires).getTime() - Date.now()) / 31_536_000_000;
  return years > 50 || Number.isNaN(years) ? "forever" : since(expires);
}

async function ps(flags: { json?: boolean }): Promise<void> {
  const { models } = (await (await askServer("/api/ps")).json()) as { models: Loaded[] };
  if (flags.json) {
    console.log(JSON.stringify({ models }));
    return;
  }
  const rows = models.map((one) => [
    one.name,
    one.digest.slice(0, 12),
    formatBytes(one.size),
    processor(one),
    String(one.context_length),
    until(one.expires_at),
  ]);
  console.log(table([["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"], ...rows]));
}

export function command(): Command {
  return new Command("ps")
    .description("List the models that a server has loaded, their sizes, and until when they stay.")
    .option("--json", "print {models} as the server gives them")
    .addHelpText("after", "\nExamples:\n  millrace ps\n  OLLAMA_HOST=other:11434 millrace ps --json")
    .action(ps);
}
