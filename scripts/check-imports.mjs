// Owns: the direction of imports (docs/ARCHITECTURE.md): who may import whom, which folders stay free of node, which files
// may touch the foreign-function library and the environment. Exits 1 and names each line that breaks a rule.
import { readFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { filesUnder, root } from "./setup.mjs";

/** Folder → folders below it. A folder may always import itself. */
const below = {
  base: [],
  formats: ["base"],
  text: ["base", "formats"],
  plan: ["base"],
  model: ["base", "formats", "plan"],
  device: ["base", "formats", "plan"],
  engine: ["base", "formats", "plan", "model", "device"],
  session: ["base", "formats", "text", "engine"],
  host: ["base", "formats", "text", "plan", "model", "device", "engine", "session"],
  store: ["base", "formats", "text"],
  index: ["base", "formats", "text", "plan", "model", "device", "engine", "session", "host", "store"],
  server: ["base", "text", "engine", "session", "host", "store", "index"],
  cli: ["base", "formats", "text", "plan", "model", "device", "engine", "session", "host", "store", "index", "server"],
};

/** Bundled for browsers, so no node: module and no process. In formats the readers of files are the exception. */
export const nodeFree = ["base", "plan", "model", "text", "engine", "session", "formats"];
export const needsNode = (path) => /^formats\/(mmap|open|huggingface)\.ts$/.test(path);

const mayUseFfi = (path) => /(^|\/)native\.ts$/.test(path) || path === "formats/mmap.ts";

export function sourceFiles() {
  return filesUnder(join(root, "src"))
    .filter((path) => path.endsWith(".ts"))
    .map((path) => relative(join(root, "src"), path).split(sep).join("/"));
}

const folderOf = (path) => (path.includes("/") ? path.slice(0, path.indexOf("/")) : path.replace(/\.[jt]s$/, ""));

/** [line number, specifier] of every static, re-exporting and dynamic import. */
function importsOf(text) {
  const found = [];
  const pattern = /(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\(\s*)["']([^"']+)["']/g;
  for (const match of text.matchAll(pattern)) {
    found.push([text.slice(0, match.index).split("\n").length, match[1]]);
  }
  return found;
}

/** Comments out, line numbers kept: prose may name what code may not. */
function withoutComments(text) {
  const blank = (comment) => comment.replace(/[^\n]/g, " ");
  return text.replace(/\/\*[\s\S]*?\*\//g, blank).replace(/(^|[\s;{}(,])\/\/[^\n]*/g, blank);
}

function localProblem(path, target) {
  const from = folderOf(path);
  const to = folderOf(target);
  if (!(from in below)) return `src/${from} is not in the table of scripts/check-imports.mjs`;
  if (from !== to && !below[from].includes(to)) return `${from} may not import ${to}`;
  const backend = (p) => /^device\/([^/]+)\//.exec(p)?.[1];
  if (from === "device" && backend(path) && backend(target) && backend(path) !== backend(target)) {
    return `backends never import each other (${backend(path)} imports ${backend(target)})`;
  }
  if ((from === "engine" || from === "model" || from === "session") && backend(target))
    return `${from} knows no backend`;
  return null;
}

/** path: below src, with slashes. source: its text. */
export function problemsOf(path, source) {
  const text = withoutComments(source);
  const problems = [];
  const free = nodeFree.includes(folderOf(path)) && !needsNode(path);
  for (const [line, specifier] of importsOf(text)) {
    const report = (what) => problems.push(`src/${path}:${line}: ${what}`);
    if (specifier.startsWith(".")) {
      const what = localProblem(path, join(dirname(path), specifier).split(sep).join("/"));
      if (what) report(what);
    } else if (specifier.startsWith("node:")) {
      if (free) report(`${folderOf(path)} is bundled for browsers: no ${specifier}`);
    } else if (specifier === "koffi" && !mayUseFfi(path)) {
      report("only files named native.ts and formats/mmap.ts touch the foreign-function library");
    }
  }
  text.split("\n").forEach((line, at) => {
    if (/\bprocess\s*(\?\.|\.)\s*env\b/.test(line) && path !== "base/env.ts") {
      problems.push(`src/${path}:${at + 1}: only base/env.ts reads the environment`);
    }
  });
  return problems;
}

/** Variables that the table declares and nothing reads. */
function unusedVariables(sources) {
  const declared = [...sources.get("base/env.ts").matchAll(/^ {2}([A-Z][A-Z_]+): \{/gm)].map((match) => match[1]);
  const all = [...sources.values()].join("\n");
  const unused = declared.filter((name) => ![`env("${name}")`, `isOn("${name}")`].some((read) => all.includes(read)));
  return unused.map((name) => `src/base/env.ts: nothing reads ${name}`);
}

if (process.argv[1]?.endsWith("check-imports.mjs")) {
  const sources = new Map(sourceFiles().map((path) => [path, readFileSync(join(root, "src", path), "utf8")]));
  const problems = [...sources].flatMap(([path, source]) => problemsOf(path, source)).concat(unusedVariables(sources));
  for (const problem of problems) console.log(problem);
  console.log(`imports: ${sources.size} files, ${problems.length} problems`);
  process.exitCode = problems.length > 0 ? 1 : 0;
}
