// Owns: `millrace bench serve`: load on a running server, its report and its picture. What the load is: load.ts.
import { writeFileSync } from "node:fs";
import { Command, InvalidArgumentError, Option } from "commander";
import { env } from "../base/env.js";
import { UserError } from "../base/errors.js";
import { numberIn, wholeNumber } from "./flags.js";
import { type LoadOptions, type LoadReport, runLoad, type Spread, workloads } from "./load.js";
import { loadPlot } from "./load-plot.js";
import { machine } from "./machine.js";
import { serverUrl } from "./remote.js";
import { table } from "./table.js";

interface ServeBenchFlags extends Omit<LoadOptions, "url" | "model"> {
  readonly url?: string;
  readonly model?: string;
  readonly json?: boolean;
  readonly plot?: string;
}

function rate(text: string): number {
  return text === "inf" ? Number.POSITIVE_INFINITY : numberIn(1e-3, 1e6)(text);
}

function address(text: string): string {
  if (URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)) return text;
  throw new InvalidArgumentError('It must be an address such as "http://127.0.0.1:8000".');
}

/** The server's only model. */
async function onlyModel(url: string, apiKey: string | undefined): Promise<string> {
  const headers: Record<string, string> = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  const answer = await fetch(`${url.replace(/\/+$/, "").replace(/\/v1$/, "")}/v1/models`, { headers }).catch(
    (error) => {
      throw new UserError(`there is no server on ${url}`, { status: 502, code: "no_server", cause: error });
    },
  );
  if (!answer.ok) throw new UserError(`${url}/v1/models: HTTP ${answer.status}`, { status: answer.status });
  const { data } = (await answer.json()) as { data: readonly { id: string }[] };
  if (data.length === 1) return data[0].id;
  throw new UserError(`give --model: the server has ${data.map(({ id }) => id).join(", ") || "none"}`);
}

async function benchServe({ json, plot, ...flags }: ServeBenchFlags): Promise<void> {
  const url = flags.url ?? serverUrl();
  const apiKey = flags.apiKey ?? env("MILLRACE_API_KEY");
  const model = flags.model ?? (await onlyModel(url, apiKey));
  const options: LoadOptions = { ...flags, url, apiKey, model };
  const { report, samples } = await runLoad(options);
  if (plot !== undefined) writeFileSync(plot, loadPlot(titleOf(options), samples));
  if (json) {
    const { apiKey: _, ...settings } = options;
    console.log(JSON.stringify({ settings, ...report, machine: machine() }));
  } else print(options, report);
  if (report.requests === 0) process.exitCode = 1;
}

const titleOf = ({ model, requests, rate, workload }: LoadOptions) =>
  `${model}: ${requests} requests, ${rate === Number.POSITIVE_INFINITY ? "all at once" : `${rate} a second`}, ${workload}`;

function print(options: LoadOptions, report: LoadReport): void {
  const two = (value: number) => Number(value.toFixed(2));
  console.log(`${titleOf(options)}:`);
  console.log(
    table([
      ["  answered", report.requests],
      ["  failed", report.failed],
      ["  seconds", two(report.seconds)],
      ["  requests a second", two(report.requestsPerSecond)],
      ["  good requests a second", two(report.goodput)],
      ["  generated tokens a second", two(report.tokensPerSecond)],
      ["  prompt tokens", report.promptTokens],
      ["  of these cached", report.cachedTokens],
    ]),
  );
  const line = (name: string, spread: Spread | null) =>
    spread === null ? [] : [[name, ...[spread.mean, spread.median, spread.p90, spread.p99].map(two)]];
  console.log(
    table([
      ["  ms", "mean", "median", "p90", "p99"],
      ...line("  TTFT", report.ttft),
      ...line("  TPOT", report.tpot),
      ...line("  ITL", report.itl),
      ...line("  E2E", report.e2e),
    ]),
  );
  for (const error of report.errors) console.error(`failed: ${error}`);
}

export function command(): Command {
  return new Command("serve")
    .description(
      "Load on a running server that speaks OpenAI's API (this one, llama-server, vLLM): what callers see when requests " +
        "arrive as they like. TTFT: to the first token; TPOT: a token after it; ITL: between events; E2E: to the last.",
    )
    .option("--url <address>", "the server (default: OLLAMA_HOST, else this machine's)", address)
    .option("--model <id>", "what the server calls it (default: its only one)")
    .option("--api-key <key>", "also MILLRACE_API_KEY")
    .option("--requests <n>", "how many, in all", wholeNumber(1), 100)
    .option("--rate <n>", 'arrivals a second; "inf": all at once', rate, Number.POSITIVE_INFINITY)
    .option("--burstiness <shape>", "of the arrivals: 1 is Poisson, less comes in bursts", numberIn(0.01, 100), 1)
    .option("--concurrency <n>", "open requests at once, at most", wholeNumber(1), 1024)
    .addOption(
      new Option(
        "--workload <name>",
        "random: all alike; chat: lengths spread as in ShareGPT's conversations; prefix: prompts that share their beginning",
      )
        .choices([...workloads])
        .default("random"),
    )
    .option("--input <words>", "length of a prompt; of chat the median", wholeNumber(1, 1e6), 128)
    .option("--output <tokens>", "length of an answer; of chat the median", wholeNumber(1, 1e6), 128)
    .option(
      "--prefixes <n>",
      "of prefix: different beginnings, three quarters of a prompt each",
      wholeNumber(1, 1e5),
      8,
    )
    .option("--no-ignore-eos", "let answers end by themselves (servers that know no ignore_eos)")
    .option("--seed <n>", "the same load again", wholeNumber(0), 0)
    .option("--good-ttft <ms>", "a request counts as good up to here", numberIn(0, 1e9), Number.POSITIVE_INFINITY)
    .option("--good-tpot <ms>", "and up to here", numberIn(0, 1e9), Number.POSITIVE_INFINITY)
    .option("--plot <file>", "write the distributions as an SVG picture")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      `
Examples:
  millrace bench serve --rate 4 --requests 200 --workload chat --plot load.svg
  millrace bench serve --rate 8 --burstiness 0.3 --good-ttft 500 --good-tpot 50 --json
  millrace bench serve --url http://127.0.0.1:8000 --model llama --workload prefix --prefixes 4`,
    )
    .action(benchServe);
}
