// The import-direction check finds what it is there to find.
import { expect, test } from "vitest";

const { problemsOf } = (await import(new URL("../../scripts/check-imports.mjs", import.meta.url).href)) as {
  problemsOf(path: string, source: string): string[];
};

test.each([
  ["base/a.ts", 'import { x } from "../formats/gguf.js";', "base may not import formats"],
  ["model/a.ts", 'import { x } from "../device/device.js";', "model may not import device"],
  ["engine/a.ts", 'const x = await import("../device/cpu/device.js");', "engine knows no backend"],
  ["device/cpu/a.ts", 'export { x } from "../reference/device.js";', "backends never import each other"],
  ["server/a.ts", 'import type { Plan } from "../plan/plan.js";', "server may not import plan"],
  ["store/a.ts", 'import { serve } from "../server/serve.js";', "store may not import server"],
  ["text/a.ts", 'import { readFileSync } from "node:fs";', "no node:fs"],
  ["formats/gguf.ts", 'import { readFileSync } from "node:fs";', "no node:fs"],
  ["device/cpu/code.ts", 'import koffi from "koffi";', "foreign-function"],
  ["cli/a.ts", "const home = process.env.HOME;", "only base/env.ts reads the environment"],
  ["newfolder/a.ts", 'import { x } from "../base/log.js";', "not in the table"],
])("%s with %s", (path, source, message) => {
  expect(problemsOf(path, source)).toHaveLength(1);
  expect(problemsOf(path, source)[0]).toContain(message);
});

test.each([
  ["formats/open.ts", 'import { statSync } from "node:fs";'],
  ["device/cpu/native.ts", 'import koffi from "koffi";'],
  ["device/cpu/a.ts", 'import type { Plan } from "../../plan/plan.js";'],
  ["base/env.ts", "const all = globalThis.process?.env;"],
  ["cli/a.ts", 'import { serve } from "../server/serve.js"; // not process.env'],
  ["text/a.ts", '/* import "node:fs" */ import { x } from "./b.js";'],
])("%s may: %s", (path, source) => {
  expect(problemsOf(path, source)).toEqual([]);
});
