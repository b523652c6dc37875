// Owns: a package as the rest of millrace sees it: a manifest with what its layers say, and the model's files under their
// own names, as openCheckpoint takes them.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { log } from "../base/log.js";
import { type TemplateKind, templateKind } from "../text/template-kind.js";
import { blobPath, hasBlob, linkBlob } from "./blobs.js";
import {
  type Descriptor,
  descriptorsOf,
  hexOf,
  layerType,
  type OciManifest,
  type ReadManifest,
  statedName,
  titled,
  titleOf,
} from "./manifest.js";
import { displayName } from "./names.js";
import { type ModelParameters, parameterNames, parametersOf } from "./parameters.js";

export interface PackageConfig {
  readonly format: "gguf" | "safetensors" | "";
  /** GGUF's architecture, or the folder's model_type; "" where it is not known. */
  readonly family: string;
  readonly families: readonly string[];
  /** For people: "134.5M". */
  readonly parameterSize: string;
  /** For people: "Q4_K_M", "BF16". */
  readonly quantization: string;
  /** Names of prompt renderers and output parsers inside Ollama. */
  readonly renderer?: string;
  readonly parser?: string;
  /** The least version of Ollama that the package asks for. */
  readonly requires?: string;
}

export interface PackageMessage {
  readonly role: string;
  readonly content: string;
}

export interface PackageFile {
  readonly name: string;
  readonly sha256: string;
  readonly bytes: number;
}

export interface Package {
  /** "smollm2:latest", "registry.example.org/team/model:q4", "hf:owner/repo/file.gguf" */
  readonly name: string;
  /** SHA-256 of the manifest, hexadecimal. */
  readonly digest: string;
  /** Of the model's .gguf file, or of a folder. */
  readonly path: string;
  /** Of everything in it. */
  readonly bytes: number;
  /** ISO 8601. */
  readonly modifiedAt: string;
  readonly config: PackageConfig;
  /** Takes the place of the model's own. */
  readonly template?: { readonly text: string; readonly kind: TemplateKind };
  readonly system?: string;
  /** Come before every conversation. */
  readonly messages?: readonly PackageMessage[];
  readonly parameters: ModelParameters;
  readonly license?: readonly string[];
  /** Paths: a GGUF file, or a folder with adapter_config.json and safetensors. */
  readonly adapters?: readonly string[];
  /** Path of a draft model's GGUF. */
  readonly draft?: string;
  /** Paths of image projectors: the model could see, but nothing here reads them. */
  readonly projectors?: readonly string[];
  /** The model's own files. */
  readonly files: readonly PackageFile[];
}

/** The config blob, in Ollama's words. */
export interface ConfigBlob {
  readonly model_format?: string;
  readonly model_family?: string;
  readonly model_families?: readonly string[] | null;
  readonly model_type?: string;
  readonly file_type?: string;
  readonly renderer?: string;
  readonly parser?: string;
  readonly requires?: string;
  readonly [field: string]: unknown;
}

export function configOf(blob: ConfigBlob): PackageConfig {
  const { model_format: format, renderer, parser, requires } = blob;
  return {
    format: format === "gguf" || format === "safetensors" ? format : "",
    family: blob.model_family ?? "",
    families: blob.model_families ?? [],
    parameterSize: blob.model_type ?? "",
    quantization: blob.file_type ?? "",
    ...(renderer === undefined ? {} : { renderer }),
    ...(parser === undefined ? {} : { parser }),
    ...(requires === undefined ? {} : { requires }),
  };
}

export function configBlob(config: PackageConfig, layers: readonly Descriptor[]): ConfigBlob {
  const { format, family, families, parameterSize, quantization, ...rest } = config;
  return {
    model_format: format,
    model_family: family,
    model_families: families,
    model_type: parameterSize,
    file_type: quantization,
    ...rest,
    architecture: "amd64",
    os: "linux",
    rootfs: { type: "layers", diff_ids: layers.map(({ digest }) => digest) },
  };
}

const isModelFile = ({ mediaType }: Descriptor) => mediaType === layerType.model || mediaType === layerType.file;

const ggufTitle = (layer: Descriptor, at: number) => titleOf(layer) ?? (at === 0 ? "model.gguf" : `model-${at}.gguf`);

/** A folder below models/ that holds these layers under their names. */
interface Links {
  readonly key: string;
  readonly files: readonly PackageFile[];
}

function linksOf(layers: readonly Descriptor[]): Links {
  const files = layers.map((layer, at) => ({
    name: ggufTitle(layer, at),
    sha256: hexOf(layer.digest),
    bytes: layer.size,
  }));
  const text = files.map(({ name, sha256 }) => `${name}\0${sha256}\n`).sort();
  return { key: createHash("sha256").update(text.join("")).digest("hex").slice(0, 24), files };
}

const pathOf = (folder: string, { key, files }: Links) => {
  const ggufs = files.map(({ name }) => name).filter((name) => name.endsWith(".gguf"));
  const root = join(folder, "models", key);
  return ggufs.length > 0 ? join(root, ggufs.sort()[0]) : root;
};

