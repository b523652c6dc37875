// Owns: `millrace serve [MODEL…]`: what is printed while models load, Ollama's variables as further names of the flags, and
// an orderly end on Ctrl-C or SIGTERM.
import { readFileSync } from "node:fs";
import { Command, InvalidArgumentError } from "commander";
import { env, type VariableName } from "../base/env.js";
import { type Level, setLog } from "../base/log.js";
import { pagesFolder } from "../store/folder.js";
import { parseAddress } from "./address.js";
import { UsageError } from "./failure.js";
import {
  addDeviceFlags,
  addGuessFlags,
  byteCount,
  collect,
  type DeviceFlags,
  duration,
  numberIn,
  wholeNumber,
} from "./flags.js";
import { modelArgument } from "./model.js";
import { pullReport } from "./progress.js";

interface ServeFlags extends DeviceFlags {
  readonly host?: string;
  readonly port?: number;
  readonly apiKey?: readonly string[];
  readonly keyFile?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly corsOrigin?: readonly string[];
  readonly auditLog?: string;
  readonly otlp?: string | true;
  readonly pullHost?: readonly string[];
  /** Megabytes. */
  readonly maxBody?: number;
  /** Milliseconds. */
  readonly drain?: number;
  readonly id?: string;
  readonly lora?: readonly { readonly name: string; readonly path: string }[];
  readonly maxSequences?: number;
  readonly maxWaiting?: number;
  readonly maxQueuedTokens?: number;
  /** Milliseconds. */
  readonly keepAlive?: number;
  readonly maxLoaded?: number;
  /** Gigabytes. */
  readonly memory?: number;
  /** Bytes. */
  readonly cacheMemory?: number;
  readonly cacheDisk?: number;
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

/** A variable of Ollama's, read as the flag that says the same. */
function variable<T>(name: VariableName, text: string | undefined, parse: (text: string) => T): T | undefined {
  if (text === undefined) return undefined;
  try {
    return parse(text);
  } catch (error) {
    throw new UsageError(`${name}=${text} cannot be used. ${(error as Error).message}`);
  }
}

const kvTypes: Record<string, DeviceFlags["kvDtype"]> = { f16: "f16", bf16: "bf16", f32: "f32", q8: "q8" };

function kvType(text: string, device: string | undefined): DeviceFlags["kvDtype"] {
  if (text in kvTypes) return kvTypes[text];
  if (/^(q8_0|q4_0)$/.test(text)) {
    const nearest = device?.startsWith("cuda") ? "f16" : "q8";
    if (`${nearest}_0` !== text) {
      process.stderr.write(
        `OLLAMA_KV_CACHE_TYPE=${text}: the cache is ${nearest} here, which is more exact and takes more memory\n`,
      );
    }
    return nearest;
  }
  throw new InvalidArgumentError(`It must be one of ${Object.keys(kvTypes).join(", ")}.`);
}

function origins(text: string): string[] {
  const all = text.split(",").map((one) => one.trim());
  const wrong = all.find((one) => one !== "*" && !URL.canParse(one.replaceAll("*", "0")));
  if (wrong === undefined) return all;
  throw new InvalidArgumentError(
    `${JSON.stringify(wrong)} is no origin: give https://app.example, or "*" for any text.`,
  );
}

/** What flags leave open. */
function fromOllama(device: string | undefined): Partial<ServeFlags> {
  const address = variable("OLLAMA_HOST", env("OLLAMA_HOST"), parseAddress);
  return {
    ...address,
    keepAlive: variable("OLLAMA_KEEP_ALIVE", env("OLLAMA_KEEP_ALIVE"), duration),
    maxLoaded: variable("OLLAMA_MAX_LOADED_MODELS", env("OLLAMA_MAX_LOADED_MODELS"), wholeNumber(0)) || undefined,
    maxWaiting: variable("OLLAMA_MAX_QUEUE", env("OLLAMA_MAX_QUEUE"), wholeNumber(0)),
    maxSequences: variable("OLLAMA_NUM_PARALLEL", env("OLLAMA_NUM_PARALLEL"), wholeNumber(0, 4096)) || undefined,
    ctx: variable("OLLAMA_CONTEXT_LENGTH", env("OLLAMA_CONTEXT_LENGTH"), wholeNumber(0)) || undefined,
    corsOrigin: variable("OLLAMA_ORIGINS", env("OLLAMA_ORIGINS"), origins),
    kvDtype: variable("OLLAMA_KV_CACHE_TYPE", env("OLLAMA_KV_CACHE_TYPE"), (text) => kvType(text, device)),
  };
}

const given = <T extends object>(flags: T): Partial<T> =>
  Object.fromEntries(Object.entries(flags).filter(([, value]) => value !== undefined)) as Partial<T>;

function adapter(text: string, before: NonNullable<ServeFlags["lora"]> = []): NonNullable<ServeFlags["lora"]> {
  const at = text.indexOf("=");
  if (at < 1 || at === text.length - 1) throw new InvalidArgumentError("It must be NAME=PATH.");
  return [...before, { name: text.slice(0, at), path: text.slice(at + 1) }];
}

function httpAddress(text: string): string {
  if (URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)) return text;
  throw new InvalidArgumentError("It must be an address such as http://localhost:4318.");
}

