// Owns: millrace and llama.cpp side by side on this machine's CPU, in one run: `millrace bench` and the peer's llama-bench
// and llama-batched-bench take turns, so that both see the same machine in the same minutes. Prints one JSON object:
// machine, commit, every run, medians, spread and ratios (millrace / peer; above 1 is faster).
//
//   node bench/cpu.mjs --peer FOLDER --model MODEL=FILE.gguf [--model …] [--threads 2] [--rounds 3] [--out FILE.json]
//   --peer-flag=-rtr --peer-flag=1     more flags for llama-bench (ik_llama.cpp's run-time repacking)
//   --own-flag=--deterministic         more flags for millrace
//   --only latency|throughput          one of the two
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const { values: flags } = parseArgs({
  options: {
    peer: { type: "string" },
    model: { type: "string", multiple: true },
    threads: { type: "string", default: "2" },
    rounds: { type: "string", default: "3" },
    prompt: { type: "string", default: "512" },
    generate: { type: "string", default: "128" },
    requests: { type: "string", default: "16" },
    "batch-prompt": { type: "string", default: "128" },
    "batch-generate": { type: "string", default: "128" },
    "peer-flag": { type: "string", multiple: true, default: [] },
    "own-flag": { type: "string", multiple: true, default: [] },
    only: { type: "string" },
    out: { type: "string" },
  },
});
if (!flags.peer || !flags.model?.length) {
  console.error(
    "usage: node bench/cpu.mjs --peer FOLDER --model NAME=FILE.gguf [--model …] [--threads 2] [--rounds 3]",
  );
  process.exit(2);
}

const run = (command, args) =>
  execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], maxBuffer: 1 << 26, cwd: root });
const millrace = (...args) =>
  JSON.parse(run(process.execPath, [join(root, "dist", "cli", "main.js"), "bench", ...args, "--json"]));
const peer = (tool) => {
  const path = [join(flags.peer, "bin", tool), join(flags.peer, tool)].find((one) => existsSync(one));
  if (path === undefined) throw new Error(`${flags.peer} holds no ${tool}`);
  return path;
};

