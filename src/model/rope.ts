// Owns: rotary embedding as numbers: from a base and a scaling to the angle a position turns each pair by.
// Refuses scalings it does not know: a model run with the wrong angles answers fluently and wrongly.
import { FormatError } from "../base/errors.js";

/** Turns the first 2 × invFreq.length values of each head. */
export interface Rope {
  readonly invFreq: readonly number[];
  readonly magnitude: number;
  readonly interleaved: boolean;
}

/** `divisors` stand in a GGUF file for a scaling that its writer has worked out: one divisor a pair. */
export type RopeScaling =
  | { readonly type: "none" }
  | { readonly type: "linear"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalContextLength: number;
    }
  | { readonly type: "divisors"; readonly divisors: Float32Array };

export const ropeScalingTypes = ["default", "linear", "llama3"];

export function ropeOf(rotaryDim: number, base: number, scaling: RopeScaling, interleaved = false): Rope {
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw new FormatError(`rotary embedding turns pairs: ${rotaryDim} dimensions of a head cannot be turned`);
  }
  if (!(base > 0 && Number.isFinite(base))) throw new FormatError(`the rope base must be positive, it is ${base}`);
  const plain = Array.from({ length: rotaryDim / 2 }, (_, i) => base ** (-(2 * i) / rotaryDim));
  return { invFreq: scale(plain, scaling), magnitude: 1, interleaved };
}

function scale(invFreq: number[], scaling: RopeScaling): number[] {
  switch (scaling.type) {
    case "none":
      return invFreq;
    case "linear":
      return invFreq.map((f) => f / positive("factor", scaling.factor));
    case "llama3":
      return invFreq.map((f) => llama3(f, scaling));
    case "divisors": {
      const { divisors } = scaling;
      if (divisors.length !== invFreq.length || !divisors.every((d) => d > 0)) {
        throw new FormatError(
          `rope factors: ${invFreq.length} positive numbers are needed, there are ${divisors.length}`,
        );
      }
      return invFreq.map((f, i) => f / divisors[i]);
    }
  }
}

/** Long waves are stretched by `factor`, short ones kept, those between blended. Source: Llama 3.1's own inference code. */
function llama3(frequency: number, s: Extract<RopeScaling, { type: "llama3" }>): number {
  const factor = positive("factor", s.factor);
  const low = positive("low_freq_factor", s.lowFreqFactor);
  const high = positive("high_freq_factor", s.highFreqFactor);
  if (high <= low) throw new FormatError(`rope scaling: high_freq_factor ${high} must be over low_freq_factor ${low}`);
  const turns = (positive("original_max_position_embeddings", s.originalContextLength) * frequency) / (2 * Math.PI);
  if (turns < low) return frequency / factor;
  if (turns > high) return frequency;
  const keep = (turns - low) / (high - low);
  return ((1 - keep) * frequency) / factor + keep * frequency;
}

function positive(name: string, value: number): number {
  if (!(value > 0 && Number.isFinite(value)))
    throw new FormatError(`rope scaling: ${name} must be positive, it is ${value}`);
  return value;
}
