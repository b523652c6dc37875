// Owns: every environment variable that millrace reads, in one table: the only file that touches the environment. Flags
// come first: a variable is for what a flag cannot reach (a folder, a credential, a child process). At most 20; beside them
// Ollama's, as further names, for people who have set them already.

interface Variable {
  readonly meaning: string;
  /** As text, as it would stand in the environment; undefined: unset. */
  readonly default?: string;
}

export const variables = {
  MILLRACE_HOME: { meaning: "folder of the model store; by default the user's data folder" },
  MILLRACE_API_KEY: { meaning: "a key that callers of the server must give, as --api-key" },
  MILLRACE_LOG: { meaning: "least severe log line that is written: trace, debug, info, warn, error (default: warn)" },
  DEBUG: { meaning: "1 to 5: stack traces, then ever more detail in the log" },
  MILLRACE_DUMP: { meaning: "1: programs keep every activation, so that dump() works (costs memory and time)" },
  HF_ENDPOINT: { meaning: "address of the Hugging Face hub, or of a mirror", default: "https://huggingface.co" },
  HF_TOKEN: { meaning: "access token for private and gated models on the hub" },
  MILLRACE_REGISTRY: { meaning: "address of a mirror of Ollama's registry" },
  MILLRACE_REGISTRY_AUTH: { meaning: "host=user:password of registries that ask for them, with commas between" },
  XDG_DATA_HOME: { meaning: "where a user's data lies on Linux" },
  LOCALAPPDATA: { meaning: "where a user's data lies on Windows" },
  CI: { meaning: "set: no progress bars" },
} as const satisfies Record<string, Variable>;

/** Ollama's, each a further name of what a flag or a variable above says. */
export const aliases = {
  OLLAMA_HOST: {
    meaning: "address, or address:port, that the server listens on and its clients ask, as --host and --port",
  },
  OLLAMA_KEEP_ALIVE: { meaning: "how long a model that nobody asks stays loaded, as --keep-alive" },
  OLLAMA_MAX_LOADED_MODELS: { meaning: "most models that are loaded at once, as --max-loaded" },
  OLLAMA_MAX_QUEUE: { meaning: "requests that may wait, as --max-waiting" },
  OLLAMA_NUM_PARALLEL: { meaning: "answers that are generated at once, as --max-sequences" },
  OLLAMA_CONTEXT_LENGTH: { meaning: "tokens of context, as --ctx" },
  OLLAMA_ORIGINS: { meaning: "web pages that may call the server, with commas between, as --cors-origin" },
  OLLAMA_KV_CACHE_TYPE: { meaning: "number format of the key/value cache, as --kv-dtype" },
  OLLAMA_MODELS: { meaning: "where MILLRACE_HOME is not set, the store is the folder millrace below this one" },
  OLLAMA_DEBUG: { meaning: "1: MILLRACE_LOG=debug; 2: trace" },
  OLLAMA_NOHISTORY: { meaning: "1: a chat keeps no messages for the Up key, as /set nohistory" },
} as const satisfies Record<string, Variable>;

export type VariableName = keyof typeof variables | keyof typeof aliases;

const table: Readonly<Record<VariableName, Variable>> = { ...variables, ...aliases };

const environment: Readonly<Record<string, string | undefined>> =
  (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env ?? {};

/** The variable's value, its default where it is unset or empty, undefined where it has none. */
export function env(name: VariableName): string | undefined {
  const value = environment[name];
  return value === undefined || value === "" ? table[name].default : value;
}

/** Whether a variable of Ollama's that is on or off is on. */
export function isOn(name: VariableName): boolean {
  return !["", "0", "false", "f", "no", "off"].includes((env(name) ?? "").toLowerCase());
}

/** DEBUG as a level, 0 to 5. Other programs' uses of the same variable ("express:*") count as 0. */
export function debugLevel(): number {
  const value = Number(env("DEBUG"));
  return Number.isInteger(value) && value > 0 ? Math.min(value, 5) : 0;
}
