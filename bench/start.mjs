// Owns: what starting costs: milliseconds from the start of the process to the first token, with the file in the page cache
// (the best of several is nearest to a quiet machine), and the most anonymous memory that
// `run`, and `serve` with requests under way, take in all their processes. Prints one JSON object.
//
//   node bench/start.mjs --model MODEL [--model …] [--threads 2] [--repeat 5]
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const main = join(dirname(fileURLToPath(import.meta.url)), "..", "dist", "cli", "main.js");
const { values: flags } = parseArgs({
  options: {
    model: { type: "string", multiple: true },
    threads: { type: "string", default: "2" },
    repeat: { type: "string", default: "5" },
    port: { type: "string", default: "18999" },
  },
});
if (!flags.model?.length) {
  console.error("node bench/start.mjs --model MODEL [--model …] [--threads 2] [--repeat 5]");
  process.exit(2);
}

function descendants(pid) {
  const all = [pid];
  try {
    for (const task of readdirSync(`/proc/${pid}/task`)) {
      const children = readFileSync(`/proc/${pid}/task/${task}/children`, "utf8").trim();
      for (const child of children === "" ? [] : children.split(" ")) all.push(...descendants(Number(child)));
    }
  } catch {} // it has ended meanwhile
  return all;
}

/** Of the process and all below it, in MiB. */
function anonymous(pid) {
  let kilobytes = 0;
  for (const one of descendants(pid)) {
    try {
      const text = readFileSync(`/proc/${one}/smaps_rollup`, "utf8");
      kilobytes += Number(/^Anonymous:\s+(\d+)/m.exec(text)[1]);
    } catch {} // likewise
  }
  return kilobytes / 1024;
}

/** Starts the command; body gets the process; ends with its output and, where `memory`, the most memory seen. */
async function command(args, { memory = false, body } = {}) {
  const child = spawn(process.execPath, [main, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  let peak = 0;
  const look = () => {
    peak = Math.max(peak, anonymous(child.pid));
  };
  const timer = memory ? setInterval(look, 15) : undefined;
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text) => {
    output += text;
  });
  const ended = new Promise((resolve) => child.on("close", resolve));
  try {
    await body?.(look);
  } finally {
    if (body) child.kill("SIGTERM");
    await ended;
    clearInterval(timer);
  }
  return { output, peak };
}

const run = (model, tokens) =>
  ["run", model, "--json", "--temperature", "0", "--threads", flags.threads].concat([
    ...["--max-tokens", String(tokens), "Hello there"],
  ]);

async function serveUnderLoad(model) {
  const base = `http://127.0.0.1:${flags.port}`;
  const body = async (look) => {
    while (!(await fetch(`${base}/health`).catch(() => undefined))?.ok) await new Promise((r) => setTimeout(r, 50));
    const [{ id }] = (await (await fetch(`${base}/v1/models`)).json()).data;
    const ask = async (i) => {
      const job = { model: id, prompt: `${i}: ${"once upon a time ".repeat(25)}`, max_tokens: 32 };
      const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(job) };
      const response = await fetch(`${base}/v1/completions`, init);
      if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
      await response.json();
    };
    await Promise.all(Array.from({ length: 16 }, (_, i) => ask(i)));
    look();
  };
  const args = ["serve", model, "--port", flags.port, "--threads", flags.threads];
  return (await command(args, { memory: true, body })).peak;
}

const round = (value) => Math.round(value * 10) / 10;
const models = [];
for (const model of flags.model) {
  const starts = [];
  for (let i = 0; i < Number(flags.repeat); i++) {
    const { output } = await command(run(model, 1));
    starts.push(JSON.parse(output).startToFirstTokenMs);
  }
  starts.sort((a, b) => a - b);
  const { peak } = await command(run(model, 64), { memory: true });
  models.push({
    model,
    startToFirstTokenMs: { best: round(starts[0]), median: round(starts[starts.length >> 1]), all: starts.map(round) },
    peakAnonymousMiB: { run: round(peak), serve: round(await serveUnderLoad(model)) },
  });
}
const machine = {
  processor: cpus()[0]?.model,
  cores: cpus().length,
  load: loadavg().map(round),
  node: process.version,
};
console.log(JSON.stringify({ machine, threads: Number(flags.threads), models }, null, 2));
