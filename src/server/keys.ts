// Owns: API keys as a server keeps them: a name, what the key may do, and its SHA-256; never the key itself. The file has
// one key a line: NAME SCOPE[,SCOPE…] SHA256 [weight=N] [budget=N] [priority=N]. Keys are 256 random bits, so a plain hash cannot be turned back.
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { UserError } from "../base/errors.js";

/** infer: ask models; manage: pull, push, create, copy and delete packages; metrics: read the server's numbers and timelines. */
export const scopes = ["infer", "manage", "metrics"] as const;
export type Scope = (typeof scopes)[number];

export interface ApiKey {
  readonly name: string;
  readonly scopes: ReadonlySet<Scope>;
  /** SHA-256 of the key. */
  readonly digest: Buffer;
  /** Where keys want more than there is, each gets service in proportion to it; 1 unless said. */
  readonly weight?: number;
  /** Tokens, of prompts and answers together, that it may spend a day (UTC); undefined: as many as it likes. */
  readonly budget?: number;
  /** The best that its requests may ask for where there are other keys (lower goes first), at most 0; 0 unless said. */
  readonly priority?: number;
}

export type KeyTerms = Pick<ApiKey, "weight" | "budget" | "priority">;

/** The best priority that a request can ask for. */
export const bestPriority = -(2 ** 31);

export const digestOf = (key: string): Buffer => createHash("sha256").update(key).digest();

/** A key given in plain: it may do everything. */
export const plainKey = (key: string, index: number): ApiKey => ({
  name: `key-${index + 1}`,
  scopes: new Set(scopes),
  digest: digestOf(key),
  priority: bestPriority,
});

/** A new key, and its line for the file. */
export function newKey(
  name: string,
  allowed: readonly Scope[],
  { weight, budget, priority }: KeyTerms = {},
): { key: string; line: string } {
  if (!/^[\w.@-]{1,64}$/.test(name)) {
    throw new UserError(`"${name}" cannot name a key: use up to 64 letters, digits, ".", "_", "@" and "-".`);
  }
  const key = `mr-${randomBytes(32).toString("base64url")}`;
  const words = [name, [...new Set(allowed)].join(","), digestOf(key).toString("hex")];
  if (weight !== undefined) words.push(`weight=${weight}`);
  if (budget !== undefined) words.push(`budget=${budget}`);
  if (priority !== undefined) words.push(`priority=${priority}`);
  return { key, line: words.join(" ") };
}

/** Throws UserError with the line that is wrong. */
export function readKeys(path: string): ApiKey[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new UserError(`Cannot read the keys in ${path}: ${(error as Error).message}`, { cause: error });
  }
  const keys = text.split(/\r?\n/).flatMap((line, at) => {
    if (/^\s*(#|$)/.test(line)) return [];
    const [name, allowed = "", digest = "", ...rest] = line.trim().split(/\s+/);
    const named = allowed.split(",");
    const terms = termsOf(rest);
    if (terms === null || !/^[0-9a-f]{64}$/i.test(digest) || !named.every(isScope)) {
      throw new UserError(
        `${path}:${at + 1} is no key; a line is NAME, one or more of ${scopes.join(",")}, 64 hex digits (millrace key makes one), ` +
          "and it may end with weight=N (0.01 to 100), budget=N (tokens a day) and priority=N (0 or less: the best that it may ask for).",
      );
    }
    return [{ name, scopes: new Set(named as Scope[]), digest: Buffer.from(digest, "hex"), ...terms }];
  });
  const twice = keys.find(({ name }, at) => keys.findIndex((other) => other.name === name) !== at);
  if (twice !== undefined) throw new UserError(`${path} has two keys called ${twice.name}: names must differ.`);
  if (keys.length === 0) throw new UserError(`There is no key in ${path}; millrace key makes one.`);
  return keys;
}

/** null: what is said is no such thing. */
function termsOf(words: readonly string[]): KeyTerms | null {
  const terms: { weight?: number; budget?: number; priority?: number } = {};
  for (const word of words) {
    const [, name, digits] = /^(weight|budget|priority)=(-?\d{1,15}(?:\.\d+)?)$/.exec(word) ?? [];
    const value = Number(digits);
    if (name === "weight" && value >= 0.01 && value <= 100) terms.weight = value;
    else if (name === "budget" && Number.isInteger(value) && value >= 0) terms.budget = value;
    else if (name === "priority" && Number.isInteger(value) && value >= bestPriority && value <= 0)
      terms.priority = value;
    else return null;
  }
  return terms;
}

export const isScope = (word: string): word is Scope => (scopes as readonly string[]).includes(word);