function tlsOf({ tlsCert, tlsKey }: ServeFlags): { cert: string; key: string } | undefined {
  if (tlsCert === undefined && tlsKey === undefined) return undefined;
  if (tlsCert === undefined || tlsKey === undefined) throw new UsageError("give --tls-cert and --tls-key together");
  const read = (path: string) => {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      throw new UsageError(`cannot read ${path}: ${(error as Error).message}`);
    }
  };
  return { cert: read(tlsCert), key: read(tlsKey) };
}

async function serveModels(models: readonly string[], commandLine: ServeFlags): Promise<void> {
  const flags: ServeFlags = { ...fromOllama(commandLine.device), ...given(commandLine) } as ServeFlags;
  if (flags.id !== undefined && models.length !== 1)
    throw new UsageError("--id names one model: give one MODEL with it");
  if (flags.lora !== undefined && models.length !== 1)
    throw new UsageError("--lora belongs to one model: give one MODEL with it");
  if (flags.draft !== undefined && models.length !== 1)
    throw new UsageError("--draft guesses for one model: give one MODEL with it");
  const twice = models.find((name, index) => models.indexOf(name) !== index);
  if (twice !== undefined) {
    throw new UsageError(`${twice} was given twice: give it once (--id NAME, with one MODEL, is for another name)`);
  }
  if (flags.logJson) await logAsJson();
  const [{ serve }, { readKeys }] = await Promise.all([import("../server/serve.js"), import("../server/keys.js")]);
  const {
    host,
    port,
    device,
    threads,
    ctx: contextLength,
    kvDtype,
    deterministic,
    lookup,
    maxSequences,
    maxWaiting,
    maxQueuedTokens,
    maxLoaded,
  } = flags;
  const fromEnvironment = env("MILLRACE_API_KEY");
  const apiKeys = [...(flags.apiKey ?? []), ...(fromEnvironment === undefined ? [] : [fromEnvironment])];
  const report = pullReport();
  const stopping = interrupted();
  const controller = new AbortController();
  void stopping.then(() => controller.abort());
  const server = await serve({
    models: models.map((model) => ({ model, id: flags.id, adapters: flags.lora, draft: flags.draft })),
    ...{ host, port, apiKeys, device, threads, contextLength, kvDtype, deterministic, lookup },
    ...{ maxSequences, maxWaiting, maxQueuedTokens, maxLoaded },
    keepAliveMs: flags.keepAlive,
    keys: flags.keyFile === undefined ? [] : readKeys(flags.keyFile),
    tls: tlsOf(flags),
    corsOrigins: flags.corsOrigin,
    auditLog: flags.auditLog,
    traces: flags.otlp,
    pullHosts: flags.pullHost,
    maxBodyBytes: flags.maxBody === undefined ? undefined : Math.floor(flags.maxBody * 1e6),
    drainMs: flags.drain,
    pageCache: { folder: pagesFolder(), memoryBytes: flags.cacheMemory, diskBytes: flags.cacheDisk },
    memoryBytes: flags.memory === undefined ? undefined : Math.floor(flags.memory * 1e9),
    report,
    signal: controller.signal,
  }).finally(() => report.stop());
  if (flags.json) console.log(JSON.stringify({ url: server.url, port: server.port, models: server.models }));
  else {
    for (const { id, contextLength, device: on } of server.models) {
      console.log(`${id}: ${on}, context for ${contextLength} tokens`);
    }
    if (models.length === 0) console.log("Models are loaded when they are asked for (millrace list shows them).");
    console.log(`Serving on ${server.url} (Ctrl-C ends it)`);
  }
  await stopping;
  process.stderr.write("Ending: open requests may finish; Ctrl-C again ends at once.\n");
  await server.close();
}

