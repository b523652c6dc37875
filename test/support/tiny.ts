// Owns: a tiny checkpoint compiled on a device, and greedy generation on it by hand.

import type { Device, Limits, Program } from "../../src/device/device.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import type { Plan } from "../../src/plan/plan.js";
import { batchOf, limits, PageKeeper, type SlotSettings, updates } from "./batch.js";
import { openTiny } from "./golden.js";

export interface Tiny {
  readonly checkpoint: Checkpoint;
  readonly plan: Plan;
  readonly program: Program;
}

/** pass: rewrites the plain plan, before fusion. */
export async function compileTiny(
  device: Device,
  name: string,
  own: Partial<Limits> = {},
  pass: (plan: Plan) => Plan = (plan) => plan,
): Promise<Tiny> {
  const checkpoint = await openTiny(name);
  const plan = fuse(pass(decoderPlan(modelConfig(checkpoint), checkpoint.tensors)), device.info.ops);
  const program = await device.compile(plan, checkpoint, { ...limits, ...own }, { dump: true });
  return { checkpoint, plan, program };
}

/** The tokens that follow the prompt, and the logits of the first step. One sequence, fresh pages. */
export async function generate(
  program: Program,
  prompt: readonly number[],
  count: number,
  settings: SlotSettings = {},
  slot = 0,
): Promise<{ tokens: number[]; logits: Float32Array }> {
  const pages = new PageKeeper(program).take(prompt.length + count);
  const first = batchOf([{ slot, tokens: prompt, kvStart: 0, pages }], { updates: updates([[slot, settings]]) });
  const tokens = [(await program.run(first).result).tokens[0]];
  const logits = Float32Array.from((await program.dump("logits")).data);
  while (tokens.length < count) {
    const kvStart = prompt.length + tokens.length - 1;
    const step = program.run(batchOf([{ slot, tokens: [-1 - slot], kvStart, pages }]));
    tokens.push((await step.result).tokens[0]);
  }
  return { tokens, logits };
}
