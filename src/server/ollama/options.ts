// Owns: Ollama's options as this engine's settings: the request's over the package's over Ollama's defaults. What would
// change the answer and is not done is a 400 in a request; in a package, which its user did not write, a line in the log.
// What only says how to compute it, and what Ollama itself no longer heeds, is a line in the log too.
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

/** How the work would be done, never what comes out: the server decides that, and the log says so. */
const hints: readonly (keyof ModelParameters)[] = [
  "num_batch",
  "num_gpu",
  "main_gpu",
  "use_mmap",
  "num_thread",
  "draft_num_predict",
];

/** What would change the answer and is not done: any value but these asks for it. */
const undone: { readonly [name in keyof ModelParameters]?: { values: readonly unknown[]; why: string } } = {
  typical_p: { values: [1], why: "typical sampling is not supported" },
  repeat_last_n: { values: [64, 0, -1], why: "penalties count the whole context; 0 turns them off" },
};

export function optionsOf(given: Readonly<Record<string, unknown>>, ofPackage: ModelParameters = {}): Options {
  const asked = parametersOf(given, (name) => warnOnce(`the option ${name} does nothing any more, as in Ollama`));
  for (const name of hints) {
    if (asked[name] !== undefined) warnOnce(`the option ${name} has no effect: it is the server's to decide`);
  }
  refuseUndone(asked);
  const {
    temperature = 0.8,
    top_k = 40,
    top_p = 0.9,
    min_p = 0,
    ...rest
  }: ModelParameters = {
    ...withoutUndone(ofPackage),
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

function refuseUndone(asked: ModelParameters): void {
  for (const [name, { values, why }] of Object.entries(undone)) {
    const value = asked[name as keyof ModelParameters];
    if (value === undefined || values.includes(value)) continue;
    throw new UserError(`The option "${name}" must be ${values.join(" or ")}, or be left out: ${why}.`, {
      code: "unsupported_field",
      param: `options.${name}`,
    });
  }
}

const told = new Set<string>();

function warnOnce(message: string): void {
  if (!told.has(message)) log.warn(message);
  told.add(message);
}

function withoutUndone(parameters: ModelParameters): ModelParameters {
  return Object.fromEntries(
    Object.entries(parameters).filter(([name, value]) => {
      const one = undone[name as keyof ModelParameters];
      if (one === undefined || one.values.includes(value)) return true;
      warnOnce(`the package's parameter ${name} ${value} is not supported and has no effect`);
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
