// Owns: log lines for people who run millrace: one line of text each on standard error, or a JSON object a line for
// machines. Request data (prompts, answers) is never logged.
import { debugLevel, env, isOn } from "./env.js";

export const levels = ["trace", "debug", "info", "warn", "error"] as const;
export type Level = (typeof levels)[number];

export type Fields = Readonly<Record<string, string | number | boolean | undefined>>;
export type Sink = (level: Level, message: string, fields: Fields) => void;

export interface Log {
  trace(message: string, fields?: Fields): void;
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
}

const text = (fields: Fields): string =>
  Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(
      ([key, value]) => ` ${key}=${typeof value === "string" && /[\s="]/.test(value) ? JSON.stringify(value) : value}`,
    )
    .join("");

// console.error is standard error in node and the console in a browser.
const plainSink: Sink = (level, message, fields) => console.error(`${level}: ${message}${text(fields)}`);

let sink: Sink = plainSink;
let least = levels.indexOf("warn");

function configuredLevel(): Level {
  const debug = debugLevel();
  if (debug >= 3) return "trace";
  if (debug >= 1) return "debug";
  const wanted = env("MILLRACE_LOG");
  const usual = isOn("OLLAMA_DEBUG") ? (env("OLLAMA_DEBUG") === "2" ? "trace" : "debug") : "warn";
  return levels.find((level) => level === wanted) ?? usual;
}
least = levels.indexOf(configuredLevel());

/** Where lines go and the least severe that does; null: back to plain lines on standard error. */
export function setLog(to: Sink | null, level: Level = configuredLevel()): void {
  sink = to ?? plainSink;
  least = levels.indexOf(level);
}

function write(level: Level, message: string, fields: Fields = {}): void {
  if (levels.indexOf(level) >= least) sink(level, message, fields);
}

export const log: Log = {
  trace: (message, fields) => write("trace", message, fields),
  debug: (message, fields) => write("debug", message, fields),
  info: (message, fields) => write("info", message, fields),
  warn: (message, fields) => write("warn", message, fields),
  error: (message, fields) => write("error", message, fields),
};
