// ARM's kernels, under an emulator where this machine is another: the matrix kernels by bench_linear.cpp, everything else
// through the C ABI by check_program.cpp, which the host's own variant has to pass too. What needs a tool that is not here
// is skipped by name (Debian: g++-aarch64-linux-gnu, qemu-user).
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { storageTypes } from "../../src/base/dtype.js";
import { whyNoNative } from "../../src/device/cpu/native.js";

const root = join(import.meta.dirname, "../..");
const runs = (command: string) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;
const native = process.arch === "arm64";
const compiler = native ? (process.env.CXX ?? "g++") : "aarch64-linux-gnu-g++";
const missing =
  process.platform !== "linux"
    ? "not Linux"
    : !runs(compiler)
      ? `no ${compiler}`
      : !native && !runs("qemu-aarch64")
        ? "no qemu-aarch64"
        : "";
const skipped = missing && ` (SKIPPED: ${missing})`;

function runArm(program: string, args: string[]): string {
  const [command, before] = native
    ? [program, []]
    : ["qemu-aarch64", ["-cpu", "max", "-L", "/usr/aarch64-linux-gnu", program]];
  return execFileSync(command, [...before, ...args], { encoding: "utf8" });
}

/** Links check_program.cpp and check_moe.cpp with the built library of an instruction set. */
function checkProgram(isa: string, command: string): string {
  const manifest = JSON.parse(readFileSync(join(root, "build/native/manifest.json"), "utf8"));
  const library = join(root, "build/native", manifest.libraries[isa]);
  const program = join(root, "build/native", `check-program-${isa}`);
  const sources = ["check_program", "check_moe"].map((name) => join(root, `kernels/cpu/${name}.cpp`));
  const flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", `-Wl,-rpath,${dirname(library)}`];
  execFileSync(command, [...flags, "-o", program, ...sources, library, "-pthread"]);
  return program;
}

describe("NEON", () => {
  for (const isa of ["neon", "neon-dotprod", "neon-i8mm"]) {
    test.skipIf(missing !== "")(`${isa}: products of every storage type${skipped}`, { timeout: 900_000 }, () => {
      const program = execFileSync(join(root, "scripts/bench-linear.sh"), [isa], { encoding: "utf8" }).trim();
      const said = runArm(join(root, program), ["check", "all", "quick"]).trim().split("\n");
      expect(said.map((line) => line.split(/\s+/))).toEqual(storageTypes.map((type) => [type, "ok"]));
    });
  }

  test.skipIf(missing !== "")(
    `neon-i8mm: norms, rope, attention, experts, logits and draws through the C ABI${skipped}`,
    { timeout: 900_000 },
    () => {
      execFileSync(process.execPath, [join(root, "scripts/build-native.mjs"), "--isa", "neon-i8mm"], {
        stdio: "ignore",
      });
      expect(runArm(checkProgram("neon-i8mm", compiler), [])).toBe("NEON with i8mm\nok\n");
    },
  );
});

const hostMissing = whyNoNative() ?? (process.arch !== "x64" ? "not x86-64" : runs("g++") ? "" : "no g++");
test.skipIf(hostMissing !== "")(
  `avx2: the same program through the C ABI${hostMissing && ` (SKIPPED: ${hostMissing})`}`,
  { timeout: 300_000 },
  () => {
    execFileSync(process.execPath, [join(root, "scripts/build-native.mjs"), "--isa", "avx2"], { stdio: "ignore" });
    expect(execFileSync(checkProgram("avx2", process.env.CXX ?? "g++"), [], { encoding: "utf8" })).toBe("AVX2\nok\n");
  },
);
