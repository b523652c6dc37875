// Owns: the device tests as one file, for a machine that has a GPU and node but no vitest:
//
//   node scripts/gpu-tests.mjs                       here: writes build/gpu/tests.mjs
//   node build/gpu/tests.mjs [part of a name] [i/n]  there, at the repository's root (with node_modules/koffi and build/cuda)
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const folders = ["conformance", "contracts", "cuda"];
const files = [
  ...folders.flatMap((folder) =>
    readdirSync(join(root, "test", folder))
      .filter((name) => name.endsWith(".test.ts"))
      .map((name) => join(root, "test", folder, name)),
  ),
  join(root, "test", "model", "golden.test.ts"),
];
const real = join(root, "test", "model", "real.test.ts");

const entry = [
  'import { run } from "vitest";',
  ...files.map((file) => `await import(${JSON.stringify(file)});`),
  `if (process.env.MILLRACE_TEST_SMOLLM2) await import(${JSON.stringify(real)});`,
  'process.exit((await run(process.argv[2] ?? "", process.argv[3] ?? "")) > 0 ? 1 : 0);',
].join("\n");

mkdirSync(join(root, "build", "gpu"), { recursive: true });
await build({
  stdin: { contents: entry, resolveDir: root, sourcefile: "tests.ts", loader: "ts" },
  outfile: join(root, "build", "gpu", "tests.mjs"),
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20",
  external: ["koffi"],
  alias: { vitest: join(root, "test", "support", "runner.ts") },
  plugins: [
    {
      // Files find others beside them: they are still where they were, from the folder that node is started in.
      name: "places",
      setup(bundler) {
        bundler.onLoad({ filter: /\/(src|test)\/.*\.ts$/ }, ({ path }) => {
          const place = `(new URL(${JSON.stringify(relative(root, path))}, "file://" + process.cwd() + "/").href)`;
          return { contents: readFileSync(path, "utf8").replaceAll("import.meta.url", place), loader: "ts" };
        });
      },
    },
  ],
});
