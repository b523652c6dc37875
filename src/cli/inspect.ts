// Owns: `millrace inspect MODEL`: what a model file holds, what running it will use, and with --plan the forward pass with
// its cost a node. Reads only headers: no weights.
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import type { Checkpoint, MetaValue } from "../formats/checkpoint.js";
import { addDeviceFlags, type DeviceFlags, wholeNumber } from "./flags.js";
import { modelArgument, resolveModel } from "./model.js";
import { formatBytes, table } from "./table.js";

interface InspectFlags extends DeviceFlags {
  readonly plan?: boolean;
  readonly tokens: number;
  readonly json?: boolean;
}

/** Long arrays and texts by their length and beginning. */
function shorten(value: unknown): unknown {
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "string")
    return value.length > 200 ? `${value.slice(0, 200)}… (${value.length} characters)` : value;
  if (ArrayBuffer.isView(value)) return shorten(Array.from(value as unknown as ArrayLike<number>).slice(0, 9));
  if (Array.isArray(value)) return value.length > 8 ? `[${value.length} values]` : value.map(shorten);
  return value;
}

/** GGUF's key-value pairs, or the fields of a folder's JSON files, as a flat list. */
function metadata(checkpoint: Checkpoint): [string, unknown][] {
  const { meta } = checkpoint;
  if (meta.kind === "gguf") {
    return [...meta.values].map(([key, value]: [string, MetaValue]) => {
      const length = typeof value === "object" ? (value as { length: number }).length : 0;
      return [key, length > 8 ? `[${length} values]` : shorten(value)];
    });
  }
  const { config, generationConfig } = meta.files;
  const part = (name: string, fields: object) =>
    Object.entries(fields).map(([key, value]): [string, unknown] => [`${name}.${key}`, shorten(value)]);
  return [...part("config", config), ...part("generation_config", generationConfig ?? {})];
}

const plain = (value: unknown): string =>
  typeof value === "string" ? value.replaceAll("\n", "\\n") : JSON.stringify(value);

interface Running {
  readonly config: Readonly<Record<string, unknown>>;
  readonly device: string;
  readonly memory: Readonly<Record<string, number>>;
  /** As text, and as data. */
  readonly plan: string;
  readonly nodes: readonly object[];
}

/** What running it takes. Throws FormatError or UserError for a model that cannot be run. */
async function running(checkpoint: Checkpoint, flags: InspectFlags): Promise<Running> {
  const [{ modelConfig }, { openDevice }, { planModel }, { printPlan, planLines }, { kvBytes }] = await Promise.all([
    import("../model/config.js"),
    import("../device/open.js"),
    import("../host/load.js"),
    import("../plan/print.js"),
    import("../device/device.js"),
  ]);
  const device = await openDevice(flags.device);
  try {
    const { device: _name, ctx, threads, kvDtype, tokens } = flags;
    const { plan, limits, memory } = planModel(checkpoint, device, { contextLength: ctx, threads, kvDtype });
    const context = limits.contextLength;
    const step = { tokens, sequences: 1, rows: 1, context, kvBytes: kvBytes(limits.kvDtype, plan) };
    const { family, source: _source, layers, ...sizes } = modelConfig(checkpoint);
    return {
      config: { family: family.name, layers: layers.length, ...sizes },
      device: device.info.description,
      memory: { weights: memory.weights, workspace: memory.workspace, cache: memory.cache, context },
      plan: printPlan(plan, step),
      nodes: planLines(plan, step),
    };
  } finally {
    await device.close();
  }
}

/** A file that cannot be run can still be looked at: a vocabulary, an unknown family. */
async function runningOrReason(checkpoint: Checkpoint, flags: InspectFlags): Promise<Running | { reason: string }> {
  if (checkpoint.tensors.size === 0) return { reason: "it holds no tensors: a vocabulary only" };
  try {
    return await running(checkpoint, flags);
  } catch (error) {
    if (error instanceof UserError && !flags.plan) return { reason: error.message };
    throw error;
  }
}

function printText(name: string, checkpoint: Checkpoint, run: Running | { reason: string }): void {
  const parameters = [...checkpoint.tensors.values()].reduce((sum, t) => sum + t.shape.reduce((a, b) => a * b, 1), 0);
  console.log(`${name}: ${formatBytes(checkpoint.fileBytes)}, ${(parameters / 1e6).toFixed(1)} M parameters\n`);
  console.log("metadata");
  console.log(table(metadata(checkpoint).map(([key, value]) => [`  ${key}`, plain(value)])));
  console.log(`\n${checkpoint.tensors.size} tensors`);
  const rows = [...checkpoint.tensors.values()].map((t) => [
    `  ${t.name}`,
    t.type,
    `[${t.shape.join(", ")}]`,
    formatBytes(t.bytes),
  ]);
  console.log(table(rows));
  if ("reason" in run) {
    console.log(`\nIt cannot be run: ${run.reason}`);
    return;
  }
  console.log("\nmodel");
  const known = Object.entries(run.config).filter(([, value]) => value !== undefined);
  console.log(table(known.map(([key, value]) => [`  ${key}`, plain(value)])));
  const { context, ...bytes } = run.memory;
  const total = Object.values(bytes).reduce((sum, value) => sum + value, 0);
  console.log(`\nmemory on ${run.device}`);
  console.log(table(Object.entries({ ...bytes, total }).map(([key, value]) => [`  ${key}`, formatBytes(value)])));
  console.log(`  context for ${context} tokens`);
}

async function inspect(model: string, flags: InspectFlags): Promise<void> {
  const { openCheckpoint } = await import("../formats/open.js");
  const { name, path } = await resolveModel(model);
  const checkpoint = await openCheckpoint(path);
  try {
    const run = await runningOrReason(checkpoint, flags);
    if (flags.plan && "reason" in run) throw new UserError(`${name} has no plan: ${run.reason}`);
    if (flags.plan && !flags.json) {
      console.log((run as Running).plan);
      return;
    }
    if (!flags.json) {
      printText(name, checkpoint, run);
      return;
    }
    const tensors = [...checkpoint.tensors.values()];
    const { plan: _text, nodes, ...rest } = "reason" in run ? { plan: "", nodes: [], ...run } : run;
    const about = {
      name,
      path,
      bytes: checkpoint.fileBytes,
      metadata: Object.fromEntries(metadata(checkpoint)),
      tensors,
    };
    console.log(JSON.stringify({ ...about, ...rest, ...(flags.plan ? { plan: nodes } : {}) }));
  } finally {
    checkpoint.close();
  }
}

export function command(): Command {
  const program = new Command("inspect")
    .description("Show a model's metadata, tensors and memory plan.")
    .argument("<model>", modelArgument)
    .option("--plan", "print the forward pass, one operation a line, with its cost")
    .option("--tokens <n>", "with --plan: tokens in the step that is costed", wholeNumber(1), 1)
    .option("--json", "print JSON");
  return addDeviceFlags(program)
    .addHelpText(
      "after",
      `
Examples:
  millrace inspect smollm2
  millrace inspect ./model.gguf --plan --tokens 512
  millrace inspect smollm2 --json`,
    )
    .action(inspect);
}