/** Adapters of several files carry their number: "0/adapter_config.json". */
function adapterGroups(layers: readonly Descriptor[]): Descriptor[][] {
  const groups = new Map<string, Descriptor[]>();
  for (const [at, layer] of layers.entries()) {
    const key = /^(\d+)\//.exec(titleOf(layer) ?? "")?.[1] ?? `single ${at}`;
    groups.set(key, [...(groups.get(key) ?? []), layer]);
  }
  return [...groups.values()];
}

interface Parts {
  readonly model: Links;
  readonly adapters: readonly Links[];
  readonly drafts: readonly Links[];
  readonly projectors: readonly Links[];
}

function partsOf({ layers }: OciManifest): Parts {
  const of = (type: string) => layers.filter(({ mediaType }) => mediaType === type);
  return {
    model: linksOf(layers.filter(isModelFile)),
    adapters: adapterGroups(of(layerType.adapter)).map((group) => linksOf(withoutNumber(group))),
    drafts: of(layerType.draft).map((layer) => linksOf([layer])),
    projectors: of(layerType.projector).map((layer) => linksOf([layer])),
  };
}

const withoutNumber = (layers: readonly Descriptor[]) =>
  layers.map((layer) => {
    const title = titleOf(layer)?.replace(/^\d+\//, "");
    return title === undefined ? layer : { ...layer, ...titled(title) };
  });

const allLinks = ({ model, adapters, drafts, projectors }: Parts) => [model, ...adapters, ...drafts, ...projectors];

/** Names of the folders below models/ that belong to the manifest. */
export function linkKeys(manifest: OciManifest): string[] {
  return allLinks(partsOf(manifest)).map(({ key }) => key);
}

/** Of the model's own files. */
export const modelKey = (layers: readonly Descriptor[]) => linksOf(layers.filter(isModelFile)).key;

/** The path of the model's files, linked under their names. All blobs must be here. */
export function linkModel(folder: string, layers: readonly Descriptor[]): string {
  const links = linksOf(layers.filter(isModelFile));
  link(folder, links);
  return pathOf(folder, links);
}

/** A model's file as a layer: a .gguf is what Ollama calls a model. */
export function fileLayer({ name, sha256, bytes }: PackageFile): Descriptor {
  const mediaType = name.endsWith(".gguf") ? layerType.model : layerType.file;
  return { mediaType, digest: `sha256:${sha256}`, size: bytes, ...titled(name) };
}

function link(folder: string, { key, files }: Links): void {
  for (const { name, sha256, bytes } of files) linkBlob(folder, sha256, bytes, join(folder, "models", key, name));
}

/** Whether every blob is here; content was verified when it came. */
export function isWhole(folder: string, manifest: OciManifest): boolean {
  return descriptorsOf(manifest).every(({ digest, size }) => hasBlob(folder, hexOf(digest), size));
}

/** null: a blob of it is missing, or it holds no model. */
export function openPackage(folder: string, { id, manifest, digest, modifiedAt }: ReadManifest): Package | null {
  if (!isWhole(folder, manifest) || !manifest.layers.some(isModelFile)) return null;
  const text = (layer: Descriptor) => readFileSync(blobPath(folder, hexOf(layer.digest)), "utf8");
  const texts = (type: string) => manifest.layers.filter((layer) => layer.mediaType === type).map(text);
  const parts = partsOf(manifest);
  for (const links of allLinks(parts)) link(folder, links);
  const [template] = texts(layerType.template);
  const [system] = texts(layerType.system);
  const [messages] = texts(layerType.messages);
  const [parameters] = texts(layerType.parameters);
  const license = texts(layerType.license);
  const paths = (links: readonly Links[]) => links.map((one) => pathOf(folder, one));
  const [adapters, drafts, projectors] = [parts.adapters, parts.drafts, parts.projectors].map(paths);
  return {
    name: statedName(manifest) ?? displayName(id),
    digest,
    path: pathOf(folder, parts.model),
    bytes: descriptorsOf(manifest).reduce((sum, { size }) => sum + size, 0),
    modifiedAt: modifiedAt.toISOString(),
    config: configOf(JSON.parse(text(manifest.config)) as ConfigBlob),
    ...(template === undefined ? {} : { template: { text: template, kind: templateKind(template) } }),
    ...(system === undefined ? {} : { system }),
    ...(messages === undefined ? {} : { messages: JSON.parse(messages) as PackageMessage[] }),
    parameters: parameters === undefined ? {} : knownParameters(JSON.parse(parameters), displayName(id)),
    ...(license.length === 0 ? {} : { license }),
    ...(adapters.length === 0 ? {} : { adapters }),
    ...(drafts.length === 0 ? {} : { draft: drafts[0] }),
    ...(projectors.length === 0 ? {} : { projectors }),
    files: parts.model.files,
  };
}

/** Published packages may have what this version does not know: worth a word, not a refusal. */
function knownParameters(given: Readonly<Record<string, unknown>>, name: string): ModelParameters {
  const known = Object.entries(given).filter(([key]) => (parameterNames as readonly string[]).includes(key));
  const left = Object.keys(given).filter((key) => !known.some(([one]) => one === key));
  if (left.length > 0) log.warn(`${name}: parameters that millrace does not know are left out: ${left.join(", ")}`);
  return parametersOf(Object.fromEntries(known));
}
