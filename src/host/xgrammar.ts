// Owns: loading xgrammar's WebAssembly build in Node. The package is one UMD file that says it is an ES module, so neither
// import nor require can read it: its text is compiled as a CommonJS function here. Each call makes an instance with memory
// of its own: after a fatal error (it aborts, it does not throw) an instance is to be dropped.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { compileFunction } from "node:vm";
import type * as Xgrammar from "@mlc-ai/web-xgrammar";
import { check } from "../base/errors.js";

export type { CompiledGrammar, GrammarCompiler, GrammarMatcher } from "@mlc-ai/web-xgrammar";
export type XgrammarModule = typeof Xgrammar;

const require = createRequire(import.meta.url);
/** The one dynamic import in it, which a compiled function cannot do. */
const dynamicImport = "await import('module')";

let source: { text: string; path: string } | undefined;

/** say hears each line that it would print on standard error: the reasons of fatal errors. */
export function loadXgrammar(say: (line: string) => void): XgrammarModule {
  if (source === undefined) {
    const path = require.resolve("@mlc-ai/web-xgrammar");
    const text = readFileSync(path, "utf8");
    check(text.includes(dynamicImport), "this version of xgrammar loads itself in another way than the one known");
    source = { path, text: text.replace(dynamicImport, "require('module')") };
  }
  const { path, text } = source;
  const names = ["exports", "module", "require", "__filename", "__dirname", "console"];
  const load = compileFunction(text, names, { filename: path });
  const module = { exports: {} };
  const lines = (...parts: unknown[]) => say(parts.join(" "));
  load(module.exports, module, require, path, path.replace(/[^/\\]*$/, ""), {
    ...console,
    error: lines,
    log: lines,
    warn: lines,
  });
  return module.exports as XgrammarModule;
}
