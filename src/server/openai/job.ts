// Owns: the fields that both OpenAI routes share, as a ChatJob wants them. Defaults are OpenAI's: temperature 1, top_p 1.
import { UserError } from "../../base/errors.js";
import type { SamplingParams } from "../../engine/types.js";
import { randomSeed, seedBits } from "../../session/sampling.js";
import type { ChatJob } from "../../session/types.js";
import { outputFormat } from "./format.js";
import type { SharedFields } from "./schema.js";

type SharedJob = Pick<
  ChatJob,
  | "n"
  | "sampling"
  | "minTokens"
  | "stop"
  | "stopIds"
  | "includeStop"
  | "ignoreEos"
  | "skipSpecialTokens"
  | "priority"
  | "cacheSalt"
  | "format"
>;

export function sharedJob(body: SharedFields): SharedJob {
  if (body.stream_options !== undefined && body.stream !== true) {
    throw new UserError('The field "stream_options" needs "stream": true.', { param: "stream_options" });
  }
  return {
    n: body.n ?? 1,
    sampling: sampling(body),
    minTokens: body.min_tokens ?? 0,
    stop: body.stop === undefined ? [] : [body.stop].flat(),
    stopIds: body.stop_token_ids ?? [],
    includeStop: body.include_stop_str_in_output ?? false,
    ignoreEos: body.ignore_eos ?? false,
    skipSpecialTokens: body.skip_special_tokens ?? true,
    priority: body.priority ?? 0,
    cacheSalt: body.cache_salt,
    format: outputFormat(body),
  };
}

function sampling(body: SharedFields): SamplingParams {
  return {
    temperature: body.temperature ?? 1,
    topK: Math.max(0, body.top_k ?? 0),
    // OpenAI takes 0 and means the smallest nucleus, one token.
    topP: Math.max(body.top_p ?? 1, 1e-6),
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    frequencyPenalty: body.frequency_penalty ?? 0,
    presencePenalty: body.presence_penalty ?? 0,
    seed: body.seed === undefined ? randomSeed() : seedBits(body.seed),
    logitBias: Object.entries(body.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias] as const),
  };
}
