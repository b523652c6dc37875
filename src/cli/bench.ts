// Owns: `millrace bench` and those of its commands that open a model themselves; bench-serve.ts has the one that does not.
import { Command, Option } from "commander";
import { UserError } from "../base/errors.js";
import type { Speeds } from "../host/forecast.js";
import type { RandomModel } from "../model/random.js";
import { command as serveCommand } from "./bench-serve.js";
import { addDeviceFlags, type DeviceFlags, wholeNumber } from "./flags.js";
import { machine } from "./machine.js";
import { latencyRun, medians, throughputRun } from "./measure.js";
import { modelArgument } from "./model.js";
import { type OpenModel, openModel } from "./open.js";
import type { OpRow } from "./ops.js";
import { addShapeFlags, randomModel, type ShapeFlags } from "./shape.js";
import { machineName, SpeedBook } from "./speeds.js";
import { formatBytes, table } from "./table.js";
import type { TechniqueRow } from "./techniques.js";

interface BenchFlags extends DeviceFlags, ShapeFlags {
  readonly model?: string;
  readonly prompt: number;
  readonly generate: number;
  readonly repeat: number;
  readonly requests: number;
  readonly json?: boolean;
}

function addBenchFlags(command: Command): Command {
  return addDeviceFlags(addShapeFlags(command.option("--model <model>", modelArgument)))
    .option("--draft <model>", "a smaller model with the same vocabulary that guesses tokens")
    .option("--lookup", "guess tokens from the text, as run and serve do: flatters text that repeats itself")
    .option("--json", "print JSON");
}

function benchModel({ model, shape, ...flags }: BenchFlags): string | RandomModel {
  if ((model === undefined) === (shape === undefined)) throw new UserError("give either --model or --shape");
  return model ?? randomModel({ shape: shape!, ...flags });
}

/** Runs once to warm up and `repeat` times to measure; prints medians and every run. */
async function measure<R extends object>(
  flags: BenchFlags,
  settings: Readonly<Record<string, number>>,
  sequences: number,
  run: (generator: OpenModel["generator"]) => Promise<R>,
  foretold: (model: OpenModel, middle: Record<string, number>) => Speeds | undefined = () => undefined,
): Promise<void> {
  const ctx = flags.ctx ?? flags.prompt + flags.generate;
  const model = await openModel(benchModel(flags), { ...flags, lookup: flags.lookup ?? false, ctx, sequences });
  try {
    await run(model.generator);
    const runs: R[] = [];
    for (let i = 0; i < flags.repeat; i++) runs.push(await run(model.generator));
    const middle = medians(runs as unknown as Record<string, number>[]);
    const { device, threads, kvDtype } = model;
    const about = { model: model.name, device, threads, kvDtype, ...settings };
    const predicted = foretold(model, middle);
    const result = { ...about, ...middle, predicted, runs, machine: machine() };
    if (flags.json) console.log(JSON.stringify(result));
    else {
      console.log(`${model.name}, ${device}, ${threads} threads, medians of ${flags.repeat}:`);
      console.log(table(Object.entries(middle).map(([name, value]) => [`  ${name}`, Number(value.toFixed(2))])));
      if (predicted !== undefined) {
        const { prompt, generation } = predicted;
        console.log(`  foretold by millrace plan: prompt ${prompt.toFixed(1)}, generation ${generation.toFixed(1)}`);
      }
    }
  } finally {
    await model.close();
  }
}

/** Beside what `millrace plan` foretold, where it did; the next plan is the better for it. */
function compare({ name, device, threads }: OpenModel, middle: Record<string, number>): Speeds | undefined {
  const measured = { prompt: middle.promptTokensPerSecond, generation: middle.generationTokensPerSecond };
  return new SpeedBook().measured(machineName(device, threads), name, measured)?.predicted;
}

function latency(): Command {
  return addBenchFlags(new Command("latency"))
    .description(
      "One request at a time. The prompt's speed and the time to the first token are of a prompt of --prompt random tokens; " +
        "the generation's speed is of --generate tokens after a prompt of one: llama-bench's tests pp and tg.",
    )
    .option("--prompt <tokens>", "length of the prompt", wholeNumber(1), 512)
    .option("--generate <tokens>", "tokens to generate", wholeNumber(1), 128)
    .option("--repeat <n>", "measured runs, after one that is not", wholeNumber(1, 1000), 5)
    .addHelpText(
      "after",
      "\nExamples:\n  millrace bench latency --model smollm2 --prompt 512 --generate 128 --repeat 5 --json",
    )
    .action((flags: BenchFlags) => {
      const { prompt, generate, repeat } = flags;
      const settings = { prompt, generate, repeat };
      return measure(flags, settings, 1, (generator) => latencyRun(generator, prompt, generate), compare);
    });
}

