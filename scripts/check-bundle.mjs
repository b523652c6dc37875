// Owns: the proof that everything above the devices runs in a browser: base, plan, model, text, engine, session and the
// parsers of formats are bundled for one, and any import of a node: module fails.
import { join } from "node:path";
import { build } from "esbuild";
import { needsNode, nodeFree, sourceFiles } from "./check-imports.mjs";
import { root } from "./setup.mjs";

const files = sourceFiles().filter((path) => nodeFree.includes(path.split("/")[0]) && !needsNode(path));
const contents = files.map((path, at) => `export * as m${at} from "./src/${path}";`).join("\n");
try {
  const result = await build({
    stdin: { contents, resolveDir: root, sourcefile: "all.ts", loader: "ts" },
    bundle: true,
    platform: "browser",
    format: "esm",
    target: "es2023",
    write: false,
    minify: true,
    logLevel: "error",
    absWorkingDir: root,
    tsconfig: join(root, "tsconfig.json"),
  });
  console.log(`browser bundle: ${files.length} files, ${Math.round(result.outputFiles[0].contents.length / 1024)} KiB`);
} catch {
  process.exitCode = 1;
}
