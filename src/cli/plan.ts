// Owns: `millrace plan MODEL`: what a model will need and do on this machine, from its header alone, which is all that is
// fetched of a model that is not here.
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import type { EncoderForecast, Forecast } from "../host/forecast.js";
import { Store } from "../store/store.js";
import { addDeviceFlags, type DeviceFlags } from "./flags.js";
import { modelArgument, reported } from "./model.js";
import { besides, type ModelSpeeds } from "./speeds.js";
import { formatBytes, table } from "./table.js";

interface PlanFlags extends DeviceFlags {
  readonly insecure?: boolean;
  readonly json?: boolean;
}

interface Told extends Partial<Omit<Forecast, "memory">>, Partial<EncoderForecast> {
  readonly device: string;
  readonly threads: number;
  readonly fits: boolean;
  /** Why it does not. */
  readonly reason?: string;
  /** undefined: this device's limits are not measured. */
  readonly speeds?: ModelSpeeds;
  /** Of an embedding model: tokens of text a second. */
  readonly textSpeed?: { readonly limit: number; readonly predicted: number };
}

/** Throws FormatError or UserError for a model that cannot be run at all. */
async function foretell(name: string, checkpoint: Checkpoint, flags: PlanFlags): Promise<Told> {
  const [{ openDevice }, { forecast, forecastEncoder }, { physicalCores }, { encoderConfig }] = await Promise.all([
    import("../device/open.js"),
    import("../host/forecast.js"),
    import("../host/load.js"),
    import("../model/encoder-config.js"),
  ]);
  const encoder = encoderConfig(checkpoint);
  const device = await openDevice(flags.device);
  const { ctx: contextLength, kvDtype, threads = physicalCores() } = flags;
  const about = { device: device.info.description, threads };
  const measured = async () => {
    const [{ SpeedBook, machineName }, { measureRoofs }] = await Promise.all([
      import("./speeds.js"),
      import("./ops.js"),
    ]);
    const machine = machineName(about.device, threads);
    const book = new SpeedBook();
    return { machine, book, roofs: book.roofs(machine, measureRoofs(threads)) };
  };
  try {
    if (encoder !== undefined) {
      const { forecast: told, speedLimit } = forecastEncoder(encoder, checkpoint, device, { contextLength, threads });
      if (device.info.name !== "cpu") return { ...about, fits: true, ...told };
      const { machine, book, roofs } = await measured();
      const limit = speedLimit(roofs);
      return { ...about, fits: true, ...told, textSpeed: { limit, predicted: limit * book.share(machine).prompt } };
    }
    const { forecast: told, speedLimits } = forecast(checkpoint, device, { contextLength, kvDtype, threads });
    if (device.info.name !== "cpu") return { ...about, fits: true, ...told };
    const { machine, book, roofs } = await measured();
    return { ...about, fits: true, ...told, speeds: book.predict(machine, name, speedLimits(roofs)) };
  } catch (error) {
    if (!(error instanceof UserError) || error.code !== "out_of_memory") throw error;
    return { ...about, fits: false, reason: error.message };
  } finally {
    await device.close();
  }
}

function printText(name: string, fileBytes: number, fetchedBytes: number, told: Told): void {
  const { device, threads, fits, reason, memory, users, speeds, textSpeed, embeddingLength } = told;
  const rows: [string, string][] = [["model", `${name}, ${formatBytes(fileBytes)}`]];
  if (fetchedBytes > 0) rows.push(["read", `${formatBytes(fetchedBytes)} of it: the header`]);
  rows.push(["machine", `${device}, ${threads} threads`]);
  if (!fits || memory === undefined) rows.push(["fits", `no: ${reason}`]);
  else {
    const taken = memory.weights + memory.workspace + memory.cache;
    const parts = [
      `weights ${formatBytes(memory.weights)}`,
      `workspace ${formatBytes(memory.workspace)}`,
      `cache ${formatBytes(memory.cache)}`,
    ];
    rows.push([
      "fits",
      `yes: ${formatBytes(taken)} of ${formatBytes(memory.free)} that are free (${parts.join(", ")})`,
    ]);
    rows.push(["context", `${told.contextLength} tokens (the model was made for ${told.trainedContextLength})`]);
    const at = users?.map(({ tokens, sequences }) => `${sequences} of ${tokens} tokens`);
    if (at !== undefined) rows.push(["at once", `conversations: ${at.join(", or ")}`]);
    if (embeddingLength !== undefined) rows.push(["gives", `embeddings of ${embeddingLength} numbers, no text`]);
  }
  if (speeds !== undefined) rows.push(...speedRows(speeds));
  else if (textSpeed !== undefined) rows.push(["speed", speedText(textSpeed.predicted, textSpeed.limit)]);
  else if (fits) rows.push(["speed", "not foretold: only a CPU's limits are measured"]);
  console.log(table(rows));
}

const speedText = (predicted: number, limit: number) =>
  `about ${predicted.toFixed(0)} tokens/s (the machine's limits allow ${limit.toFixed(0)})`;

function speedRows({ limits, predicted, measured }: ModelSpeeds): [string, string][] {
  const line = (kind: "prompt" | "generation") =>
    speedText(predicted[kind], limits[kind]) +
    (measured === undefined ? "" : `; bench measured ${besides(measured[kind], predicted[kind])}`);
  return [
    ["prompt", line("prompt")],
    ["generation", line("generation")],
  ];
}

export async function plan(model: string, flags: PlanFlags): Promise<void> {
  const { openCheckpoint } = await import("../formats/open.js");
  const { insecure } = flags;
  const outline = await reported((options) => new Store().outline(model, { ...options, insecure }));
  try {
    const checkpoint = await openCheckpoint(outline.path);
    try {
      const { name, fetchedBytes } = outline;
      const { fileBytes } = checkpoint;
      const told = await foretell(name, checkpoint, flags);
      if (flags.json) console.log(JSON.stringify({ model: name, fileBytes, fetchedBytes, ...told }));
      else printText(name, fileBytes, fetchedBytes, told);
      if (!told.fits) process.exitCode = 1;
    } finally {
      checkpoint.close();
    }
  } finally {
    outline.remove();
  }
}

export function command(): Command {
  const program = new Command("plan")
    .description(
      "What a model will need and do on this machine: whether it fits, with which context, for how many at once, how fast. Of a " +
        "model that is not here only the header is fetched. Speeds come from this machine's measured limits and from what " +
        "models have reached of them (millrace bench latency).",
    )
    .argument("<model>", modelArgument)
    .option("--insecure", "a registry may be spoken to without TLS")
    .option("--json", "print JSON");
  return addDeviceFlags(program)
    .addHelpText(
      "after",
      `
Examples:
  millrace plan smollm2
  millrace plan hf.co/owner/repo:Q4_K_M            before fetching gigabytes
  millrace plan ./model.gguf --ctx 32768 --kv-dtype f32
  millrace pull llama3.2:1b --plan                 the same`,
    )
    .action(plan);
}
