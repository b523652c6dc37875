// Owns: the key by which Ollama's registry knows a user (~/.ollama/id_ed25519): a token's address is signed with it, so
// that someone who pushes with Ollama pushes with millrace. Reads the key, makes none.
import { createHash, createPrivateKey, type KeyObject, randomBytes, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/** OpenSSH's private-key file: length-prefixed fields behind a magic word. */
class Fields {
  private at = 0;

  constructor(private readonly bytes: Buffer) {}

  uint32(): number {
    this.at += 4;
    return this.bytes.readUInt32BE(this.at - 4);
  }

  field(): Buffer {
    const length = this.uint32();
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }
}

interface OllamaKey {
  readonly key: KeyObject;
  /** As in an authorized_keys line. */
  readonly publicText: string;
}

/** What PKCS #8 puts before an Ed25519 seed. */
const pkcs8 = Buffer.from("302e020100300506032b657004220420", "hex");

/** Throws where the file is something else: an encrypted key, another kind. */
export function parseOpenSshKey(text: string): OllamaKey {
  const magic = "openssh-key-v1\0";
  const bytes = Buffer.from(text.replace(/-----[^-]+-----|\s/g, ""), "base64");
  if (bytes.subarray(0, magic.length).toString("latin1") !== magic) throw new Error("not an OpenSSH key");
  const outer = new Fields(bytes.subarray(magic.length));
  const cipher = outer.field().toString();
  outer.field();
  outer.field();
  outer.uint32();
  const publicBlob = outer.field();
  if (cipher !== "none") throw new Error("the key is encrypted");
  const inner = new Fields(outer.field());
  inner.uint32();
  inner.uint32();
  if (inner.field().toString() !== "ssh-ed25519") throw new Error("not an Ed25519 key");
  inner.field();
  const seed = inner.field().subarray(0, 32);
  const key = createPrivateKey({ key: Buffer.concat([pkcs8, seed]), format: "der", type: "pkcs8" });
  return { key, publicText: publicBlob.toString("base64") };
}

/** The Authorization of a GET of `url`, which gets a time and a nonce; undefined where there is no key. */
export function signedByOllamaKey(url: URL, home = homedir()): string | undefined {
  let own: OllamaKey;
  try {
    own = parseOpenSshKey(readFileSync(join(home, ".ollama", "id_ed25519"), "utf8"));
  } catch {
    return undefined;
  }
  url.searchParams.set("ts", String(Math.floor(Date.now() / 1000)));
  url.searchParams.set("nonce", randomBytes(16).toString("base64url"));
  const nothing = Buffer.from(createHash("sha256").digest("hex")).toString("base64");
  const signature = sign(null, Buffer.from(`GET,${url.href},${nothing}`), own.key);
  return `${own.publicText}:${signature.toString("base64")}`;
}
