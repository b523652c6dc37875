// Owns: a model on a device under the real engine, for tests end to end: requests in, everything that was said of them
// out, comparable to the bit.
import type { Device, Limits, Program } from "../../src/device/device.js";
import { Engine } from "../../src/engine/loop.js";
import type {
  EngineStats,
  FinishReason,
  GenerateRequest,
  SamplingParams,
  TokenLogprobs,
} from "../../src/engine/types.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { plainSampling } from "../../src/session/sampling.js";
import { limits as plainLimits } from "../support/batch.js";
import { seededRandom } from "../support/random.js";

export const limits: Limits = {
  ...plainLimits,
  maxTokens: 512,
  contextLength: 512,
  kvDtype: "f16",
  depth: 1,
  adapterSlots: 0,
  maxPages: 512,
};

export async function compileModel(
  device: Device,
  checkpoint: Checkpoint,
  own: Partial<Limits> = {},
  dump = false,
): Promise<Program> {
  const plan = fuse(decoderPlan(modelConfig(checkpoint), checkpoint.tensors), device.info.ops);
  return device.compile(plan, checkpoint, { ...limits, ...own }, { dump });
}

export interface Said {
  cachedTokens: number;
  promptLogprobs?: readonly (TokenLogprobs | null)[];
  /** One a choice. */
  choices: { tokens: number[]; logprobs: (TokenLogprobs | undefined)[]; reason?: FinishReason }[];
}

/** Runs the requests together until all have ended; `arrivals` come in after a number of steps, or (Infinity) when those
 *  before have ended. Steps are taken by hand: the pages are checked after each. */
export async function runAll(
  program: Program,
  requests: readonly GenerateRequest[],
  o: {
    stepTokens?: number;
    prefixCache?: boolean;
    limits?: Partial<Limits>;
    arrivals?: { readonly steps: number; readonly requests: readonly GenerateRequest[] };
  } = {},
): Promise<{ said: Map<string, Said>; stats: EngineStats }> {
  const said = new Map<string, Said>();
  let clock = 0;
  const engine = new Engine(
    program,
    { ...limits, ...o.limits },
    {
      stepTokens: o.stepTokens ?? 512,
      prefixCache: o.prefixCache ?? false,
      pause: async () => {},
      now: () => clock++,
      output: {
        start: (id, cachedTokens, promptLogprobs) => {
          Object.assign(said.get(id)!, { cachedTokens, promptLogprobs: promptLogprobs?.slice() });
        },
        token: (id, index, token, logprobs) => {
          said.get(id)!.choices[index].tokens.push(token);
          said.get(id)!.choices[index].logprobs.push(logprobs);
        },
        finish: (id, event) => {
          said.get(id)!.choices[event.index].reason = event.reason;
        },
        flush: () => {},
      },
    },
  );
  const submit = (request: GenerateRequest) => {
    const choices = Array.from({ length: request.n }, () => ({ tokens: [], logprobs: [] }));
    said.set(request.id, { cachedTokens: -1, choices });
    engine.submit(request);
  };
  const run = async (most: number) => {
    for (let i = 0; i < most && (await engine.step()); i++) engine.check();
  };
  requests.forEach(submit);
  await run(o.arrivals?.steps ?? 0);
  o.arrivals?.requests.forEach(submit);
  await run(Number.POSITIVE_INFINITY);
  return { said, stats: engine.stats() };
}

export const greedy: SamplingParams = { ...plainSampling, temperature: 0, seed: 0n };

/** Draws that depend on every bit of the logits and on the counts. */
export const drawn: SamplingParams = {
  ...greedy,
  temperature: 1.5,
  topK: 40,
  topP: 0.95,
  repetitionPenalty: 1.1,
  presencePenalty: 0.2,
  seed: 0x1234_5678_9abc_def0n,
};

export function request(
  id: string,
  promptIds: readonly number[],
  more: Partial<GenerateRequest> = {},
): GenerateRequest {
  return {
    id,
    promptIds: Int32Array.from(promptIds),
    n: 1,
    sampling: greedy,
    maxTokens: 8,
    minTokens: 0,
    stopIds: [],
    logprobs: 3,
    priority: 0,
    ...more,
  };
}

export function randomIds(count: number, vocabSize: number, seed: number): number[] {
  const random = seededRandom(seed);
  return Array.from({ length: count }, () => random.below(vocabSize));
}
