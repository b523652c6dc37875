// Owns: `npm start -- ARGS`: set-up where it is missing, then the millrace command in this same process, so that signals,
// the terminal and the exit code are the command's own. With no ARGS: the default model answers a first prompt.
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensureCuda, ensureDist, ensureModules, ensureNative, requireNode, root, say } from "./setup.mjs";

requireNode();
ensureModules();
if (!ensureDist()) {
  say("The TypeScript sources do not compile: the lines above say where.");
  process.exit(1);
}
if (ensureNative() === "none") {
  say(
    "No native kernels (a C++ compiler such as g++ or clang++ makes them): using the reference device, which is slow.",
  );
}

// Kernels for a GPU take a while to compile: only where one is asked for.
if (process.argv.some((arg) => /^(--device=)?cuda(:\d+)?$/.test(arg))) ensureCuda();

/** A small model answers this well enough, drawn a little below its own temperature. */
const first = ["--temperature", "0.2", "--top-p", "0.9", "--repetition-penalty", "1.1", "--max-tokens", "200"];
const greeting = ["run", "smollm2", ...first, "What can you help me with? Answer in two sentences."];

const args = process.argv.slice(2);
const main = join(root, "dist", "cli", "main.js");
process.argv = [process.argv[0], main, ...(args.length > 0 ? args : greeting)];
await import(pathToFileURL(main).href);
