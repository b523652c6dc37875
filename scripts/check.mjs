// Owns: the checks that are not tests: import direction, browser bundle, formatting and lint, types of sources and tests,
// and the size report. `npm run check` runs them; scripts/test.mjs counts each as one test.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { ensureModules, requireNode, root, tool } from "./setup.mjs";

const script = (name) => [join(root, "scripts", name)];

const checks = [
  ["import direction", script("check-imports.mjs")],
  ["browser bundle", script("check-bundle.mjs")],
  ["lint and format", [tool("@biomejs/biome", "biome"), "check", "--error-on-warnings", "."]],
  ["types", [tool("typescript", "tsc"), "-p", join(root, "tsconfig.json")]],
  ["size report", script("size.mjs")],
];

/** {passed, failed}; a failed check's output is printed whole, a passed one's only where it is a report. */
export function runChecks() {
  let passed = 0;
  let failed = 0;
  for (const [name, args] of checks) {
    const start = performance.now();
    const done = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
    const ok = done.status === 0;
    if (ok) passed++;
    else failed++;
    console.log(`${ok ? "ok  " : "FAIL"} ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    if (!ok || name === "size report") console.log(`${done.stdout}${done.stderr}`.trimEnd());
  }
  return { passed, failed };
}

if (process.argv[1]?.endsWith("check.mjs")) {
  requireNode();
  ensureModules();
  process.exitCode = runChecks().failed > 0 ? 1 : 0;
}
