// Owns: compiling kernels/cpu with the system's C++ compiler, one shared library an instruction set, into
// build/native/KEY/libmillrace-ISA.so, and build/native/manifest.json, which says where they are. Objects are kept by the
// hash of all that goes into them, so an unchanged tree costs nothing.
//
//   node scripts/build-native.mjs [--isa auto|avx2|avx512vnni|amx|neon|neon-dotprod|neon-i8mm] [--all]
//
// A variant of ARM that is asked for by name is cross-compiled on other processors (aarch64-linux-gnu-g++), for tests.
// macOS (ARM alone) is written to the documentation and untried.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const sourceDir = join(root, "kernels", "cpu");
const outDir = join(root, "build", "native");

const common =
  "-std=c++20 -O3 -fPIC -fvisibility=hidden -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra".split(
    " ",
  );
const avx2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt".split(" ");
// GCC 12 takes its own AVX-512 intrinsics' undefined operands for mistakes.
const avx512vnni = [
  ...avx2,
  ..."-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -Wno-uninitialized -Wno-maybe-uninitialized".split(" "),
];
const amx = [...avx512vnni, ..."-mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16".split(" ")];

/** In order of preference, the best last; the bit is mr_probe's. */
const variants = [
  { isa: "avx2", arch: "x64", flags: avx2, bit: 1 },
  { isa: "avx512vnni", arch: "x64", flags: avx512vnni, bit: 2 },
  { isa: "amx", arch: "x64", flags: amx, bit: 4 },
  { isa: "neon", arch: "arm64", flags: ["-march=armv8-a"], bit: 8 },
  { isa: "neon-dotprod", arch: "arm64", flags: ["-march=armv8.2-a+dotprod"], bit: 16 },
  { isa: "neon-i8mm", arch: "arm64", flags: ["-march=armv8.2-a+dotprod+i8mm"], bit: 32 },
];
const machines = ["linux x64", "linux arm64", "darwin arm64"];
const suffix = process.platform === "darwin" ? "dylib" : "so";

class BuildError extends Error {}

function findCompiler(arch) {
  const cross = arch === "arm64" && process.arch !== "arm64";
  const commands = cross ? ["aarch64-linux-gnu-g++"] : [process.env.CXX, "g++", "clang++"].filter(Boolean);
  for (const command of commands) {
    const asked = spawnSync(command, ["--version"], { encoding: "utf8" });
    if (asked.status === 0) return { command, version: asked.stdout.split("\n")[0] };
    if (command === process.env.CXX)
      throw new BuildError(`CXX is ${command}, which does not run; set it to a C++20 compiler or unset it`);
  }
  if (cross) throw new BuildError("no aarch64-linux-gnu-g++ found (Debian, Ubuntu: apt install g++-aarch64-linux-gnu)");
  throw new BuildError(
    "no C++ compiler found (g++ or clang++): install one (Debian, Ubuntu: apt install g++) or set CXX",
  );
}

const hash = (...parts) => {
  const h = createHash("sha256");
  for (const part of parts) h.update(part).update("\0");
  return h.digest("hex").slice(0, 24);
};

function run(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout.on("data", (data) => (output += data));
    child.stderr.on("data", (data) => (output += data));
    child.on("error", reject);
    child.on("close", (code) => {
      if (code === 0) resolve(output);
      else reject(new BuildError(`${command} failed on ${args.at(-1)}:\n${output}`));
    });
  });
}

/** Files change names last, so that a build that was cut short leaves nothing that looks whole. */
async function compileTo(compiler, args, target) {
  const partial = `${target}.${process.pid}`;
  const output = await run(compiler.command, ["-o", partial, ...args]);
  renameSync(partial, target);
  return output;
}

async function inParallel(jobs, limit) {
  let next = 0;
  const worker = async () => {
    while (next < jobs.length) await jobs[next++]();
  };
  await Promise.all(Array.from({ length: limit }, worker));
}

function sources() {
  const names = readdirSync(sourceDir).sort();
  const read = (name) => readFileSync(join(sourceDir, name), "utf8");
  return {
    units: names.filter((n) => n.endsWith(".cpp") && n !== "probe.cpp" && !/^(bench|check)_/.test(n)),
    headers: names.filter((n) => n.endsWith(".h")).map((n) => n + "\n" + read(n)),
    read,
  };
}

async function buildProbe(compiler) {
  const key = hash(readFileSync(join(sourceDir, "probe.cpp")), compiler.version);
  const target = join(outDir, `libmillrace-probe-${key}.${suffix}`);
  if (!existsSync(target))
    await compileTo(compiler, ["-O1", "-fPIC", "-shared", "-fvisibility=hidden", join(sourceDir, "probe.cpp")], target);
  return target;
}

