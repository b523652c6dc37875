// Owns: sampling parameters that change nothing, and fresh seeds. What a surface uses where its caller says nothing is the
// surface's own affair (OpenAI's routes: temperature 1; library and command: see index.ts).
import type { SamplingParams } from "../engine/types.js";

/** Draws from the model's own distribution. */
export const plainSampling: Omit<SamplingParams, "seed"> = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: [],
};

export function randomSeed(): bigint {
  return crypto.getRandomValues(new BigUint64Array(1))[0];
}

/** Any integer, as the 64 bits that the engine keys its random numbers with. */
export function seedBits(seed: number | bigint): bigint {
  return BigInt.asUintN(64, BigInt(seed));
}