function throughput(): Command {
  return addBenchFlags(new Command("throughput"))
    .description(
      "Many requests at once, as llama-batched-bench does. totalGenerationTokensPerSecond counts the tokens of all requests " +
        "while all of them generate (S_TG); overallGenerationTokensPerSecond is over the whole time, prompts included.",
    )
    .option("--requests <n>", "requests at once", wholeNumber(1, 4096), 16)
    .option("--prompt <tokens>", "length of each prompt", wholeNumber(1), 128)
    .option("--generate <tokens>", "tokens that each request generates", wholeNumber(1), 128)
    .option("--repeat <n>", "measured runs, after one that is not", wholeNumber(1, 1000), 3)
    .addHelpText(
      "after",
      "\nExamples:\n  millrace bench throughput --model smollm2 --requests 16 --prompt 128 --generate 128 --json",
    )
    .action((flags: BenchFlags) => {
      const { requests, prompt, generate, repeat } = flags;
      const settings = { requests, prompt, generate, repeat };
      return measure(flags, settings, requests, (generator) => throughputRun(generator, settings));
    });
}

function techniques(): Command {
  return new Command("techniques")
    .description(
      "What each technique is worth on this machine, beside the way it replaces: real runs of models of random weights. " +
        "docs/TECHNIQUES.md explains each row. Takes a minute or two.",
    )
    .addOption(new Option("--device <name>", "device to measure").choices(["auto", "cpu"]).default("auto"))
    .option("--threads <n>", "compute threads (default: the processor's cores)", wholeNumber(1, 1024))
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  millrace bench techniques\n  millrace bench techniques --json > techniques.json",
    )
    .action(async ({ json, ...options }: { device: string; threads?: number; json?: boolean }) => {
      const { Techniques } = await import("./techniques.js");
      const rows: TechniqueRow[] = [];
      for (const [name, measure] of new Techniques(options).all) {
        process.stderr.write(`measuring: ${name}\n`);
        rows.push(...(await measure()));
      }
      if (json) console.log(JSON.stringify({ rows, machine: machine() }));
      else console.log(table(rows.map(techniqueLine)));
    });
}

function ops(): Command {
  return new Command("ops")
    .description(
      "Each kernel of a device alone, beside the machine's limits: for the CPU memory read with prefetch, products of 8-bit " +
        "integers and f32 multiply-adds, measured in the same run; for a GPU memory read, measured in the same run, its tensor " +
        "cores at their highest clock, and cuBLAS where it is found.",
    )
    .addOption(new Option("--device <name>", "device to measure").choices(["cpu", "cuda"]).default("cpu"))
    .option("--threads <n>", "compute threads of the CPU (default: the processor's cores)", wholeNumber(1, 1024))
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  millrace bench ops\n  millrace bench ops --threads 1 --json\n  millrace bench ops --device cuda",
    )
    .action(async ({ device, json, threads }: { device: string; threads?: number; json?: boolean }) => {
      const { limits, roofs, rows } = device === "cuda" ? await gpuOps() : await cpuOps(threads);
      if (json) console.log(JSON.stringify({ roofs, rows, machine: machine() }));
      else console.log(`limits: ${limits}\n${table(rows.map(opLine))}`);
    });
}

interface OpBench {
  readonly limits: string;
  readonly roofs: object;
  readonly rows: readonly OpRow<string>[];
}

async function cpuOps(threads?: number): Promise<OpBench> {
  const { Ops } = await import("./ops.js");
  const { roofs, rows } = await new Ops({ threads }).measure();
  const { readBytes, int8, f32 } = roofs;
  const limits = `${giga(readBytes)} GB/s read, ${giga(int8)} GOP/s of int8, ${giga(f32)} GFLOP/s of f32`;
  return { limits, roofs, rows };
}

async function gpuOps(): Promise<OpBench> {
  const { CudaOps } = await import("./ops-cuda.js");
  const ops = new CudaOps();
  const { readBytes, bf16 } = ops.roofs;
  const rows: OpRow<string>[] = [];
  for await (const row of ops.rows()) rows.push(row);
  return { limits: `${giga(readBytes)} GB/s read, ${giga(bf16)} GFLOP/s of bf16`, roofs: ops.roofs, rows };
}

const giga = (value: number) => (value / 1e9).toFixed(1);

function opLine({ op, what, tokens, ms, bound, rate, share, libraryMs }: OpRow<string>): (string | number)[] {
  const unit = bound === "readBytes" ? "GB/s" : bound === "int8" ? "GOP/s" : "GFLOP/s";
  return [
    op,
    tokens,
    Number(ms.toPrecision(3)),
    "ms",
    Number((rate / 1e9).toPrecision(3)),
    unit,
    `${(100 * share).toFixed(0)} %`,
    libraryMs === undefined ? what : `${what}; cuBLAS ${Number(libraryMs.toPrecision(3))} ms`,
  ];
}

function techniqueLine({ technique, variant, what, value, unit, bytes }: TechniqueRow): (string | number)[] {
  const memory = bytes === undefined ? "" : formatBytes(bytes);
  return [technique, variant, Number(value.toPrecision(3)), unit, memory, what];
}

export function command(): Command {
  return new Command("bench")
    .description("Measure latency or throughput with random tokens, or a running server under load.")
    .addCommand(latency())
    .addCommand(throughput())
    .addCommand(serveCommand())
    .addCommand(ops())
    .addCommand(techniques())
    .addHelpText(
      "after",
      `
Examples:
  millrace bench latency --model smollm2
  millrace bench latency --shape llama-3.2-1b --quant q4_k_m
  millrace bench throughput --model ./model.gguf --requests 16 --json
  millrace bench serve --rate 4 --workload chat --plot load.svg`,
    );
}
