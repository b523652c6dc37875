// Owns: several ranks of one model as one device. The plan is split, every rank compiled, and one Program presented.
// Today the ranks are the reference device's, interpreted in lockstep in this process.

import { split } from "../plan/passes/split.js";
import type { Plan } from "../plan/plan.js";
import type { CompileOptions, Device, DeviceInfo, Limits, MemoryReport, Program, WeightSource } from "./device.js";
import { compileRanks, ReferenceDevice, report } from "./reference/device.js";

export class DeviceGroup implements Device {
  readonly info: DeviceInfo;

  constructor(private readonly ranks: number) {
    const { info } = new ReferenceDevice();
    // split() takes plain plans: fused forms would have to come after it
    const fused = ["addNorm", "qkvRopeCache", "gatedLinear"];
    this.info = {
      ...info,
      name: `reference x${ranks}`,
      pageFormat: `reference x${ranks}`,
      description: `${ranks} ranks in lockstep: ${info.description}`,
      ops: new Set([...info.ops].filter((op) => !fused.includes(op))),
    };
  }

  estimate(plan: Plan, limits: Limits): MemoryReport {
    return report(split(plan, { ranks: this.ranks }), limits, false);
  }

  compile(plan: Plan, weights: WeightSource, limits: Limits, options: CompileOptions = {}): Promise<Program> {
    return compileRanks(split(plan, { ranks: this.ranks }), weights, limits, options);
  }

  async close(): Promise<void> {}
}
