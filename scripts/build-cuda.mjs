// Owns: compiling kernels/cuda with nvcc, one compressed fat binary a source file, into build/cuda/NAME-KEY.fatbin, and
// build/cuda/manifest.json, which lists them. Keyed by the hash of all that goes in: an unchanged tree costs nothing.
//
//   node scripts/build-cuda.mjs [--fast]     --fast: for Hopper alone (sm_90a), for development
//
// Machines without nvcc build nothing here: the cuda device then says that its kernels are not built.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const sourceDir = join(root, "kernels", "cuda");
const outDir = join(root, "build", "cuda");

const flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xfatbin=-compress-all", "-lineinfo"];
const code = (number) => ["-gencode", `arch=compute_${number},code=sm_${number}`];
const hopper = code("90a");
/** Ampere, Ada, Hopper; newer ones compile the PTX when they load it. */
const everywhere = [...code("80"), ...code("89"), ...hopper, "-gencode", "arch=compute_80,code=compute_80"];

export class BuildError extends Error {}

/** nvcc's command and version, or undefined. */
export function findNvcc() {
  for (const command of [process.env.NVCC, "nvcc", "/usr/local/cuda/bin/nvcc"].filter(Boolean)) {
    const asked = spawnSync(command, ["--version"], { encoding: "utf8" });
    if (asked.status === 0) return { command, version: asked.stdout.trim().split("\n").at(-1) };
  }
  return undefined;
}

function run(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout.on("data", (data) => (output += data));
    child.stderr.on("data", (data) => (output += data));
    child.on("error", reject);
    child.on("close", (status) => {
      if (status === 0) resolve(output);
      else reject(new BuildError(`${command} failed on ${args.at(-1)}:\n${output}`));
    });
  });
}

/** Builds what is missing; returns the manifest: { architectures, modules: [file names in build/cuda] }. */
export async function buildCuda({ fast = false, log = console.error } = {}) {
  const nvcc = findNvcc();
  if (!nvcc) throw new BuildError("no nvcc found: install the CUDA toolkit (12.8 or newer) or set NVCC");
  mkdirSync(outDir, { recursive: true });
  const names = readdirSync(sourceDir).sort();
  const read = (name) => readFileSync(join(sourceDir, name));
  const headers = names.filter((name) => name.endsWith(".cuh")).map(read);
  const units = names.filter((name) => name.endsWith(".cu") && !name.startsWith("bench_"));
  const targets = fast ? hopper : everywhere;
  const jobs = units.map((unit) => {
    const hash = createHash("sha256");
    for (const part of [unit, read(unit), ...headers, nvcc.version, ...flags, ...targets])
      hash.update(part).update("\0");
    return { unit, file: `${unit.slice(0, -3)}-${hash.digest("hex").slice(0, 16)}.fatbin` };
  });
  const missing = jobs.filter(({ file }) => !existsSync(join(outDir, file)));
  if (missing.length > 0) {
    log(`cuda kernels: compiling ${missing.length} of ${jobs.length} files with ${nvcc.version}`);
    const started = Date.now();
    const worker = async () => {
      for (let job = missing.shift(); job; job = missing.shift()) {
        const partial = join(outDir, `${job.file}.${process.pid}`);
        const args = ["-fatbin", ...flags, ...targets, "-o", partial, join(sourceDir, job.unit)];
        const output = await run(nvcc.command, args);
        if (output.trim()) log(output.trimEnd());
        renameSync(partial, join(outDir, job.file));
      }
    };
    await Promise.all(Array.from({ length: Math.max(1, Math.min(4, cpus().length)) }, worker));
    log(`cuda kernels: built in ${((Date.now() - started) / 1000).toFixed(1)} s`);
  }
  const manifest = {
    architectures: fast ? "sm_90a" : "sm_80, sm_89, sm_90a, PTX",
    modules: jobs.map(({ file }) => file),
  };
  const path = join(outDir, "manifest.json");
  writeFileSync(`${path}.${process.pid}`, `${JSON.stringify(manifest, null, 2)}\n`);
  renameSync(`${path}.${process.pid}`, path);
  for (const name of readdirSync(outDir)) {
    if (name.endsWith(".fatbin") && !manifest.modules.includes(name)) rmSync(join(outDir, name), { force: true });
  }
  return manifest;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    await buildCuda({ fast: process.argv.includes("--fast") });
  } catch (error) {
    console.error(error instanceof BuildError ? error.message : error);
    process.exitCode = 1;
  }
}
