// Owns: what every run of vitest needs first, also one by hand: an up-to-date dist, since tests start the real command and
// real worker threads from it. Kernels are not built here: `npm run build` does.
import { ensureDist, say } from "./setup.mjs";

export default function setup() {
  if (!ensureDist()) say("!!! dist is not up to date: the sources do not compile");
}
