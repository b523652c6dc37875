// Owns: what a request to the engine must be, whoever sends it.
import { UserError } from "../base/errors.js";
import type { GenerateRequest } from "./types.js";

export interface Acceptable {
  readonly vocabSize: number;
  /** Tokens that the longest sequence can have. */
  readonly longest: number;
  readonly adapters: readonly string[];
}

/** Throws UserError. */
export function checkRequest(request: GenerateRequest, { vocabSize, longest, adapters }: Acceptable): void {
  const { promptIds, maxTokens, n, sampling, stopIds, adapter } = request;
  const refuse = (message: string, code = "invalid_request") => {
    throw new UserError(message, { code });
  };
  if (promptIds.length === 0) refuse("the prompt has no tokens; give at least one");
  if (!(n >= 1)) refuse(`n is ${n}; at least 1 choice can be asked for`);
  if (maxTokens < 1 && !(maxTokens === 0 && request.promptLogprobs !== undefined)) {
    refuse("max_tokens must be at least 1; 0 only where the prompt's logprobs are asked for");
  }
  const known = (id: number) => {
    if (!(id >= 0 && id < vocabSize)) refuse(`token ${id} is not in the vocabulary of ${vocabSize} tokens`);
  };
  promptIds.forEach(known);
  stopIds.forEach(known);
  for (const [id] of sampling.logitBias) known(id);
  if (Math.max(request.logprobs ?? 0, request.promptLogprobs ?? 0) > vocabSize) refuse("more logprobs than tokens");
  const end = promptIds.length + maxTokens;
  if (end > longest) {
    refuse(
      `the prompt's ${promptIds.length} tokens and ${maxTokens} to generate make ${end}, the context holds ${longest}`,
      "context_length_exceeded",
    );
  }
  if (adapter !== undefined && !adapters.includes(adapter)) {
    const message = `there is no adapter called ${adapter}; loaded are: ${adapters.join(", ") || "none"}`;
    throw new UserError(message, { status: 404, code: "adapter_not_found" });
  }
}
