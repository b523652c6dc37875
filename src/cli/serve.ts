// Owns: `millrace serve [MODEL…]`: what is printed while models load, and an orderly end on Ctrl-C or SIGTERM.
import { Command } from "commander";
import { env } from "../base/env.js";
import { type Level, setLog } from "../base/log.js";
import { defaultModel } from "../store/catalogue.js";
import { UsageError } from "./failure.js";
import { addDeviceFlags, collect, type DeviceFlags, wholeNumber } from "./flags.js";
import { modelArgument } from "./model.js";
import { pullReport } from "./progress.js";

interface ServeFlags extends DeviceFlags {
  readonly host?: string;
  readonly port?: number;
  readonly apiKey?: readonly string[];
  readonly id?: string;
  readonly maxSequences?: number;
  readonly maxWaiting?: number;
  readonly logJson?: boolean;
  readonly json?: boolean;
}

/** One JSON object a line, as log collectors read them. */
async function logAsJson(): Promise<void> {
  const { pino } = await import("pino");
  const logger = pino({ level: "trace", base: undefined }, pino.destination({ dest: 2, sync: true }));
  setLog((level: Level, message, fields) => logger[level](fields, message));
}

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process. npm sends the terminal's signal twice. */
function interrupted(): Promise<void> {
  return new Promise((resolve) => {
    let at: number | null = null;
    const stop = () => {
      if (at !== null && performance.now() - at > 300) process.exit(130);
      at ??= performance.now();
      resolve();
    };
    process.on("SIGINT", stop);
    process.on("SIGTERM", stop);
  });
}

async function serveModels(models: readonly string[], flags: ServeFlags): Promise<void> {
  const names = models.length > 0 ? models : [defaultModel];
  if (flags.id !== undefined && names.length > 1) throw new UsageError("--id names one model: give one MODEL with it");
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) {
    throw new UsageError(`${twice} was given twice: give it once (--id NAME, with one MODEL, is for another name)`);
  }
  if (flags.logJson) await logAsJson();
  const { serve } = await import("../server/serve.js");
  const { host, port, device, threads, ctx: contextLength, kvDtype, maxSequences, maxWaiting } = flags;
  const fromEnvironment = env("MILLRACE_API_KEY");
  const apiKeys = [...(flags.apiKey ?? []), ...(fromEnvironment === undefined ? [] : [fromEnvironment])];
  const report = pullReport();
  const stopping = interrupted();
  const controller = new AbortController();
  void stopping.then(() => controller.abort());
  const server = await serve({
    models: names.map((model) => ({ model, ...(flags.id === undefined ? {} : { id: flags.id }) })),
    ...{ host, port, apiKeys, device, threads, contextLength, kvDtype, maxSequences, maxWaiting },
    report,
    signal: controller.signal,
  }).finally(() => report.stop());
  if (flags.json) console.log(JSON.stringify({ url: server.url, port: server.port, models: server.models }));
  else {
    for (const { id, contextLength, device: on } of server.models) {
      console.log(`${id}: ${on}, context for ${contextLength} tokens`);
    }
    console.log(`Serving on ${server.url}/v1 (Ctrl-C ends it)`);
  }
  await stopping;
  process.stderr.write("Ending: open requests may finish; Ctrl-C again ends at once.\n");
  await server.close();
}

export function command(): Command {
  const program = new Command("serve")
    .description(`Serve models over HTTP as OpenAI's API does. Without a MODEL: ${defaultModel}.`)
    .argument("[models...]", modelArgument)
    .option("--host <address>", "address to listen on; any but loopback needs --api-key (default: 127.0.0.1)")
    .option("--port <n>", "0: any free one (default: 8080)", wholeNumber(0, 65535))
    .option(
      "--api-key <key>",
      "callers must give it as a bearer token (several may be given; also MILLRACE_API_KEY)",
      collect,
    )
    .option("--id <name>", "what callers call the model (default: its own name)")
    .option("--max-sequences <n>", "answers that are generated at once (default: 16)", wholeNumber(1, 4096))
    .option("--max-waiting <n>", "answers that may wait; beyond that callers get a 429 (default: 256)", wholeNumber(0))
    .option("--log-json", "log as JSON, one object a line; MILLRACE_LOG=info logs each request")
    .option("--json", "print {url, port, models} as one line of JSON when requests are taken");
  return addDeviceFlags(program)
    .addHelpText(
      "after",
      `
Examples:
  millrace serve                                   the default model on http://127.0.0.1:8080/v1
  millrace serve ./model.gguf --id my-model --port 9000
  MILLRACE_API_KEY=… millrace serve smollm2 --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
       -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}'`,
    )
    .action(serveModels);
}
