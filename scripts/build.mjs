// Owns: `npm run build`: packages, dist and the kernels of this processor. `-- --all`: the kernels of every variant, and those of
// GPUs where nvcc is.
import { ensureCuda, ensureDist, ensureModules, ensureNative, requireNode, say } from "./setup.mjs";

requireNode();
ensureModules();
if (!ensureDist()) process.exit(1);
const all = process.argv.includes("--all");
if (ensureNative({ all }) === "none") {
  say("No native kernels: --device reference works without them.");
  if (all) process.exit(1);
}
if (all && ensureCuda() === "failed") process.exit(1);
