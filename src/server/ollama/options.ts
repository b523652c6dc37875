// Owns: Ollama's options as this engine's settings: the request's over the package's over Ollama's defaults. What the
// engine does not do is a 400 in a request; in a package, which its user did not write, it is a line in the log.
import { UserError } from "../../base/errors.js";
import { log } from "../../base/log.js";
import type { SamplingParams } from "../../engine/types.js";
import { randomSeed, seedBits } from "../../session/sampling.js";
import { type ModelParameters, parametersOf } from "../../store/parameters.js";

export interface Options {
  readonly sampling: SamplingParams;
  readonly stop: readonly string[];
  /** undefined: to the end of the context. */
  readonly maxTokens: number | undefined;
  /** undefined: as the model was loaded. */
  readonly contextLength: number | undefined;
  /** Tokens at the start of a prompt that stay when it is cut. */
  readonly numKeep: number;
}

/** What is not done: any value but these asks for it. */
const inert: { readonly [name in keyof ModelParameters]?: readonly unknown[] } = {
  typical_p: [1],
  repeat_last_n: [64, 0, -1],
  num_batch: [512],
  num_gpu: [-1],
  main_gpu: [0],
  use_mmap: [true],
  num_thread: [0],
  draft_num_predict: [4],
};

const why: { readonly [name in keyof ModelParameters]?: string } = {
  typical_p: "typical sampling is not supported",
  repeat_last_n: "penalties count the whole context; 0 turns them off",
  num_thread: "threads are the server's to share out (serve --threads)",
  num_gpu: "a model runs on one device as a whole (serve --device)",
};

export function optionsOf(given: Readonly<Record<string, unknown>>, ofPackage: ModelParameters = {}): Options {
  const asked = parametersOf(given, (name) => {
    throw new UserError(`The option "${name}" is not supported; leave it out.`, {
      code: "unsupported_field",
      param: `options.${name}`,
    });
  });
  refuseInert(asked);
  const {
    temperature = 0.8,
    top_k = 40,
    top_p = 0.9,
    min_p = 0,
    ...rest
  }: ModelParameters = {
    ...withoutInert(ofPackage),
    ...asked,
  };
  const { repeat_penalty = 1, presence_penalty = 0, frequency_penalty = 0, repeat_last_n = 64, seed = -1 } = rest;
  const penalized = repeat_last_n !== 0;
  const { num_predict = -1, num_ctx = 0, num_keep = 4, stop = [] } = rest;
  return {
    sampling: {
      temperature: within("temperature", temperature, 0, 100),
      topK: within("top_k", Math.max(0, top_k), 0, 2 ** 31 - 1),
      // 0 and less mean the smallest nucleus, one token; 1 and more none.
      topP: Math.min(1, Math.max(top_p, 1e-6)),
      minP: within("min_p", min_p, 0, 1),
      repetitionPenalty: penalized ? within("repeat_penalty", repeat_penalty, 1e-3, 100) : 1,
      frequencyPenalty: penalized ? within("frequency_penalty", frequency_penalty, -100, 100) : 0,
      presencePenalty: penalized ? within("presence_penalty", presence_penalty, -100, 100) : 0,
      seed: seed < 0 ? randomSeed() : seedBits(seed),
      logitBias: [],
    },
    stop: stop.filter((one) => one !== ""),
    maxTokens: num_predict > 0 ? num_predict : undefined,
    contextLength: num_ctx > 0 ? num_ctx : undefined,
    numKeep: num_keep,
  };
}

function refuseInert(asked: ModelParameters): void {
  for (const [name, values] of Object.entries(inert) as [keyof ModelParameters, readonly unknown[]][]) {
    const value = asked[name];
    if (value === undefined || values.includes(value)) continue;
    throw new UserError(
      `The option "${name}" must be ${values.join(" or ")}, or be left out: ${why[name] ?? "other values are not supported"}.`,
      { code: "unsupported_field", param: `options.${name}` },
    );
  }
}

const told = new Set<string>();

function withoutInert(parameters: ModelParameters): ModelParameters {
  return Object.fromEntries(
    Object.entries(parameters).filter(([name, value]) => {
      const values = inert[name as keyof ModelParameters];
      if (values === undefined || values.includes(value)) return true;
      if (!told.has(name)) log.warn(`the package's parameter ${name} ${value} is not supported and has no effect`);
      told.add(name);
      return false;
    }),
  );
}

function within(name: string, value: number, least: number, most: number): number {
  if (value >= least && value <= most) return value;
  throw new UserError(`The option "${name}" must be a number from ${least} to ${most}, not ${value}.`, {
    code: "invalid_value",
    param: `options.${name}`,
  });
}