export function command(): Command {
  const program = new Command("serve")
    .alias("start")
    .description(
      "Serve models over HTTP as OpenAI's and Ollama's APIs do. Without a MODEL all that are on this machine, each loaded " +
        "when it is asked for and unloaded when it is not; a MODEL that is named is loaded at once and stays.",
    )
    .argument("[models...]", modelArgument)
    .option("--host <address>", "address to listen on; any but loopback needs --api-key (default: 127.0.0.1)")
    .option("--port <n>", "0: any free one (default: 11434, as Ollama)", wholeNumber(0, 65535))
    .option(
      "--api-key <key>",
      "callers must give it as a bearer token (several may be given; also MILLRACE_API_KEY)",
      collect,
    )
    .option("--key-file <file>", "keys with scopes, hashed, a line each (millrace key makes them)")
    .option("--tls-cert <file>", "certificate chain, PEM: the server speaks HTTPS")
    .option("--tls-key <file>", "the certificate's private key, PEM")
    .option(
      "--cors-origin <origin>",
      'web pages that may call: https://app.example, https://*.example, "*" (several may be given; this machine\'s always may)',
      collect,
    )
    .option("--audit-log <file>", "write who asked what to this file, a JSON object a line")
    .option(
      "--pull-host <host>",
      'where callers with a key may pull from and push to, beside the hub and Ollama\'s registry; "*": anywhere',
      collect,
    )
    .option("--max-body <megabytes>", "of a request; larger ones are a 413 (default: 8.4)", numberIn(0.001, 1024))
    .option(
      "--otlp [url]",
      "send OpenTelemetry traces to this collector (default: OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318)",
      httpAddress,
    )
    .option("--drain <time>", "how long open requests may go on when the server ends (default: 30s)", duration)
    .option("--id <name>", "what callers call the model (default: its own name)")
    .option(
      "--lora <name=path>",
      "a LoRA adapter for the model (.gguf or PEFT folder), asked for by this name as a model is (several may be given)",
      adapter,
    )
    .option("--max-sequences <n>", "answers that are generated at once (default: 16)", wholeNumber(1, 4096))
    .option("--max-waiting <n>", "answers that may wait; beyond that callers get a 429 (default: 256)", wholeNumber(0))
    .option(
      "--max-queued-tokens <n>",
      "tokens that open requests may come to, prompts and longest answers; beyond that callers get a 429 (default: any)",
      wholeNumber(1),
    )
    .option(
      "--keep-alive <time>",
      "how long a model stays that nobody asks: 5m, 1h, -1 for ever (default: 5m)",
      duration,
    )
    .option("--max-loaded <n>", "most models that are loaded on demand at once (default: as fit)", wholeNumber(1))
    .option("--memory <gigabytes>", "for all models together (default: nine tenths)", numberIn(0.01, 1e6))
    .option(
      "--cache-memory <bytes>",
      "of a model's computed pages, those kept in memory beside the device's: 512M, 2G, 0 (default: from what is free)",
      byteCount,
    )
    .option(
      "--cache-disk <bytes>",
      "of all models' computed pages, those kept on disk, also over restarts; 0: none (default: a tenth of what is free)",
      byteCount,
    )
    .option("--log-json", "log as JSON, one object a line; MILLRACE_LOG=info logs each request")
    .option("--json", "print {url, port, models} as one line of JSON when requests are taken");
  return addGuessFlags(addDeviceFlags(program))
    .addHelpText(
      "after",
      `
Examples:
  millrace serve                                   all models here, on http://127.0.0.1:11434
  millrace serve smollm2                           this one alone, loaded at once
  millrace serve ./model.gguf --id my-model --port 9000
  millrace serve ./model.gguf --lora sql=./sql-lora --lora brief=./brief.gguf
  MILLRACE_API_KEY=… millrace serve smollm2 --host 0.0.0.0
  curl http://127.0.0.1:11434/v1/chat/completions -H 'content-type: application/json' \\
       -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}'

OLLAMA_HOST, OLLAMA_KEEP_ALIVE, OLLAMA_MAX_LOADED_MODELS, OLLAMA_MAX_QUEUE, OLLAMA_NUM_PARALLEL, OLLAMA_CONTEXT_LENGTH,
OLLAMA_ORIGINS and OLLAMA_KV_CACHE_TYPE count where a flag is not given.`,
    )
    .action(serveModels);
}
