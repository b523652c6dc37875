// Owns: the size report: lines a folder, and the longest files and functions, so that growth is seen while it is small.
// Finds functions by the indentation that the formatters keep; it reports and never fails.
import { readFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { filesUnder, root } from "./setup.mjs";

const fileLimit = 400;
const functionLimit = 80;
const folders = ["src", "kernels", "test", "scripts", "bench", "web"];

const opensFunction = (line, native) =>
  native
    ? /^[A-Za-z_].*\)\s*(const|noexcept|override|\s)*\{$/.test(line) &&
      !/^(struct|class|namespace|enum|extern)\b/.test(line)
    : /(\bfunction\b.*|^\s+(?:[a-z]+ )*[\w#]+\(.*\).*|=>\s*)\{$/.test(line) &&
      !/^\s*(?:\}\s*)?(?:if|for|while|switch|else|do|try|catch|return)\b/.test(line) &&
      !/^\s*(?:describe|test|it)\b/.test(line);

/** A function that opens on line i ends on the first later line with the same indentation that begins with a brace. */
function functionsOf(path, lines) {
  const native = !/\.m?[jt]s$/.test(path);
  const found = [];
  lines.forEach((line, start) => {
    if (!opensFunction(line, native)) return;
    const indent = /^\s*/.exec(line)[0];
    const length = lines.slice(start + 1).findIndex((later) => later.startsWith(`${indent}}`)) + 2;
    if (length > 1) found.push({ where: `${path}:${start + 1}`, length, text: line.trim().slice(0, 60) });
  });
  return found;
}

const files = folders
  .flatMap((folder) => filesUnder(join(root, folder)))
  .filter((path) => /\.(m?[jt]s|cpp|h|cu|cuh|wgsl)$/.test(path))
  .map((path) => ({
    path: relative(root, path).split(sep).join("/"),
    lines: readFileSync(path, "utf8").trimEnd().split("\n"),
  }));

const perFolder = new Map();
for (const { path, lines } of files) {
  const folder = path
    .split("/")
    .slice(0, path.startsWith("src/") || path.startsWith("kernels/") ? 2 : 1)
    .join("/");
  perFolder.set(folder, (perFolder.get(folder) ?? 0) + lines.length);
}
console.log("lines a folder:");
for (const [folder, lines] of [...perFolder].sort()) console.log(`  ${String(lines).padStart(6)}  ${folder}`);
console.log(`  ${String(files.reduce((sum, file) => sum + file.lines.length, 0)).padStart(6)}  in all`);

const product = files.filter(({ path }) => /^(src|kernels|scripts|bench)\//.test(path));
const long = product.filter(({ lines }) => lines.length > fileLimit).sort((a, b) => b.lines.length - a.lines.length);
console.log(`files over ${fileLimit} lines: ${long.length}`);
for (const { path, lines } of long) console.log(`  ${String(lines.length).padStart(6)}  ${path}`);

const functions = product
  .flatMap(({ path, lines }) => functionsOf(path, lines))
  .filter(({ length }) => length > functionLimit)
  .sort((a, b) => b.length - a.length);
console.log(`functions over ${functionLimit} lines: ${functions.length}`);
for (const { where, length, text } of functions) console.log(`  ${String(length).padStart(6)}  ${where}  ${text}`);
