// Owns: the JSON and template files of a Hugging Face folder, read and parsed; what they mean is model/config.ts' and
// text/'s. tokenizer.json (tens of megabytes) is read when it is first asked for, the others at once.
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { FormatError } from "../base/errors.js";
import type { HuggingFaceFiles } from "./checkpoint.js";

type Json = Readonly<Record<string, unknown>>;

const maxJsonBytes = 2 ** 28;

/** config is empty where the folder holds only a tokenizer. */
export function readHuggingFaceFiles(folder: string): HuggingFaceFiles {
  const optional = (name: string) => {
    const path = join(folder, name);
    return existsSync(path) ? readJson(path) : undefined;
  };
  const templatePath = join(folder, "chat_template.jinja");
  let tokenizer: Json | undefined | null = null;
  return {
    config: optional("config.json") ?? {},
    pooling: optional(join("1_Pooling", "config.json")),
    generationConfig: optional("generation_config.json"),
    tokenizerConfig: optional("tokenizer_config.json"),
    specialTokensMap: optional("special_tokens_map.json"),
    chatTemplate: existsSync(templatePath) ? readText(templatePath) : undefined,
    namedChatTemplates: readNamedTemplates(join(folder, "additional_chat_templates")),
    get tokenizer() {
      if (tokenizer === null) tokenizer = optional("tokenizer.json");
      return tokenizer;
    },
  };
}

function readNamedTemplates(folder: string): Record<string, string> | undefined {
  if (!existsSync(folder)) return undefined;
  const files = readdirSync(folder).filter((name) => name.endsWith(".jinja"));
  return Object.fromEntries(files.map((name) => [name.slice(0, -".jinja".length), readText(join(folder, name))]));
}

function readText(path: string): string {
  const stat = statSync(path);
  if (!stat.isFile()) throw new FormatError(`${path} is not a regular file`);
  if (stat.size > maxJsonBytes)
    throw new FormatError(`${path} has ${stat.size} bytes; at most ${maxJsonBytes} are read`);
  return readFileSync(path, "utf8");
}

/** A file that holds one JSON object. */
export function readJson(path: string): Json {
  const value = parseJson(readText(path), path);
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FormatError(`${path} does not hold a JSON object`);
  }
  return value as Json;
}

/** JSON, and the Infinity and NaN that Python's writer puts beside it (NaN becomes null). */
function parseJson(text: string, path: string): unknown {
  const plain = text.startsWith("\uFEFF") ? text.slice(1) : text;
  try {
    return JSON.parse(plain);
  } catch (error) {
    const replaced = plain.replace(/"(?:[^"\\]|\\.)*"|\bInfinity\b|\bNaN\b/gs, (token) =>
      token === "Infinity" ? "1e999" : token === "NaN" ? "null" : token,
    );
    try {
      if (replaced !== plain) return JSON.parse(replaced);
    } catch {
      // the first message is about the text as it stands
    }
    throw new FormatError(`${path} is not JSON: ${(error as Error).message}`, error);
  }
}
