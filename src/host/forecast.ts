// Owns: what a model will need and do on a device, from its header alone: memory, context, how many can use it at once, and
// the speeds that the machine's limits allow. Reads no weights.
import { type Device, kvBytes } from "../device/device.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import type { EncoderConfig } from "../model/encoder-config.js";
import { nodeCost, planCost, type StepSizes, weightBytes } from "../plan/cost.js";
import type { Node, Plan } from "../plan/plan.js";
import { type LoadSpec, planModel } from "./load.js";
import { planEncoder } from "./load-encoder.js";

/** What a machine can do, at most. */
export interface Roofs {
  /** Bytes a second that are read from memory, with prefetch. */
  readonly readBytes: number;
  /** Operations a second. */
  readonly int8: number;
  readonly f32: number;
}

/** Tokens a second. */
export interface Speeds {
  readonly prompt: number;
  readonly generation: number;
}

export interface Forecast {
  /** Bytes. */
  readonly memory: {
    readonly weights: number;
    readonly workspace: number;
    readonly cache: number;
    readonly free: number;
  };
  /** Tokens: of the longest single conversation, and what the model was made for. */
  readonly contextLength: number;
  readonly trainedContextLength: number;
  /** How many conversations of `tokens` each the cache holds at once. */
  readonly users: readonly { readonly tokens: number; readonly sequences: number }[];
  readonly kvBytesPerToken: number;
}

/** Prompts of so many tokens, and generation after so many, are foretold. */
export const foretold = { prompt: 512, context: 64 };

export function forecast(
  checkpoint: Checkpoint,
  device: Device,
  spec: Pick<LoadSpec, "contextLength" | "threads" | "kvDtype">,
): { readonly forecast: Forecast; speedLimits(roofs: Roofs): Speeds } {
  const { plan, limits, memory, trainedContextLength } = planModel(checkpoint, device, spec);
  const perValue = kvBytes(limits.kvDtype, plan);
  const cached = (context: number) => cachedBytes(plan, context, perValue);
  const lengths = [...new Set([2048, 8192, limits.contextLength])].filter((tokens) => tokens <= limits.contextLength);
  return {
    forecast: {
      memory: {
        weights: memory.weights,
        workspace: memory.workspace,
        cache: memory.cache,
        free: device.info.memoryBytes,
      },
      contextLength: limits.contextLength,
      trainedContextLength,
      users: (lengths.length > 0 ? lengths : [limits.contextLength]).map((tokens) => {
        return { tokens, sequences: Math.floor(memory.cache / Math.max(1, cached(tokens))) };
      }),
      kvBytesPerToken: cached(foretold.context) / foretold.context,
    },
    speedLimits: (roofs) => {
      const { prompt, context } = foretold;
      const common = { sequences: 1, rows: 1, kvBytes: perValue };
      return {
        prompt: prompt / stepSeconds(plan, { ...common, tokens: prompt, context: prompt }, roofs),
        generation: 1 / stepSeconds(plan, { ...common, tokens: 1, context }, roofs),
      };
    },
  };
}

export interface EncoderForecast {
  /** Bytes. */
  readonly memory: Forecast["memory"];
  /** Tokens of the longest text. */
  readonly contextLength: number;
  readonly trainedContextLength: number;
  /** Numbers of a vector. */
  readonly embeddingLength: number;
}

/** Of a model that gives embeddings. Its speed: tokens of text a second, at most. */
export function forecastEncoder(
  config: EncoderConfig,
  checkpoint: Checkpoint,
  device: Device,
  spec: Pick<LoadSpec, "contextLength" | "threads">,
): { readonly forecast: EncoderForecast; speedLimit(roofs: Roofs): number } {
  const { plan, limits } = planEncoder(config, checkpoint, device, spec);
  const { weights, workspace, cache } = device.estimate(plan, limits);
  const tokens = Math.min(foretold.prompt, limits.contextLength);
  return {
    forecast: {
      memory: { weights, workspace, cache, free: device.info.memoryBytes },
      contextLength: limits.contextLength,
      trainedContextLength: config.contextLength,
      embeddingLength: config.hiddenSize,
    },
    speedLimit: (roofs) => {
      const step = { tokens, sequences: 1, rows: 1, context: tokens, kvBytes: kvBytes(limits.kvDtype, plan) };
      return tokens / stepSeconds(plan, step, roofs);
    },
  };
}

/** Of one sequence's keys and values: what a step reads more than one with an empty cache does. */
function cachedBytes(plan: Plan, context: number, perValue: number): number {
  const read = (positions: number) =>
    planCost(plan, { tokens: 1, sequences: 1, rows: 1, context: positions, kvBytes: perValue }).bytes;
  return read(context) - read(0);
}

/** Each operation takes what the slower of memory and arithmetic takes it. */
function stepSeconds(plan: Plan, step: StepSizes, roofs: Roofs): number {
  return plan.nodes.reduce((sum, node) => {
    const { flops, bytes } = nodeCost(node, step);
    return sum + Math.max(bytes / roofs.readBytes, flops / (hasPackedWeights(node) ? roofs.int8 : roofs.f32));
  }, 0);
}

/** Products with packed weights are sums of 8-bit integers. */
function hasPackedWeights({ inputs }: Node): boolean {
  return Object.values(inputs).some(
    (tensor) => weightBytes(tensor) > 0 && (tensor.from ?? []).every(({ type }) => !floats.has(type)),
  );
}

const floats = new Set<string>(["F32", "F16", "BF16"]);