/** The rate of llama-bench's one test, from its own JSON. */
function peerRate(file, ...test) {
  const args = ["-m", file, "-t", flags.threads, "-fa", "1", "-r", "1", "-o", "json", ...test, ...flags["peer-flag"]];
  const text = run(peer("llama-bench"), args);
  // ik_llama.cpp writes lines of its own before the list.
  return JSON.parse(text.slice(text.search(/^\[/m)))[0].avg_ts;
}

/** As millrace's: the generation follows the prompt. The two spell that differently. */
function peerLatency(file) {
  const { prompt, generate } = flags;
  const after = spawnSync(peer("llama-bench"), ["--help"], { encoding: "utf8" }).stdout.includes("--n-depth")
    ? ["-p", "0", "-n", generate, "-d", prompt]
    : ["-p", "0", "-n", "0", "-gp", `${prompt},${generate}`];
  const promptTokensPerSecond = peerRate(file, "-p", prompt, "-n", "0");
  return {
    promptTokensPerSecond,
    generationTokensPerSecond: peerRate(file, ...after),
    ttftMs: (1000 * Number(prompt)) / promptTokensPerSecond,
  };
}

/** S_TG, S_PP and the whole, from llama-batched-bench's table: PP TG B N_KV T_PP S_PP T_TG S_TG T S. */
function peerThroughput(file) {
  const [prompt, generate, requests] = [flags["batch-prompt"], flags["batch-generate"], flags.requests];
  const context = String(Number(requests) * (Number(prompt) + Number(generate)) + 256);
  const args = ["-m", file, "-t", flags.threads, "-c", context, "-npp", prompt, "-ntg", generate, "-npl", requests];
  const done = spawnSync(peer("llama-batched-bench"), [...args, "-fa", "on"], { encoding: "utf8", maxBuffer: 1 << 26 });
  if (done.status !== 0) throw new Error(`llama-batched-bench failed: ${done.stderr.slice(-500)}`);
  // Which of the two the table goes to has changed between versions.
  const line = `${done.stdout}\n${done.stderr}`.split("\n").find((one) => /^\|\s*\d+\s*\|/.test(one));
  if (line === undefined) throw new Error("llama-batched-bench printed no row");
  const cells = line.split("|").map((cell) => Number(cell.trim()));
  const [, , tg, batch, , tPrompt, sPrompt, tGenerate, sGenerate] = cells;
  return {
    totalGenerationTokensPerSecond: sGenerate,
    overallGenerationTokensPerSecond: (tg * batch) / (tPrompt + tGenerate),
    promptTokensPerSecond: sPrompt,
  };
}

const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

/** Medians and (max − min) / median of each figure, and millrace's over the peer's. Times are turned so that above 1 is faster. */
function summary(pairs) {
  const figures = {};
  for (const name of Object.keys(pairs[0].peer)) {
    const of = (who) => {
      const list = pairs.map((pair) => pair[who][name]);
      return { median: median(list), spread: (Math.max(...list) - Math.min(...list)) / median(list) };
    };
    const [ours, theirs] = [of("millrace"), of("peer")];
    const ratio = (pair) =>
      name.endsWith("Ms") ? pair.peer[name] / pair.millrace[name] : pair.millrace[name] / pair.peer[name];
    figures[name] = { millrace: ours, peer: theirs, ratio: median(pairs.map(ratio)) };
  }
  return figures;
}

function rounds(body) {
  return Array.from({ length: Number(flags.rounds) }, (_, round) => {
    // The first of a pair alternates: whoever runs second must not always meet the warmer machine.
    const both = {};
    for (const who of round % 2 ? ["peer", "millrace"] : ["millrace", "peer"]) both[who] = body[who]();
    return both;
  });
}

const models = flags.model.map((given) => {
  const [name, file] = given.includes("=") ? given.split("=") : [given.split("/").pop(), given];
  const settings = ["--model", file, "--threads", flags.threads, ...flags["own-flag"]];
  const batch = [
    "--requests",
    flags.requests,
    "--prompt",
    flags["batch-prompt"],
    "--generate",
    flags["batch-generate"],
  ];
  const work = {
    latency: {
      millrace: () =>
        millrace("latency", ...settings, "--prompt", flags.prompt, "--generate", flags.generate, "--repeat", "1"),
      peer: () => peerLatency(file),
    },
    throughput: {
      millrace: () => millrace("throughput", ...settings, ...batch, "--repeat", "1"),
      peer: () => peerThroughput(file),
    },
  };
  const runs = {};
  for (const [what, sides] of Object.entries(work)) {
    if (flags.only && flags.only !== what) continue;
    console.error(`${name}: ${what}`);
    runs[what] = rounds(sides);
  }
  const sha256 = createHash("sha256").update(readFileSync(file)).digest("hex");
  return {
    model: name,
    file: { bytes: statSync(file).size, sha256 },
    summary: Object.fromEntries(Object.entries(runs).map(([what, pairs]) => [what, summary(pairs)])),
    runs,
  };
});

/** undefined outside a repository: a copy on a machine without one. */
const git = (...args) => {
  const { status, stdout } = spawnSync("git", args, { encoding: "utf8", cwd: root });
  return status === 0 ? stdout.trim() : undefined;
};
const commit = git("rev-parse", "HEAD");
const dirty = Boolean(git("status", "--porcelain"));
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const { prompt, generate, requests } = flags;
const report = {
  machine: {
    processor: cpus()[0].model.trim(),
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    node: process.versions.node,
  },
  commit: dirty ? `${commit} with changes` : commit,
  millrace: version,
  settings: {
    threads: Number(flags.threads),
    rounds: Number(flags.rounds),
    peerFlags: flags["peer-flag"],
    ownFlags: flags["own-flag"],
    latency: { prompt: Number(prompt), generate: Number(generate) },
    throughput: {
      requests: Number(requests),
      prompt: Number(flags["batch-prompt"]),
      generate: Number(flags["batch-generate"]),
    },
  },
  models,
};
const text = JSON.stringify(report, null, 2);
if (flags.out) writeFileSync(flags.out, `${text}\n`);
console.log(text);
