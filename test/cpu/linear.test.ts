// The matrix kernels alone, by their own program (kernels/cpu/bench_linear.cpp): every storage type against plain scalar
// code, for each instruction set that this processor has; those for tile registers also with these in plain loops.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { storageTypes } from "../../src/base/dtype.js";

const root = join(import.meta.dirname, "../..");
const cpuinfo = existsSync("/proc/cpuinfo") ? readFileSync("/proc/cpuinfo", "utf8") : "";
const hasCompiler = (() => {
  try {
    execFileSync(process.env.CXX ?? "g++", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
})();

for (const [isa, flag, shapes] of [
  ["avx2", "avx2", "all"],
  ["avx512vnni", "avx512_vnni", "all"],
  ["amx", "amx_int8", "all"],
  ["tiles", "avx2", "quick"],
] as const) {
  const missing = !hasCompiler
    ? "no C++ compiler"
    : !cpuinfo.includes(` ${flag} `)
      ? `this processor has no ${flag}`
      : "";
  test.skipIf(missing !== "")(
    `${isa}: unpacking is exact, products are right, bits do not depend on the call's shape${missing && ` (SKIPPED: ${missing})`}`,
    { timeout: 300_000 },
    () => {
      const program = execFileSync(join(root, "scripts/bench-linear.sh"), [isa], { encoding: "utf8" }).trim();
      const said = execFileSync(join(root, program), ["check", "all", shapes], { encoding: "utf8" });
      expect(
        said
          .trim()
          .split("\n")
          .map((line) => line.split(/\s+/)),
      ).toEqual(storageTypes.map((type) => [type, "ok"]));
    },
  );
}
