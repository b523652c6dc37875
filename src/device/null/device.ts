// Owns: the null device: any Plan, no weights, no arithmetic. For testing what runs above a device.

import { allOps } from "../../plan/op.js";
import type { Plan } from "../../plan/plan.js";
import { dividePages, groupShapes, longestContext } from "../budget.js";
import type { CompileOptions, Device, DeviceInfo, Limits, MemoryReport, Program, WeightSource } from "../device.js";
import { NullProgram } from "./program.js";

const pageTokens = 4;
const elementBytes = 4;

export class NullDevice implements Device {
  readonly info: DeviceInfo;

  constructor(memoryBytes = 2 ** 30) {
    this.info = {
      name: "null",
      description: "checks batches, computes nothing",
      memoryBytes,
      pageTokens,
      rowInvariant: true,
      pageFormat: "null",
      ops: new Set(allOps().keys()),
    };
  }

  estimate(plan: Plan, limits: Limits): MemoryReport {
    const groups = groupShapes(plan, pageTokens, (width) => elementBytes * width);
    const pagesPerGroup = dividePages(groups, limits.memoryBytes, limits);
    const cache = groups.reduce((sum, { pageBytes }, g) => sum + pageBytes * pagesPerGroup[g], 0);
    const maxContext = longestContext(groups, pagesPerGroup, limits);
    return { weights: 0, workspace: 0, cache, pagesPerGroup, maxContext };
  }

  async compile(plan: Plan, _weights: WeightSource, limits: Limits, options: CompileOptions = {}): Promise<Program> {
    options.onProgress?.(1, 1);
    const { pagesPerGroup } = this.estimate(plan, limits);
    const shapes = groupShapes(plan, pageTokens, (width) => elementBytes * width);
    const groups = shapes.map((shape, g) => ({ ...shape, numPages: pagesPerGroup[g] }));
    return new NullProgram({ groups, vocabSize: plan.vocabSize, limits });
  }

  async close(): Promise<void> {}
}
