// Owns: the Modelfile: its text to a recipe, with the line of whatever is wrong, and a package back to text that makes the
// same package. Format: Ollama's. A value goes to the end of its line; between " and ", or """ and """, over several.
import { UserError } from "../base/errors.js";
import type { Package, PackageMessage } from "./package.js";
import { type ModelParameters, parameterLines, parametersOf, parameterValue } from "./parameters.js";

/** What a Modelfile asks for. Paths are as they were written. */
export interface Recipe {
  /** A package's name, a GGUF file, a folder with safetensors; more than one: files of the same model. */
  readonly from: readonly string[];
  readonly adapters: readonly string[];
  readonly draft?: string;
  readonly template?: string;
  readonly system?: string;
  readonly parameters: ModelParameters;
  readonly messages: readonly PackageMessage[];
  readonly license: readonly string[];
  readonly renderer?: string;
  readonly parser?: string;
  readonly requires?: string;
  /** Where stands, from 1, what can fail later. */
  readonly lines: Lines;
  /** What was read and left out: retired parameters. */
  readonly warnings: readonly string[];
}

interface Lines {
  readonly from: readonly number[];
  readonly adapters: readonly number[];
  readonly template?: number;
  readonly draft?: number;
}

interface Instruction {
  readonly name: string;
  readonly value: string;
  /** From 1. */
  readonly line: number;
}

const known = [
  "FROM",
  "PARAMETER",
  "TEMPLATE",
  "SYSTEM",
  "ADAPTER",
  "LICENSE",
  "MESSAGE",
  "REQUIRES",
  "DRAFT",
  "RENDERER",
  "PARSER",
] as const;
type Name = (typeof known)[number];

const roles = ["system", "user", "assistant"];

function wrong(line: number, message: string): UserError {
  return new UserError(`Modelfile, line ${line}: ${message}`, { code: "bad_modelfile" });
}

/** The same failure, with the line that asked for what failed. */
export function atLine(line: number, cause: UserError): UserError {
  const { message, status, code } = cause;
  return new UserError(`Modelfile, line ${line}: ${message}`, { status, code, cause });
}

/** The text between its quotes; null: the closing ones are still to come. */
function unquote(text: string): string | null {
  for (const quote of ['"""', '"']) {
    if (!text.startsWith(quote)) continue;
    return text.length >= 2 * quote.length && text.endsWith(quote) ? text.slice(quote.length, -quote.length) : null;
  }
  return text;
}

/** The value that begins with `first` on lines[at], and the line after it. */
function readValue(lines: readonly string[], at: number, first: string): { value: string; next: number } {
  let text = first;
  for (let next = at + 1; ; next++) {
    const value = unquote(text.trim());
    if (value !== null) return { value, next };
    if (next >= lines.length) throw wrong(at + 1, `the quotes that begin here do not end: ${first.slice(0, 40)}`);
    text += `\n${lines[next]}`;
  }
}

function instructions(text: string): Instruction[] {
  const lines = text.replace(/^\uFEFF/, "").split(/\r?\n/);
  const found: Instruction[] = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at].trim();
    if (line === "" || line.startsWith("#")) {
      at++;
      continue;
    }
    const [, word, rest] = /^(\S+)\s*(.*)$/.exec(line)!;
    const name = word.toUpperCase();
    if (!(known as readonly string[]).includes(name)) {
      throw wrong(at + 1, `there is no instruction ${JSON.stringify(word)}; there are ${known.join(", ")}`);
    }
    const head = name === "PARAMETER" || name === "MESSAGE" ? (/^\S+\s*/.exec(rest)?.[0] ?? "") : "";
    // A quoted text may end its first line with spaces that belong to it.
    const start = lines[at].trimStart().slice(word.length).trimStart().slice(head.length);
    const { value, next } = readValue(lines, at, start);
    if (rest === "" || (head !== "" && start.trim() === "")) throw wrong(at + 1, `${name} needs a value`);
    found.push({ name, value: head === "" ? value : `${head.trim()}\n${value}`, line: at + 1 });
    at = next;
  }
  return found;
}

type Building = { -readonly [K in keyof Omit<Recipe, "lines" | "warnings">]: Recipe[K] };

