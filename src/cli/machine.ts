// Owns: what a measurement says of the machine that it was made on.
import { arch, availableParallelism, cpus, platform, totalmem } from "node:os";
import { version } from "../host/version.js";

export function machine() {
  return {
    processor: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    platform: `${platform()} ${arch()}`,
    node: process.versions.node,
    millrace: version(),
  };
}
