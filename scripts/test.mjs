// Owns: `npm test [-- vitest's arguments]`: set-up, test models, the checks, the whole suite, and the one closing line
// `N passed, N failed` that counts what really ran (a check counts as one test). With arguments: those tests alone.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ensureDist, ensureModules, ensureNative, requireNode, root, say } from "./setup.mjs";

requireNode();
ensureModules();
const args = process.argv.slice(2);
const counts = { passed: 0, failed: 0, skipped: 0 };

if (!ensureDist()) {
  counts.failed++;
  say("FAIL the TypeScript sources do not compile");
}
const compiler = ["c++", "g++", "clang++"].some(
  (name) => spawnSync(name, ["--version"], { stdio: "ignore" }).status === 0,
);
if (existsSync(join(root, "scripts", "build-native.mjs")) && ensureNative() === "none") {
  say("!!! No native kernels: every test of the CPU device is SKIPPED");
  if (compiler) counts.failed++;
}
if (counts.failed === 0) {
  const { provideTestModels } = await import("./test-models.mjs");
  await provideTestModels();
  const { provideTestRegistry } = await import("./test-registry.mjs");
  await provideTestRegistry();
}
if (args.length === 0) {
  const { runChecks } = await import("./check.mjs");
  const checks = runChecks();
  counts.passed += checks.passed;
  counts.failed += checks.failed;
}

const report = join(root, "build", `vitest-${process.pid}.json`);
mkdirSync(join(root, "build"), { recursive: true });
const vitest = spawnSync(
  process.execPath,
  [
    join(root, "node_modules", "vitest", "vitest.mjs"),
    "run",
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${report}`,
    ...args,
  ],
  { cwd: root, stdio: ["ignore", "inherit", "inherit"], env: { ...process.env, NO_COLOR: "1" } },
);
if (existsSync(report)) {
  const result = JSON.parse(readFileSync(report, "utf8"));
  rmSync(report);
  counts.passed += result.numPassedTests;
  counts.failed += result.numFailedTests;
  counts.skipped += result.numPendingTests + result.numTodoTests;
  // A file that fails to load has no test that failed.
  counts.failed += result.testResults.filter(
    (file) => file.status === "failed" && !file.assertionResults.some((test) => test.status === "failed"),
  ).length;
}
if (vitest.status !== 0 && counts.failed === 0) counts.failed = 1;

console.log("");
console.log(
  `${counts.passed} passed, ${counts.failed} failed${counts.skipped > 0 ? `, ${counts.skipped} skipped` : ""}`,
);
process.exitCode = counts.failed > 0 ? 1 : 0;
