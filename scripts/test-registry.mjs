// Owns: the real registry that tests push to and pull from: Debian's docker-registry, the machine's own or, fetched once
// without any rights, its package unpacked in the store's folder. Where it cannot be had its tests skip, loudly.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { root, say } from "./setup.mjs";

const runs = (command, args, options = {}) => spawnSync(command, args, { stdio: "ignore", ...options }).status === 0;

/** Sets MILLRACE_TEST_REGISTRY to the program's path. */
export async function provideTestRegistry() {
  if (process.env.MILLRACE_TEST_REGISTRY || runs("docker-registry", ["--version"])) return;
  const { dataFolder } = await import(pathToFileURL(join(root, "dist", "store", "folder.js")).href);
  const folder = join(dataFolder(), "test", "docker-registry");
  const program = join(folder, "usr", "bin", "docker-registry");
  if (!existsSync(program) && !fetchPackage(folder)) {
    say("!!! No docker-registry (Debian's package): the tests against a real registry are SKIPPED");
    return;
  }
  process.env.MILLRACE_TEST_REGISTRY = program;
}

function fetchPackage(folder) {
  mkdirSync(join(folder, ".."), { recursive: true });
  const work = mkdtempSync(`${folder}-`);
  try {
    say("Fetching docker-registry (for tests, once)…");
    if (!runs("apt-get", ["download", "docker-registry"], { cwd: work, timeout: 60_000 })) return false;
    const deb = readdirSync(work).find((name) => name.endsWith(".deb"));
    if (deb === undefined || !runs("dpkg", ["-x", deb, "content"], { cwd: work })) return false;
    rmSync(folder, { recursive: true, force: true });
    renameSync(join(work, "content"), folder);
    return existsSync(join(folder, "usr", "bin", "docker-registry"));
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
