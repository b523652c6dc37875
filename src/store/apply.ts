// Owns: what a package says of being used, as settings of the engine's kind: sampling, stops, limits, and the messages
// that come before a conversation.
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { Package } from "./package.js";
import type { ModelParameters } from "./parameters.js";

export interface PackageSettings {
  readonly sampling: {
    readonly temperature?: number;
    readonly topK?: number;
    readonly topP?: number;
    readonly minP?: number;
    readonly repetitionPenalty?: number;
    readonly presencePenalty?: number;
    readonly frequencyPenalty?: number;
  };
  /** undefined: a fresh one each time. */
  readonly seed?: number;
  readonly stop: readonly string[];
  /** undefined: to the end of the context. */
  readonly maxTokens?: number;
  /** Tokens. */
  readonly contextLength?: number;
  readonly threads?: number;
}

/** What millrace does in another way, or not: true for values that ask for what it does anyway. */
const otherwise: { readonly [name in keyof ModelParameters]?: (value: never) => boolean } = {
  typical_p: (p: number) => p === 1,
  repeat_last_n: (n: number) => n !== 0,
  num_gpu: (n: number) => n < 0,
  main_gpu: (n: number) => n === 0,
  use_mmap: (used: boolean) => used,
};

/** Ollama's values become the engine's; a parameter that has no counterpart is said once in the log. */
export function settingsOf(parameters: ModelParameters): PackageSettings {
  for (const [name, fits] of Object.entries(otherwise) as [keyof ModelParameters, (value: unknown) => boolean][]) {
    const value = parameters[name];
    if (value !== undefined && !fits(value)) log.warn(`the parameter ${name} ${value} has no effect here`);
  }
  const { temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty } = parameters;
  const { seed, stop = [], num_predict, num_ctx, num_thread } = parameters;
  const sampling = {
    temperature,
    topK: top_k === undefined ? undefined : Math.max(0, top_k),
    topP: top_p === undefined ? undefined : Math.min(1, Math.max(top_p, 1e-6)),
    minP: min_p,
    repetitionPenalty: repeat_penalty,
    presencePenalty: presence_penalty,
    frequencyPenalty: frequency_penalty,
  };
  const above = (value: number | undefined) => (value !== undefined && value > 0 ? value : undefined);
  return {
    sampling: Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== undefined)),
    stop: stop.filter((one) => one !== ""),
    ...(seed === undefined || seed < 0 ? {} : { seed }),
    ...definedLimits({ maxTokens: above(num_predict), contextLength: above(num_ctx), threads: above(num_thread) }),
  };
}

function definedLimits(limits: { maxTokens?: number; contextLength?: number; threads?: number }) {
  return Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined)) as typeof limits;
}

interface Message {
  readonly role: "system" | "developer" | "user" | "assistant" | "tool";
}

type OwnMessage = { readonly role: "system" | "user" | "assistant"; readonly content: string };

/** The package's system message, unless the conversation begins with one, and its own messages, before the conversation. */
export function withPackageMessages<M extends Message>(
  one: Pick<Package, "system" | "messages"> | undefined,
  messages: readonly M[],
): (M | OwnMessage)[] {
  const own = (one?.messages ?? []) as readonly OwnMessage[];
  const speaks = messages[0]?.role === "system" || own[0]?.role === "system" || (one?.system ?? "") === "";
  const [first] = messages;
  // A caller's system message stays in front of the package's examples.
  const system =
    first?.role === "system" ? [first] : speaks ? [] : [{ role: "system", content: one!.system! } as const];
  return [...system, ...own, ...(first?.role === "system" ? messages.slice(1) : messages)];
}

/** What a package's adapter is called by requests. */
const adapterName = "package";

/** Its adapter, to load with the model. Throws UserError for more than one: which should answer? */
export function packageAdapters(one: Package | undefined): { readonly name: string; readonly path: string }[] {
  const paths = one?.adapters ?? [];
  if (paths.length <= 1) return paths.map((path) => ({ name: adapterName, path }));
  throw new UserError(`${one!.name} has ${paths.length} adapters; millrace applies one at a time`);
}
