// Owns: manifests in OCI layout with the media types of Ollama's registry: what one is, where it lies, reading them, and
// writing one whole or not at all. A model of several files (safetensors, split GGUF) has one layer a file, which carries
// its name as OCI's title.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { FormatError } from "../base/errors.js";
import { moveIntoPlace } from "./blobs.js";
import { isPackageId, type PackageId } from "./names.js";

export const manifestType = "application/vnd.docker.distribution.manifest.v2+json";
export const ociManifestType = "application/vnd.oci.image.manifest.v1+json";
export const configType = "application/vnd.docker.container.image.v1+json";

const ollama = "application/vnd.ollama.image.";
export const layerType = {
  model: `${ollama}model`,
  adapter: `${ollama}adapter`,
  projector: `${ollama}projector`,
  draft: `${ollama}draft`,
  template: `${ollama}template`,
  system: `${ollama}system`,
  parameters: `${ollama}params`,
  messages: `${ollama}messages`,
  license: `${ollama}license`,
  /** Any file of a Hugging Face folder. */
  file: "application/vnd.millrace.image.file",
} as const;

const titleKey = "org.opencontainers.image.title";
const nameKey = "org.millrace.name";

export interface Descriptor {
  readonly mediaType: string;
  /** "sha256:" and 64 hexadecimal digits. */
  readonly digest: string;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface OciManifest {
  readonly schemaVersion: 2;
  readonly mediaType: string;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface ReadManifest {
  readonly id: PackageId;
  readonly manifest: OciManifest;
  readonly text: string;
  /** SHA-256 of the manifest's bytes. */
  readonly digest: string;
  readonly modifiedAt: Date;
}

export const hexOf = (digest: string) => digest.slice("sha256:".length);

export function titleOf({ annotations }: Descriptor): string | undefined {
  return annotations?.[titleKey];
}

export const titled = (title: string) => ({ annotations: { [titleKey]: title } });

/** What the package is called where its place in the store does not say it all. */
export function statedName({ annotations }: OciManifest): string | undefined {
  return annotations?.[nameKey];
}

export const named = (name: string) => ({ annotations: { [nameKey]: name } });

function isDescriptor(value: unknown): value is Descriptor {
  const { mediaType, digest, size } = (value ?? {}) as Partial<Descriptor>;
  return (
    typeof mediaType === "string" &&
    typeof digest === "string" &&
    /^sha256:[0-9a-f]{64}$/.test(digest) &&
    Number.isSafeInteger(size) &&
    size! >= 0
  );
}

/** A title becomes a path below models/: none may lead out of it. */
function isSafeTitle(title: unknown): boolean {
  return (
    title === undefined ||
    (typeof title === "string" &&
      !/[\\\0:]/.test(title) &&
      title.split("/").every((one) => one !== "" && one !== "." && one !== ".."))
  );
}

/** Throws FormatError for what is no manifest of a model, or an unsafe one. */
export function parseManifest(text: string, what: string): OciManifest {
  let value: Partial<OciManifest>;
  try {
    value = (JSON.parse(text) ?? {}) as Partial<OciManifest>;
  } catch (error) {
    throw new FormatError(`${what} is no manifest: ${(error as Error).message}`, error);
  }
  const { layers, config } = value;
  if (!Array.isArray(layers) || !isDescriptor(config) || !layers.every(isDescriptor)) {
    throw new FormatError(`${what} is no manifest of a model: it must have a config and layers with their digests`);
  }
  const unsafe = layers.map(titleOf).find((title) => !isSafeTitle(title));
  if (unsafe !== undefined) {
    throw new FormatError(`${what} names a file with an unsafe path: ${JSON.stringify(unsafe)}`);
  }
  return value as OciManifest;
}

export function descriptorsOf({ config, layers }: OciManifest): Descriptor[] {
  return [config, ...layers];
}

export const encodeManifest = (manifest: OciManifest) => JSON.stringify(manifest);

export function manifestPath(folder: string, { registry, namespace, model, tag }: PackageId): string {
  return join(folder, "manifests", registry, namespace, model, tag);
}

/** null: not here. Throws FormatError for one that cannot be read. */
export function readManifest(folder: string, id: PackageId): ReadManifest | null {
  const path = manifestPath(folder, id);
  let text: string;
  let modifiedAt: Date;
  try {
    text = readFileSync(path, "utf8");
    modifiedAt = statSync(path).mtime;
  } catch {
    return null;
  }
  const digest = createHash("sha256").update(text).digest("hex");
  return { id, manifest: parseManifest(text, path), text, digest, modifiedAt };
}

/** Durable once it returns; the bytes are kept as they are, for they are what the digest names. */
export function writeManifest(folder: string, id: PackageId, text: string): void {
  const path = manifestPath(folder, id);
  mkdirSync(join(folder, "partial"), { recursive: true });
  const temporary = join(folder, "partial", `manifest-${process.pid}-${id.model}-${id.tag}`);
  writeFileSync(temporary, text);
  moveIntoPlace(temporary, path);
}

/** Of the packages that are here; what is no package's place is passed over. */
export function listIds(folder: string): PackageId[] {
  const below = (...parts: string[]): string[] => {
    try {
      return readdirSync(join(folder, "manifests", ...parts));
    } catch {
      return [];
    }
  };
  return below().flatMap((registry) =>
    below(registry).flatMap((namespace) =>
      below(registry, namespace).flatMap((model) =>
        below(registry, namespace, model)
          .map((tag) => ({ registry, namespace, model, tag }))
          .filter(isPackageId),
      ),
    ),
  );
}

/** Empty folders above a manifest that was removed. */
export function removeEmptyFolders(folder: string, id: PackageId): void {
  let path = dirname(manifestPath(folder, id));
  for (let depth = 0; depth < 3; depth++, path = dirname(path)) {
    try {
      rmdirSync(path);
    } catch {
      return;
    }
  }
}
