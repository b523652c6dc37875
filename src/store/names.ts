// Owns: what MODEL may be on a command line or in a request, and what it is called in the store:
//
//   [registry/][namespace/]model[:tag]       a package of an OCI registry; without a registry, Ollama's
//   hf:owner/repo[@revision][/file]          the Hugging Face hub; also hf.co/owner/repo[:quantisation]
//   https://host/path/model.gguf             one file; "#sha256=…" pins it
//   smollm2                                  the catalogue's names come before the registry's
//   ./model.gguf, /models/qwen3              a file or a folder of yours
//
// A name of the catalogue wins over a file of the same name: write ./name for that.
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { basename, resolve } from "node:path";
import { UserError } from "../base/errors.js";
import { type CatalogueEntry, catalogue, findEntry } from "./catalogue.js";
import { type HubName, parseHubName } from "./hub.js";

/** Where a package lies in the store: manifests/<registry>/<namespace>/<model>/<tag>. */
export interface PackageId {
  readonly registry: string;
  readonly namespace: string;
  readonly model: string;
  readonly tag: string;
}

export type PackageName = { readonly id: PackageId /** As people read it. */; readonly name: string } & (
  | { readonly kind: "catalogue"; readonly entry: CatalogueEntry }
  | { readonly kind: "hub"; readonly hub: HubName }
  | { readonly kind: "url"; readonly url: string }
  /** insecure: the name began with http:// */
  | { readonly kind: "registry"; readonly insecure: boolean }
);

export type ModelName = { readonly kind: "path"; readonly path: string; readonly label: string } | PackageName;

export const defaultRegistry = "registry.ollama.ai";
const defaultNamespace = "library";
const hubRegistry = "hf.co";

const part = /^\w[\w.-]{0,79}$/;
const registryPart = /^\w[\w.:-]{0,349}$/;

export function isPackageId({ registry, namespace, model, tag }: PackageId): boolean {
  return registryPart.test(registry) && [namespace, model, tag].every((text) => part.test(text));
}

/** The shortest spelling, with its tag: "llama3.2:latest", "hf.co/owner/repo:Q4_K_M". */
export function displayName({ registry, namespace, model, tag }: PackageId): string {
  const before = registry !== defaultRegistry ? `${registry}/${namespace}/` : `${namespace}/`;
  return `${before === `${defaultNamespace}/` ? "" : before}${model}:${tag}`;
}

/** null: not a name, whatever else it may be. */
export function parsePackageId(text: string): PackageId | null {
  const parts = text.split("/");
  const last = parts.pop()!;
  const colon = last.indexOf(":");
  const model = colon < 0 ? last : last.slice(0, colon);
  const tag = colon < 0 ? "latest" : last.slice(colon + 1);
  const namespace = parts.pop() ?? defaultNamespace;
  const registry = parts.pop() ?? defaultRegistry;
  const id = { registry, namespace, model, tag };
  return parts.length === 0 && isPackageId(id) ? id : null;
}

const shortHash = (text: string) => createHash("sha256").update(text).digest("hex").slice(0, 8);
const safe = (text: string) => text.replace(/[^\w.-]+/g, "-").replace(/^[^\w]+/, "");

/** A revision or a file becomes part of the tag, so that both may be in the store. */
function hubPackage(hub: HubName): PackageName {
  const [namespace, model] = hub.repo.split("/");
  const plain = hub.file === undefined && hub.revision === "main";
  const where = `${hub.revision === "main" ? "" : `@${hub.revision}`}${hub.file === undefined ? "" : `/${hub.file}`}`;
  const tag = plain ? (hub.quant ?? "latest") : `${safe(basename(where)).slice(0, 60)}-${shortHash(where)}`;
  const id = { registry: hubRegistry, namespace, model, tag };
  return { kind: "hub", id, hub, name: plain ? displayName(id) : `hf:${hub.repo}${where}` };
}

function urlPackage(url: string): PackageName {
  const { host, pathname } = new URL(url);
  const model = safe(basename(decodeURIComponent(pathname)).replace(/\.gguf$/i, "")).slice(0, 80) || "model";
  const plain = url.replace(/#.*$/, "");
  return { kind: "url", url, name: plain, id: { registry: host, namespace: "url", model, tag: shortHash(plain) } };
}

/** The name of a package, here or not; null for what can only be a path, or nothing. */
export function parsePackageName(text: string): PackageName | null {
  if (text.startsWith("hf:")) return hubPackage(parseHubName(text.slice(3)));
  const scheme = /^(https?):\/\//.exec(text)?.[1];
  if (scheme !== undefined && /^[^?#]*\.gguf([?#]|$)/i.test(text)) return urlPackage(text);
  const bare = scheme === undefined ? text : text.slice(scheme.length + 3);
  const entry = findEntry(bare.replace(/:latest$/, ""));
  if (entry !== undefined) {
    const id = { registry: defaultRegistry, namespace: defaultNamespace, model: entry.name, tag: "latest" };
    return { kind: "catalogue", id, entry, name: displayName(id) };
  }
  const id = parsePackageId(bare);
  if (id === null) return null;
  if (id.registry === hubRegistry || id.registry === "huggingface.co") {
    const repo = `${id.namespace}/${id.model}`;
    return hubPackage({ repo, revision: "main", ...(id.tag === "latest" ? {} : { quant: id.tag }) });
  }
  return { kind: "registry", id, insecure: scheme === "http", name: displayName(id) };
}

export const isOnThisMachine = (registry: string) => /^(localhost|127\.\d+\.\d+\.\d+)(:\d+)?$/.test(registry);

/** A path by its spelling, whether or not something is there. */
export function isPathSpelling(text: string): boolean {
  return (
    /^(\.{0,2}[\\/]|~[\\/]|[A-Za-z]:[\\/])|\\|\.(gguf|safetensors)$/.test(text) && !/^(hf:|https?:\/\/)/.test(text)
  );
}

/** What would be a model, for errors about what is none. */
export function whatAModelIs(): string {
  const known = catalogue.map(({ name, title }) => `${name} (${title})`).join(", ");
  return (
    `A model is a name in the catalogue: ${known}; a name in a registry ([registry/][namespace/]model[:tag]); ` +
    "the path of a .gguf file or of a Hugging Face folder; hf:owner/repo; or the address of a .gguf file."
  );
}

export function notAModel(model: string): UserError {
  const what = isPathSpelling(model)
    ? `there is no file or folder ${model}`
    : `${JSON.stringify(model)} is no model's name, and there is no file of that name`;
  return new UserError(`${what}. ${whatAModelIs()}`, { status: 404, code: "model_not_found" });
}

/** What is not in the store yet. Throws UserError for what is no name and no path. */
export function parseModelName(model: string): ModelName {
  const name = isPathSpelling(model) ? null : parsePackageName(model);
  if (name !== null && name.kind !== "registry") return name;
  const path = resolve(model);
  if (model !== "" && statSync(path, { throwIfNoEntry: false }) !== undefined) {
    return { kind: "path", path, label: basename(path).replace(/\.gguf$/, "") };
  }
  if (name === null) throw notAModel(model);
  return name;
}
