// Owns: which checkpoint a load means: a file's, or one of random weights.
import type { Checkpoint } from "../formats/checkpoint.js";
import type { RandomModel } from "../model/random.js";

export interface CheckpointSpec {
  /** A .gguf file or a Hugging Face folder; what the model is called where it is random. */
  readonly path: string;
  /** Random weights instead of a file's. */
  readonly random?: RandomModel;
}

export async function openSpec({ path, random }: CheckpointSpec): Promise<Checkpoint> {
  if (random) return (await import("../model/random.js")).randomCheckpoint(random);
  return (await import("../formats/open.js")).openCheckpoint(path);
}
