// Owns: loading a model that gives embeddings: an encoder's plan on a device, with room for one step's texts and nothing
// more, since nothing is remembered between steps.
import { UserError } from "../base/errors.js";
import type { Device, Limits } from "../device/device.js";
import { openDevice } from "../device/open.js";
import type { LoadedModel } from "../engine/host.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { encoderPlan } from "../model/encoder.js";
import type { EncoderConfig } from "../model/encoder-config.js";
import { fuse } from "../plan/passes/fuse.js";
import type { Plan } from "../plan/plan.js";
import { type LoadSpec, physicalCores } from "./load.js";

/** Tokens of one step: a text is read whole. */
const stepTokens = 512;
/** Texts of one step. */
const stepTexts = 64;
/** A model may claim to read more than is of use: memory grows with it. */
const mostContext = 8192;

/** What the model computes, from which weights, and with how much of the machine. */
export function planEncoder(
  config: EncoderConfig,
  checkpoint: Checkpoint,
  device: Device,
  spec: Pick<LoadSpec, "contextLength" | "memoryBytes" | "threads" | "deterministic">,
): { readonly plan: Plan; readonly source: Checkpoint; readonly limits: Limits } {
  const { contextLength: asked } = spec;
  const { plan: plain, source } = encoderPlan(config, checkpoint);
  const { memoryBytes, ownMemory, pageTokens, ops } = device.info;
  const plan = fuse(plain, ops);
  const contextLength = Math.min(config.contextLength, mostContext, asked ?? mostContext);
  const maxTokens = Math.max(stepTokens, contextLength);
  const limits: Limits = {
    maxTokens,
    maxRows: 1,
    maxSequences: stepTexts,
    slots: stepTexts,
    contextLength,
    memoryBytes: ownMemory ? memoryBytes : Math.min(memoryBytes, Math.max(0, spec.memoryBytes ?? memoryBytes)),
    // The states go straight back into sums: what halves would lose is seen in the vectors.
    kvDtype: "f32",
    threads: spec.threads ?? physicalCores(),
    depth: 1,
    deterministic: spec.deterministic ?? false,
    adapterSlots: 0,
    maxPages: Math.ceil(maxTokens / pageTokens) + stepTexts,
  };
  return { plan, source, limits };
}

/** Closes the checkpoint with the model. Throws UserError where it cannot fit, or a context is asked for that it lacks. */
export async function loadEncoder(
  config: EncoderConfig,
  checkpoint: Checkpoint,
  spec: LoadSpec,
  onProgress: (done: number, total: number) => void,
): Promise<LoadedModel> {
  const device = await openDevice(spec.device);
  const { ownMemory, description } = device.info;
  const { plan, source, limits } = planEncoder(config, checkpoint, device, spec);
  const { contextLength } = limits;
  const program = await device.compile(plan, source, limits, { onProgress });
  if (program.encode === undefined || program.caches[0].numPages < limits.maxPages) {
    await program.close();
    const why =
      program.encode === undefined
        ? `${device.info.name} gives no embeddings`
        : "there is too little memory for one step";
    throw new UserError(`the model cannot be loaded: ${why}`, { code: "out_of_memory" });
  }
  const { weights, workspace, cache } = program.memory;
  return {
    program,
    limits,
    pooling: config.pooling,
    modelLimits: {
      contextLength,
      trainedContextLength: config.contextLength,
      vocabSize: config.vocabSize,
      maxSequences: stepTexts,
      embeddingSize: config.hiddenSize,
      device: description,
      ownMemory: ownMemory ?? false,
      memory: { weights, workspace, cache },
    },
    close: async () => {
      await program.close();
      await device.close();
      checkpoint.close();
    },
  };
}
