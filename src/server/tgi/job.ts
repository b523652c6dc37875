// Owns: a TGI request as a ChatJob. Inputs are the model's own prompt text: clients put the chat template's special tokens
// into it, so their spellings become those tokens here, as in TGI.
import { checkDepth } from "../../base/depth.js";
import { UserError } from "../../base/errors.js";
import { checkTextLength } from "../../session/fit.js";
import { seedBits } from "../../session/sampling.js";
import type { Session } from "../../session/session.js";
import type { ChatJob, OutputFormat } from "../../session/types.js";
import type { GenerateParameters, GenerateRequest } from "./schema.js";

export interface Asked {
  readonly job: ChatJob;
  readonly inputs: string;
  readonly details: boolean;
  readonly prefill: boolean;
  readonly topTokens: number;
  readonly fullText: boolean;
  /** What gives the same answer again; null: nothing is drawn. */
  readonly seed: number | null;
}

/** Throws UserError where fields do not go together. */
export function asked(body: GenerateRequest, session: Session, stream: boolean): Asked {
  const { inputs } = body;
  // Without parameters TGI samples; in parameters that are given, what they leave out is off.
  const parameters: GenerateParameters = body.parameters ?? { do_sample: true };
  if (inputs === "") {
    throw new UserError('The field "inputs" must be a string of at least one character.', { param: "inputs" });
  }
  const sampled = draws(parameters);
  const n = choices(parameters, sampled, stream);
  if (parameters.decoder_input_details && stream) {
    throw new UserError("decoder_input_details is not there for streams; leave it out.", {
      param: "parameters.decoder_input_details",
    });
  }
  const details = parameters.details ?? false;
  const topTokens = parameters.top_n_tokens ?? 0;
  const prefill = parameters.decoder_input_details ?? false;
  const seed = parameters.seed ?? Math.floor(Math.random() * 2 ** 53);
  const needsScores = stream || details || n > 1;
  const job: ChatJob = {
    n,
    sampling: {
      temperature: sampled ? (parameters.temperature ?? 1) : 0,
      topK: parameters.top_k ?? 0,
      topP: parameters.top_p ?? 1,
      minP: 0,
      repetitionPenalty: parameters.repetition_penalty ?? 1,
      frequencyPenalty: parameters.frequency_penalty ?? 0,
      presencePenalty: 0,
      seed: seedBits(seed),
      logitBias: [],
    },
    maxTokens: parameters.max_new_tokens ?? undefined,
    minTokens: 0,
    stop: parameters.stop ?? [],
    stopIds: [],
    // TGI's text ends with the stop sequence; its clients cut it off.
    includeStop: true,
    ignoreEos: false,
    logprobs: needsScores ? topTokens : undefined,
    promptLogprobs: prefill ? 0 : undefined,
    priority: 0,
    format: format(parameters.grammar),
    adapter: parameters.adapter_id ?? undefined,
    ...prompt(inputs, parameters.truncate ?? undefined, session),
  };
  const fullText = parameters.return_full_text ?? false;
  return { job, inputs, details, prefill, topTokens, fullText, seed: sampled ? seed : null };
}

/** As TGI decides it: asked for, or by a field that means nothing without it. */
function draws({ do_sample, temperature, top_k, top_p }: GenerateParameters): boolean {
  const warped = (temperature ?? 1) !== 1 || (top_k ?? 0) !== 0 || (top_p ?? 1) < 1;
  return (do_sample ?? false) || warped;
}

function choices({ best_of, seed }: GenerateParameters, sampled: boolean, stream: boolean): number {
  const n = best_of ?? 1;
  if (n === 1) return 1;
  const wrong = stream
    ? "is not there for streams; leave it out"
    : !sampled
      ? 'needs sampling: set "do_sample": true'
      : (seed ?? undefined) !== undefined
        ? "above 1 needs different seeds: leave out seed"
        : null;
  if (wrong !== null) throw new UserError(`best_of ${wrong}.`, { param: "parameters.best_of" });
  return n;
}

/** Keeps the last tokens of inputs that are longer than wanted. */
function prompt(
  inputs: string,
  truncate: number | undefined,
  session: Session,
): Pick<ChatJob, "prompt" | "promptIds" | "parseSpecial"> {
  if (truncate === undefined) return { prompt: inputs, parseSpecial: true };
  checkTextLength({ prompt: inputs }, "inputs");
  const ids = session.tokenize(inputs, { bos: true, special: true });
  return { promptIds: ids.subarray(Math.max(0, ids.length - truncate)) };
}

function format(grammar: GenerateParameters["grammar"]): OutputFormat | undefined {
  if (grammar === undefined || grammar === null) return undefined;
  if (grammar.type === "regex") return { kind: "regex", pattern: grammar.value };
  return { kind: "schema", schema: schema(grammar.type === "json_schema" ? grammar.value.schema : grammar.value) };
}

/** TGI takes a schema as an object or as its JSON text. */
function schema(given: string | object): object {
  if (typeof given === "object") return given;
  checkDepth(given);
  let parsed: unknown;
  try {
    parsed = JSON.parse(given);
  } catch {
    // said below
  }
  if (typeof parsed === "object" && parsed !== null && !Array.isArray(parsed)) return parsed;
  throw new UserError("The grammar's value is neither a JSON schema nor the JSON text of one.", {
    param: "parameters.grammar",
  });
}
