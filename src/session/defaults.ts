// Owns: what a model file says of generating beside its tokenizer. How it wants to be sampled where the caller does not
// say: its own settings, where the file has them (generation_config.json, or GGUF's general.sampling.*), else fixed values;
// the library and the command use these, OpenAI's routes do not (temperature 1 there). And its end tokens by number.

import { log } from "../base/log.js";
import type { SamplingParams } from "../engine/types.js";
import type { CheckpointMeta } from "../formats/checkpoint.js";
import { plainSampling } from "./sampling.js";

export type SamplingDefaults = Omit<SamplingParams, "seed" | "logitBias">;

/** For a model that says nothing of itself. */
export const fallbackSampling: SamplingDefaults = {
  ...plainSampling,
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
};

type Name = "temperature" | "topK" | "topP" | "minP" | "repetitionPenalty";

const names: Record<Name, { huggingFace: string; gguf: string; valid: (value: number) => boolean }> = {
  temperature: { huggingFace: "temperature", gguf: "general.sampling.temp", valid: (t) => t >= 0 && t < 1e6 },
  // −1 is how some files say that there is no limit.
  topK: { huggingFace: "top_k", gguf: "general.sampling.top_k", valid: (k) => Number.isInteger(k) && k >= -1 },
  topP: { huggingFace: "top_p", gguf: "general.sampling.top_p", valid: (p) => p > 0 && p <= 1 },
  minP: { huggingFace: "min_p", gguf: "general.sampling.min_p", valid: (p) => p >= 0 && p <= 1 },
  repetitionPenalty: {
    huggingFace: "repetition_penalty",
    gguf: "general.sampling.penalty_repeat",
    valid: (penalty) => penalty > 0,
  },
};

/** A model that sets any of these is taken at its word: what it leaves out is then off, not the fixed values. */
export function samplingDefaults(meta: CheckpointMeta): SamplingDefaults {
  const config = meta.kind === "huggingface" ? (meta.files.generationConfig ?? {}) : {};
  if (config.do_sample === false) return { ...plainSampling, temperature: 0 };
  const found: Partial<Record<Name, number>> = {};
  for (const [name, { huggingFace, gguf, valid }] of Object.entries(names) as [Name, (typeof names)[Name]][]) {
    const value = meta.kind === "gguf" ? meta.values.get(gguf) : config[huggingFace];
    if (value === undefined || value === null) continue;
    if (typeof value === "number" && valid(value)) found[name] = Math.max(value, 0);
    else
      log.warn(`the model's own ${meta.kind === "gguf" ? gguf : huggingFace} is no value for it: it is left out`, {
        value: String(value),
      });
  }
  return Object.keys(found).length === 0 ? fallbackSampling : { ...plainSampling, ...found };
}

/** Ids that end an answer, for a checkpoint without a tokenizer to ask. */
export function configuredEndIds(meta: CheckpointMeta): readonly number[] {
  const said =
    meta.kind === "gguf"
      ? [meta.values.get("tokenizer.ggml.eos_token_id")]
      : [meta.files.generationConfig?.eos_token_id, meta.files.config.eos_token_id].flat();
  return [...new Set(said.filter((id): id is number => typeof id === "number" && Number.isInteger(id) && id >= 0))];
}