/** Throws UserError that names the line. */
export function parseModelfile(text: string): Recipe {
  const recipe: Building = { from: [], adapters: [], parameters: {}, messages: [], license: [] };
  const parameters: Record<string, unknown> = {};
  const stop: string[] = [];
  const read = instructions(text);
  for (const { name, value, line } of read) {
    try {
      if (name !== "PARAMETER") addInstruction(recipe, name as Name, value);
      else {
        const [parameter, given] = split(value);
        const typed = parameterValue(parameter, given);
        if (parameter === "stop") stop.push(typed as string);
        else parameters[parameter] = typed;
      }
    } catch (error) {
      if (error instanceof UserError) throw wrong(line, error.message);
      throw error;
    }
  }
  if (recipe.from.length === 0) throw wrong(1, "there is no FROM: it says which model the package is made from");
  const warnings: string[] = [];
  if (stop.length > 0) parameters.stop = stop;
  recipe.parameters = parametersOf(parameters, (name) => warnings.push(`PARAMETER ${name} does nothing any more`));
  for (const name of ["renderer", "parser"] as const) {
    if (recipe[name] !== undefined) {
      warnings.push(
        `${name.toUpperCase()} ${recipe[name]} is code inside Ollama: its name is kept, the template is used`,
      );
    }
  }
  if (recipe.requires !== undefined) warnings.push(`REQUIRES ${recipe.requires} is a version of Ollama: it is kept`);
  const linesOf = (name: Name) => read.filter((one) => one.name === name).map(({ line }) => line);
  const [[template], [draft]] = [linesOf("TEMPLATE"), linesOf("DRAFT")];
  return { ...recipe, lines: { from: linesOf("FROM"), adapters: linesOf("ADAPTER"), template, draft }, warnings };
}

const split = (value: string): [string, string] => {
  const at = value.indexOf("\n");
  return [value.slice(0, at), value.slice(at + 1)];
};

function addInstruction(recipe: Building, name: Exclude<Name, "PARAMETER"> | Name, value: string): void {
  switch (name) {
    case "FROM":
      recipe.from = [...recipe.from, value];
      return;
    case "ADAPTER":
      recipe.adapters = [...recipe.adapters, value];
      return;
    case "LICENSE":
      recipe.license = [...recipe.license, value];
      return;
    case "MESSAGE": {
      const [role, content] = split(value);
      if (!roles.includes(role))
        throw new UserError(`a MESSAGE is of ${roles.join(", ")}; not of ${JSON.stringify(role)}`);
      recipe.messages = [...recipe.messages, { role, content }];
      return;
    }
    case "PARAMETER":
      return;
    default: {
      if (name === "REQUIRES" && !/^v?\d+(\.\d+){0,2}(-[\w.]+)?$/.test(value)) {
        throw new UserError(`REQUIRES is a version such as 0.14.0; not ${JSON.stringify(value)}`);
      }
      const field = name.toLowerCase() as "template" | "system" | "draft" | "renderer" | "parser" | "requires";
      if (recipe[field] !== undefined) throw new UserError(`${name} is given twice`);
      recipe[field] = value;
    }
  }
}

/** A value as a Modelfile has it, so that reading it gives the same text. */
function quoted(value: string): string {
  const plain = value !== "" && !/[\n\r]/.test(value) && value.trim() === value && !value.startsWith('"');
  if (plain) return value;
  const spellings = value.includes('"') ? [`"""${value}"""`, `"${value}"`] : [`"${value}"`];
  const good = spellings.find((text) => {
    try {
      const lines = text.split("\n");
      const read = readValue(lines, 0, lines[0]);
      return read.value === value && read.next === lines.length;
    } catch {
      return false;
    }
  });
  if (good === undefined)
    throw new UserError(`a Modelfile cannot hold this text: ${JSON.stringify(value.slice(0, 80))}`);
  return good;
}

/** from: what stands behind FROM, one line each. */
export function modelfileOf(from: readonly string[], one: Omit<Package, "path" | "files">): string {
  const lines = from.map((text) => `FROM ${quoted(text)}`);
  const add = (name: string, value: string | undefined) => {
    if (value !== undefined) lines.push(`${name} ${quoted(value)}`);
  };
  add("TEMPLATE", one.template?.text);
  add("SYSTEM", one.system);
  for (const [name, value] of parameterLines(one.parameters)) add(`PARAMETER ${name}`, String(value));
  for (const { role, content } of one.messages ?? []) add(`MESSAGE ${role}`, content);
  for (const path of one.adapters ?? []) add("ADAPTER", path);
  add("DRAFT", one.draft);
  add("RENDERER", one.config.renderer);
  add("PARSER", one.config.parser);
  add("REQUIRES", one.config.requires);
  for (const text of one.license ?? []) add("LICENSE", text);
  return `${lines.join("\n")}\n`;
}
