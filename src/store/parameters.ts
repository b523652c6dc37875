// Owns: a package's parameters (PARAMETER in a Modelfile, "options" in Ollama's API): their names, types and ranges, and
// which names are still taken though nothing comes of them. Knows no engine: callers turn values into their own settings.
import { UserError } from "../base/errors.js";

export interface ModelParameters {
  readonly num_ctx?: number;
  readonly num_predict?: number;
  readonly num_keep?: number;
  readonly num_batch?: number;
  readonly num_gpu?: number;
  readonly num_thread?: number;
  readonly main_gpu?: number;
  readonly use_mmap?: boolean;
  readonly draft_num_predict?: number;
  readonly seed?: number;
  readonly temperature?: number;
  readonly top_k?: number;
  readonly top_p?: number;
  readonly min_p?: number;
  readonly typical_p?: number;
  readonly repeat_last_n?: number;
  readonly repeat_penalty?: number;
  readonly presence_penalty?: number;
  readonly frequency_penalty?: number;
  readonly stop?: readonly string[];
}

type Kind = "int" | "float" | "bool" | "strings";

/** In Ollama's order: what `show --parameters` prints. */
const kinds: Readonly<Record<keyof ModelParameters, Kind>> = {
  num_ctx: "int",
  num_batch: "int",
  num_gpu: "int",
  main_gpu: "int",
  use_mmap: "bool",
  num_thread: "int",
  draft_num_predict: "int",
  num_keep: "int",
  seed: "int",
  num_predict: "int",
  top_k: "int",
  top_p: "float",
  min_p: "float",
  typical_p: "float",
  repeat_last_n: "int",
  temperature: "float",
  repeat_penalty: "float",
  presence_penalty: "float",
  frequency_penalty: "float",
  stop: "strings",
};

/** Names of older versions: published packages have them, and Ollama itself takes them with a warning. */
export const retiredParameters: readonly string[] = [
  "penalize_newline",
  "low_vram",
  "f16_kv",
  "logits_all",
  "vocab_only",
  "use_mlock",
  "mirostat",
  "mirostat_tau",
  "mirostat_eta",
  "tfs_z",
  "num_gqa",
  "rope_frequency_base",
  "rope_frequency_scale",
  "numa",
];

export const parameterNames = Object.keys(kinds) as (keyof ModelParameters)[];

const isKnown = (name: string): name is keyof ModelParameters => Object.hasOwn(kinds, name);

function unknown(name: string): UserError {
  return new UserError(`there is no parameter ${JSON.stringify(name)}; there are ${parameterNames.join(", ")}`, {
    code: "unknown_parameter",
    param: name,
  });
}

function wrong(name: string, value: unknown, wanted: string): UserError {
  return new UserError(`${name} is ${JSON.stringify(value)}; it must be ${wanted}`, {
    code: "bad_parameter",
    param: name,
  });
}

function typed(name: keyof ModelParameters, value: unknown): number | boolean | readonly string[] {
  switch (kinds[name]) {
    case "int":
      if (typeof value === "number" && Number.isInteger(value)) return value;
      throw wrong(name, value, "a whole number");
    case "float":
      if (typeof value === "number" && Number.isFinite(value)) return value;
      throw wrong(name, value, "a number");
    case "bool":
      if (typeof value === "boolean") return value;
      throw wrong(name, value, "true or false");
    case "strings":
      if (typeof value === "string") return [value];
      if (Array.isArray(value) && value.every((one) => typeof one === "string")) return value;
      throw wrong(name, value, "a text or a list of texts");
  }
}

/** From JSON. Retired names are left out and told to onRetired. Throws UserError for a name or a value that is wrong. */
export function parametersOf(
  given: Readonly<Record<string, unknown>>,
  onRetired: (name: string) => void = () => {},
): ModelParameters {
  const out: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (isKnown(name)) out[name] = typed(name, value);
    else if (retiredParameters.includes(name)) onRetired(name);
    else throw unknown(name);
  }
  return out;
}

/** One PARAMETER of a Modelfile: its text as the value that JSON would have. */
export function parameterValue(name: string, text: string): number | boolean | string {
  if (!isKnown(name)) {
    if (retiredParameters.includes(name)) return text;
    throw unknown(name);
  }
  switch (kinds[name]) {
    case "int":
    case "float": {
      const value = Number(text);
      if (text.trim() === "" || !Number.isFinite(value)) throw wrong(name, text, "a number");
      typed(name, value);
      return value;
    }
    case "bool": {
      if (/^(true|t|1)$/i.test(text)) return true;
      if (/^(false|f|0)$/i.test(text)) return false;
      throw wrong(name, text, "true or false");
    }
    case "strings":
      return text;
  }
}

/** Values as (name, text), a list one by one: what a Modelfile has and `show --parameters` prints. */
export function parameterLines(parameters: ModelParameters): [name: string, value: string | number | boolean][] {
  return parameterNames.flatMap((name) => {
    const value = parameters[name];
    if (value === undefined) return [];
    return [value].flat().map((one): [string, string | number | boolean] => [name, one as string | number | boolean]);
  });
}
