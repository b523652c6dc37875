// A kill -9 at any moment of a pull, a create, a copy or an rm leaves a store in which every package is whole and every
// blob is what its name says.
import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { createPackage } from "../../src/store/create.js";
import { withStoreLock } from "../../src/store/keep.js";
import { listIds, readManifest } from "../../src/store/manifest.js";
import { isWhole } from "../../src/store/package.js";
import { pushPackage } from "../../src/store/push.js";
import { Store } from "../../src/store/store.js";
import { seededRandom } from "../support/random.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { sha256 } from "./hub-server.js";
import { startFakeRegistry } from "./registry-server.js";

const kills = 200;
/** At a time: while one dies the others start and work. */
const lanes = 4;
const worker = fileURLToPath(new URL("kill-worker.mjs", import.meta.url));

function checkStore(home: string): void {
  const ids = listIds(home);
  for (const id of ids) {
    const read = readManifest(home, id)!;
    expect(isWhole(home, read.manifest), `${id.model} lacks a blob`).toBe(true);
  }
  expect(new Store(home).list()).toHaveLength(ids.length);
}

function checkBlobs(home: string): void {
  for (const file of readdirSync(join(home, "blobs"))) {
    expect(`sha256-${sha256(readFileSync(join(home, "blobs", file)))}`).toBe(file);
  }
}

test(`${kills} kills at random moments, ${lanes} processes at a time, leave a valid store after each`, {
  timeout: 600_000,
}, async () => {
  const home = mkdtempSync(join(tmpdir(), "millrace-kill-"));
  const work = mkdtempSync(join(tmpdir(), "millrace-kill-work-"));
  const registry = await startFakeRegistry();
  try {
    writeTinyLlamaGguf(join(work, "tiny.gguf"), { seed: 1 });
    writeTinyLlamaGguf(join(work, "other.gguf"), { seed: 2 });
    const source = new Store(join(work, "source"));
    for (const [name, file] of [
      ["one", "tiny"],
      ["two", "other"],
    ]) {
      const full = `${registry.host}/me/${name}`;
      await createPackage(source, full, { from: [`./${file}.gguf`], folder: work, system: `${name} from afar` });
      await pushPackage(source, full);
    }
    const random = seededRandom(7);
    const runAndKill = async (seed: number) => {
      const child = spawn(process.execPath, [worker, home, work, registry.host, String(seed)], {
        stdio: ["pipe", "pipe", "inherit"],
      });
      const gone = new Promise((resolve) => child.on("close", resolve));
      await new Promise((resolve) => child.stdout.once("data", resolve));
      await sleep(random.next() * 150);
      child.kill("SIGKILL");
      await gone;
    };
    let begun = 0;
    const lane = async () => {
      while (begun < kills) {
        await runAndKill(begun++);
        // The others go on; under the lock nothing is named or removed.
        await withStoreLock(home, () => checkStore(home));
      }
    };
    await Promise.all(Array.from({ length: lanes }, lane));
    checkBlobs(home);
    // What the dead have left behind keeps nobody from working on.
    const store = new Store(home);
    for (const { name } of store.list()) await store.remove(name);
    const old = new Date(Date.now() - 8 * 86_400_000);
    for (const folder of ["blobs", "models", "partial"]) {
      for (const file of readdirSync(join(home, folder))) utimesSync(join(home, folder, file), old, old);
    }
    await createPackage(store, "last", { from: ["./tiny.gguf"], folder: work });
    await store.remove("last");
    for (const folder of ["blobs", "models", "partial"]) expect(readdirSync(join(home, folder))).toEqual([]);
  } finally {
    await registry.close();
    rmSync(home, { recursive: true, force: true });
    rmSync(work, { recursive: true, force: true });
  }
});
