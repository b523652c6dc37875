// Owns: everything that a fresh clone needs before the command can run: packages, compiled TypeScript, native kernels.
// Each step compares a fingerprint first, so that where all is built nothing but a few milliseconds is spent.
// Plain JavaScript and node's own modules only: it runs before anything is installed. Says what it does on standard error.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const minimum = [20, 19];

export function say(text) {
  process.stderr.write(`${text}\n`);
}

export function requireNode() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major > minimum[0] || (major === minimum[0] && minor >= minimum[1])) return;
  say(
    `millrace needs Node ${minimum.join(".")} or newer; this is ${process.versions.node}. Get one from https://nodejs.org.`,
  );
  process.exit(1);
}

/** All files under the folders, sorted, without those that editors leave. */
export function filesUnder(...folders) {
  const found = [];
  for (const folder of folders) {
    if (!existsSync(folder)) continue;
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) found.push(...filesUnder(path));
      else if (entry.isFile() && !entry.name.startsWith(".")) found.push(path);
    }
  }
  return found.sort();
}

function fingerprint(files, salt = "") {
  const hash = createHash("sha256").update(`${process.versions.modules} ${process.arch} ${salt}`);
  for (const file of files) {
    const bytes = readFileSync(file);
    hash.update(`\n${relative(root, file)} ${bytes.length}\n`).update(bytes);
  }
  return hash.digest("hex");
}

const readOr = (path, other) => (existsSync(path) ? readFileSync(path, "utf8") : other);

/** Whether node_modules holds what the lock names. Packages for other platforms may be missing. */
function modulesMatchLock() {
  const installed = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installed)) return false;
  const wanted = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const have = JSON.parse(readFileSync(installed, "utf8")).packages;
  return Object.entries(wanted).every(
    ([path, entry]) => path === "" || have[path]?.version === entry.version || (!have[path] && entry.optional === true),
  );
}

export function ensureModules() {
  if (modulesMatchLock()) return;
  if (lstatSync(join(root, "node_modules"), { throwIfNoEntry: false })?.isSymbolicLink()) {
    say(
      "node_modules is a link to a folder that is not this clone's, and does not match package-lock.json: going on with it.",
    );
    return;
  }
  say("Installing packages (once)…");
  const npm = process.env.npm_execpath;
  const args = ["ci", "--no-audit", "--no-fund", "--loglevel=error"];
  const done = npm?.endsWith("npm-cli.js")
    ? spawnSync(process.execPath, [npm, ...args], { cwd: root, stdio: ["ignore", 2, 2] })
    : spawnSync("npm", args, { cwd: root, stdio: ["ignore", 2, 2], shell: process.platform === "win32" });
  if (done.status === 0) return;
  say(
    "Installing the packages failed: the lines above say why. It needs npm and a package registry that npm can reach.",
  );
  process.exit(1);
}

/** The compiler's own entry: a shell wrapper would cost a process more. */
export function tool(name, bin) {
  return join(root, "node_modules", name, "bin", bin);
}

/** dist from src. False: it does not compile, and the compiler has said why. */
export function ensureDist() {
  const stampFile = join(root, "dist", ".stamp");
  const configs = ["tsconfig.json", "tsconfig.build.json", "package-lock.json"].map((name) => join(root, name));
  const stamp = fingerprint([...configs, ...filesUnder(join(root, "src"))]);
  if (readOr(stampFile, "") === stamp) return true;
  const first = !existsSync(stampFile);
  say("Compiling TypeScript…");
  // A half-deleted dist with a whole build record would never be filled again.
  if (first) rmSync(join(root, "build", "tsc.tsbuildinfo"), { force: true });
  const args = [tool("typescript", "tsc"), "-p", join(root, "tsconfig.build.json")];
  const done = spawnSync(process.execPath, args, { cwd: root, stdio: ["ignore", 2, 2] });
  if (done.status !== 0) return false;
  mkdirSync(dirname(stampFile), { recursive: true });
  writeFileSync(stampFile, stamp);
  return true;
}

/**
 * Kernels for this processor. "built", or "none" where they could not be: there is no C++ compiler, or it failed; the
 * builder has said which. The reference device works without them.
 */
export function ensureNative({ all = false } = {}) {
  const builder = join(root, "scripts", "build-native.mjs");
  if (!existsSync(builder)) return "none";
  const stampFile = join(root, "build", all ? ".native-all.stamp" : ".native.stamp");
  const stamp = fingerprint(
    [builder, ...filesUnder(join(root, "kernels", "cpu"))],
    `${process.env.CXX ?? ""} ${cpus()[0]?.model}`,
  );
  const [oldStamp, ...products] = readOr(stampFile, "").split("\n");
  if (oldStamp === stamp && products.length > 0 && products.every((path) => existsSync(join(root, path))))
    return "built";
  const done = spawnSync(process.execPath, [builder, ...(all ? ["--all"] : [])], {
    cwd: root,
    stdio: ["ignore", 2, 2],
  });
  if (done.status !== 0) return "none";
  const made = filesUnder(join(root, "build")).filter((path) => /\.(so|dylib|dll)$/.test(path));
  writeFileSync(stampFile, [stamp, ...made.map((path) => relative(root, path))].join("\n"));
  return "built";
}

/**
 * Kernels for NVIDIA GPUs, where nvcc is: "built", "none" where there is no nvcc, or "failed"; the builder has said why.
 * fast: for Hopper alone.
 */
export function ensureCuda({ fast = false } = {}) {
  const builder = join(root, "scripts", "build-cuda.mjs");
  const nvcc = [process.env.NVCC, "nvcc", "/usr/local/cuda/bin/nvcc"].filter(Boolean);
  if (!nvcc.some((command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0)) return "none";
  const args = [builder, ...(fast ? ["--fast"] : [])];
  const done = spawnSync(process.execPath, args, { cwd: root, stdio: ["ignore", 2, 2] });
  return done.status === 0 ? "built" : "failed";
}