async function buildVariant(compiler, variant, log) {
  const { units, headers, read } = sources();
  const flags = [...common, ...variant.flags];
  const key = (unit) => hash(unit, read(unit), ...headers, compiler.version, ...flags);
  const dir = join(outDir, hash(...units.map(key)));
  const target = join(dir, `libmillrace-${variant.isa}.${suffix}`);
  if (existsSync(target)) return target;
  const started = Date.now();
  const objects = join(outDir, "objects");
  mkdirSync(objects, { recursive: true });
  mkdirSync(dir, { recursive: true });
  const object = (unit) => join(objects, `${unit}-${variant.isa}-${key(unit)}.o`);
  const jobs = units
    .filter((unit) => !existsSync(object(unit)))
    .map((unit) => async () => {
      const output = await compileTo(compiler, [...flags, "-c", join(sourceDir, unit)], object(unit));
      if (output) log(output.trimEnd());
    });
  log(`native kernels (${variant.isa}): compiling ${jobs.length} of ${units.length} files with ${compiler.version}`);
  await inParallel(jobs, Math.max(1, Math.min(2, cpus().length)));
  await compileTo(compiler, ["-shared", "-pthread", ...units.map(object)], target);
  const current = new Set(units.map(object));
  for (const name of readdirSync(objects)) {
    const path = join(objects, name);
    if (name.includes(`-${variant.isa}-`) && name.endsWith(".o") && !current.has(path)) rmSync(path, { force: true });
  }
  log(`native kernels (${variant.isa}): built in ${((Date.now() - started) / 1000).toFixed(1)} s`);
  return target;
}

/** Libraries and objects that no manifest names any more, of the variant just built. */
function dropOld(manifest) {
  const kept = new Set(Object.values(manifest.libraries).map((path) => dirname(path)));
  for (const entry of readdirSync(outDir, { withFileTypes: true })) {
    if (entry.isDirectory() && entry.name !== "objects" && !kept.has(entry.name))
      rmSync(join(outDir, entry.name), { recursive: true, force: true });
  }
}

/**
 * Builds and returns the manifest: { probe, libraries: { isa: path } }, paths from build/native.
 * isa "auto": the best that this processor runs; "all": every variant.
 */
export async function buildNative({ isa = "auto", log = console.error } = {}) {
  const machine = `${process.platform} ${process.arch}`;
  if (!machines.includes(machine)) {
    throw new BuildError(`the CPU kernels are for ${machines.join(", ")}; on ${machine} the reference device is used`);
  }
  const known = variants.map((v) => v.isa);
  if (isa !== "auto" && isa !== "all" && !known.includes(isa))
    throw new BuildError(`unknown instruction set ${isa}: one of auto, all, ${known.join(", ")}`);
  mkdirSync(outDir, { recursive: true });
  const compiler = findCompiler(process.arch);
  const probe = await buildProbe(compiler);
  const koffi = createRequire(import.meta.url)("koffi");
  const can = koffi.load(probe).func("int mr_probe()")();
  const wanted =
    isa === "auto"
      ? variants.filter((v) => can & v.bit).slice(-1)
      : variants.filter((v) => (isa === "all" ? v.arch === process.arch : v.isa === isa));
  if (wanted.length === 0)
    throw new BuildError("this processor has no AVX2 (with FMA, F16C and BMI2): the reference device is used");
  const manifestPath = join(outDir, "manifest.json");
  const before = existsSync(manifestPath) ? JSON.parse(readFileSync(manifestPath, "utf8")) : { libraries: {} };
  const relative = (path) => path.slice(outDir.length + 1);
  const manifest = { probe: relative(probe), libraries: before.libraries };
  for (const variant of wanted) {
    const its = variant.arch === process.arch ? compiler : findCompiler(variant.arch);
    manifest.libraries[variant.isa] = relative(await buildVariant(its, variant, log));
  }
  for (const [name, path] of Object.entries(manifest.libraries))
    if (!existsSync(join(outDir, path))) delete manifest.libraries[name];
  writeFileSync(`${manifestPath}.${process.pid}`, JSON.stringify(manifest, null, 2) + "\n");
  renameSync(`${manifestPath}.${process.pid}`, manifestPath);
  dropOld(manifest);
  return manifest;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const args = process.argv.slice(2);
  const at = args.indexOf("--isa");
  try {
    await buildNative({ isa: args.includes("--all") ? "all" : at >= 0 ? args[at + 1] : "auto" });
  } catch (error) {
    console.error(error instanceof BuildError ? error.message : error);
    process.exitCode = 1;
  }
}
