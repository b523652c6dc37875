// Owns: API keys as a server keeps them: a name, what the key may do, and its SHA-256; never the key itself. The file has
// one key a line: NAME SCOPE[,SCOPE…] SHA256. Keys are 256 random bits, so a plain hash cannot be turned back.
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { UserError } from "../base/errors.js";

/** infer: ask models; manage: pull, push, create, copy and delete packages; metrics: read the server's numbers. */
export const scopes = ["infer", "manage", "metrics"] as const;
export type Scope = (typeof scopes)[number];

export interface ApiKey {
  readonly name: string;
  readonly scopes: ReadonlySet<Scope>;
  /** SHA-256 of the key. */
  readonly digest: Buffer;
}

export const digestOf = (key: string): Buffer => createHash("sha256").update(key).digest();

/** A key given in plain: it may do everything. */
export const plainKey = (key: string, index: number): ApiKey => ({
  name: `key-${index + 1}`,
  scopes: new Set(scopes),
  digest: digestOf(key),
});

/** A new key, and its line for the file. */
export function newKey(name: string, allowed: readonly Scope[]): { key: string; line: string } {
  if (!/^[\w.@-]{1,64}$/.test(name)) {
    throw new UserError(`"${name}" cannot name a key: use up to 64 letters, digits, ".", "_", "@" and "-".`);
  }
  const key = `mr-${randomBytes(32).toString("base64url")}`;
  return { key, line: `${name} ${[...new Set(allowed)].join(",")} ${digestOf(key).toString("hex")}` };
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
    if (rest.length > 0 || !/^[0-9a-f]{64}$/i.test(digest) || !named.every(isScope)) {
      throw new UserError(
        `${path}:${at + 1} is no key; a line is NAME, one or more of ${scopes.join(",")}, and 64 hex digits (millrace key makes one).`,
      );
    }
    return [{ name, scopes: new Set(named as Scope[]), digest: Buffer.from(digest, "hex") }];
  });
  if (keys.length === 0) throw new UserError(`There is no key in ${path}; millrace key makes one.`);
  return keys;
}

export const isScope = (word: string): word is Scope => (scopes as readonly string[]).includes(word);
