// Owns: making a package: a base (a package, GGUF files, a folder with safetensors, or blobs that were sent before) with
// what a Modelfile adds to it. Files become blobs first, the manifest last; what the base has is named again, not copied.
import { constants, copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { FormatError, UserError } from "../base/errors.js";
import { adopt, blobPath, diskFailure, hasBlob, partialPath, sha256OfFile } from "./blobs.js";
import { describeModel } from "./describe.js";
import { isFolderFile } from "./hub.js";
import { Hold } from "./keep.js";
import {
  configType,
  type Descriptor,
  encodeManifest,
  hexOf,
  layerType,
  manifestType,
  titled,
  titleOf,
} from "./manifest.js";
import { atLine, type Recipe } from "./modelfile.js";
import { isPathSpelling, parsePackageName } from "./names.js";
import { configBlob, fileLayer, linkModel, modelKey, type Package, type PackageConfig } from "./package.js";
import { parameterNames } from "./parameters.js";
import type { PullOptions } from "./report.js";
import { newName, type Store } from "./store.js";

export interface CreateRequest extends Partial<Omit<Recipe, "warnings">> {
  /** Where paths are relative to; undefined: `from` holds names only, and there are no paths. */
  readonly folder?: string;
  /** Blobs that are here, by what they are called: name → "sha256:…". In place of `from`. */
  readonly files?: Readonly<Record<string, string>>;
  readonly adapterFiles?: Readonly<Record<string, string>>;
  readonly draftFiles?: Readonly<Record<string, string>>;
  /** "q4_K_M"…: weights are quantised on the way. */
  readonly quantize?: string;
  readonly draftQuantize?: string;
}

interface Base {
  readonly layers: readonly Descriptor[];
  readonly config: PackageConfig;
}

/** Writes the model at `path` as one quantised GGUF at `output`: host/ has it. */
export type Quantizer = (
  path: string,
  quantisation: string,
  output: string,
  options: { readonly onProgress?: (done: number, total: number) => void; readonly signal?: AbortSignal },
) => Promise<void>;

export interface CreateOptions extends PullOptions {
  /** Needed where a request asks to quantise. */
  readonly quantizer?: Quantizer;
}

/** Throws UserError for a base that is not there, or a request that makes no sense; nothing is left named then. */
export async function createPackage(
  store: Store,
  name: string,
  request: CreateRequest,
  options: CreateOptions = {},
): Promise<Package> {
  const id = newName(name);
  const hold = new Hold(store.folder);
  try {
    const work = new Creation(store, hold, request, options);
    const base = await work.quantised(await work.base());
    const layers = await work.layers(base.layers);
    const { renderer, parser, requires } = request;
    const config = { ...base.config, ...defined({ renderer, parser, requires }) };
    const blob = await work.text(configType, JSON.stringify(configBlob(config, layers)));
    options.signal?.throwIfAborted();
    options.report?.status?.("writing manifest");
    const manifest = { schemaVersion: 2, mediaType: manifestType, config: blob, layers } as const;
    return await store.commit(id, encodeManifest(manifest));
  } catch (error) {
    throw diskFailure(error, store.folder);
  } finally {
    hold.release();
  }
}

function defined<T extends object>(fields: T): Partial<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Partial<T>;
}

/** Behind the model's own files, in this order whatever the base had, so that what says the same has one digest. */
const order: readonly string[] = [
  layerType.template,
  layerType.system,
  layerType.messages,
  layerType.license,
  layerType.parameters,
  layerType.adapter,
  layerType.draft,
];

/** Said once, and replaced by a new one. */
const replaced: readonly string[] = [layerType.template, layerType.system, layerType.messages];

class Creation {
  constructor(
    private readonly store: Store,
    private readonly hold: Hold,
    private readonly request: CreateRequest,
    private readonly options: CreateOptions,
  ) {}

  async base(): Promise<Base> {
    const { from = [], files } = this.request;
    if (files !== undefined && Object.keys(files).length > 0) {
      if (from.length > 0) throw new UserError("a package is made from a model (from) or from files: give one of them");
      return this.fromFiles(await this.sent(files));
    }
    if (from.length === 0) throw new UserError("a package is made from something: from or files is missing");
    const { lines } = this.request;
    const layers: Descriptor[] = [];
    for (const [index, one] of from.entries()) {
      const work = async () => {
        const path = this.pathOf(one);
        if (path !== null) return void layers.push(...(await this.modelLayers(path)));
        if (from.length > 1) throw new UserError("several FROM are the files of one model; a package stands alone");
        return this.fromPackage(one);
      };
      const base = await onLine(lines?.from[index], work);
      if (base !== undefined) return base;
    }
    return onLine(lines?.from[0], () => this.fromFiles(layers));
  }

  /** The base with its model quantised, where the request asks for that. */
  async quantised(base: Base): Promise<Base> {
    const { quantize } = this.request;
    if (!quantize) return base;
    this.options.report?.status?.(`quantizing ${base.config.quantization} model to ${quantize.toUpperCase()}`);
    const model = await this.quantise(base.layers, quantize);
    const rest = base.layers.filter(({ mediaType }) => mediaType !== layerType.model && mediaType !== layerType.file);
    return this.fromFiles([model, ...rest]);
  }

  /** The model among the layers as one GGUF file. */
  private async quantise(layers: readonly Descriptor[], quantize: string): Promise<Descriptor> {
    const { quantizer, report, signal } = this.options;
    if (quantizer === undefined) throw new UserError("this store cannot quantise", { status: 501, param: "quantize" });
    const { folder } = this.store;
    await this.hold.add(modelKey(layers));
    const path = linkModel(folder, layers);
    const name = `${basename(path).replace(/\.gguf$/, "")}-${quantize.toLowerCase()}.gguf`;
    const output = partialPath(folder, `quantised.${process.pid}.${Date.now()}`);
    mkdirSync(join(folder, "partial"), { recursive: true });
    try {
      const onProgress = (done: number, total: number) => report?.progress?.(name, done, total);
      await quantizer(path, quantize, output, { onProgress, ...(signal === undefined ? {} : { signal }) });
      const sha256 = await sha256OfFile(output, undefined, signal);
      await this.hold.add(sha256);
      const { bytes } = await adopt(folder, output, name, { kind: "sha256", hex: sha256 });
      return fileLayer({ name, sha256, bytes });
    } finally {
      rmSync(output, { force: true });
    }
  }

  /** null: a package's name. */
  private pathOf(from: string): string | null {
    const { folder } = this.request;
    if (folder === undefined) {
      if (!isPathSpelling(from)) return null;
      throw new UserError(`${from} is a path: send the file as a blob and name it in files`, { param: "from" });
    }
    if (!isPathSpelling(from) && this.store.package(from) !== null) return null;
    const path = absolute(from, folder);
    const there = statSync(path, { throwIfNoEntry: false }) !== undefined;
    if (there) return path;
    if (isPathSpelling(from) || parsePackageName(from) === null) {
      throw new UserError(`there is no file or folder ${path}`, { status: 404, code: "model_not_found" });
    }
    return null;
  }

  private async fromPackage(name: string): Promise<Base> {
    const one = this.store.package(name) ?? (await this.store.pull(name, this.options));
    const read = this.store.manifest(one.name);
    if (read === null) throw new UserError(`${name} was removed meanwhile`, { status: 404, code: "model_not_found" });
    await this.hold.add(...read.layers.map(({ digest }) => hexOf(digest)), hexOf(read.config.digest));
    for (const { digest, size } of read.layers) {
      this.options.report?.status?.(`using existing layer ${digest}`);
      if (!hasBlob(this.store.folder, hexOf(digest), size)) throw new UserError(`${name} was removed meanwhile`);
    }
    return { layers: read.layers, config: one.config };
  }

  private async fromFiles(layers: readonly Descriptor[]): Promise<Base> {
    const models = layers.filter(({ mediaType }) => mediaType === layerType.model).map((layer) => titleOf(layer) ?? "");
    if (layers.length === 0) throw new UserError("there is no model among the files");
    if (models.length > 1 && !models.every((name) => splitPattern.test(name))) {
      throw new UserError(`a package has one model; these are several: ${models.join(", ")}`);
    }
    await this.hold.add(modelKey(layers));
    this.options.report?.status?.("parsing GGUF");
    return { layers, config: await describeModel(linkModel(this.store.folder, layers)) };
  }

  /** A GGUF with its other parts, or the files of a Hugging Face folder. */
  private async modelLayers(path: string): Promise<Descriptor[]> {
    const isFolder = statSync(path).isDirectory();
    const root = isFolder ? path : dirname(path);
    const layers: Descriptor[] = [];
    for (const name of isFolder ? folderFilesOf(path) : partsOf(path)) {
      const { sha256, bytes } = await this.addFile(join(root, name));
      layers.push(await this.modelLayer({ name, sha256, bytes }));
    }
    return layers;
  }

  /** A GGUF of an image projector is no model of its own. */
  private async modelLayer(file: { name: string; sha256: string; bytes: number }): Promise<Descriptor> {
    const layer = fileLayer(file);
    if (layer.mediaType !== layerType.model) return layer;
    if (splitPattern.test(file.name)) return layer;
    await this.hold.add(modelKey([layer]));
    const { family } = await describeModel(linkModel(this.store.folder, [layer]));
    return family === "clip" ? { ...layer, mediaType: layerType.projector } : layer;
  }

  /** Blobs that a client sent before. */
  private async sent(files: Readonly<Record<string, string>>): Promise<Descriptor[]> {
    const layers: Descriptor[] = [];
    for (const [name, digest] of Object.entries(files)) {
      layers.push(await this.modelLayer(await this.sentFile(name, digest)));
    }
    return layers;
  }

  private async sentFile(path: string, digest: string): Promise<{ name: string; sha256: string; bytes: number }> {
    const parts = path.split(/[\\/]/);
    const below = parts.slice(-2).join("/");
    const name = isFolderFile(below) ? below : parts.at(-1)!;
    if (!/^sha256:[0-9a-f]{64}$/.test(digest) || name === "" || name === "." || name === "..") {
      throw new UserError(`files must map a name to "sha256:…"; ${JSON.stringify(path)} does not`, { param: "files" });
    }
    const sha256 = hexOf(digest);
    await this.hold.add(sha256);
    const bytes = statSync(blobPath(this.store.folder, sha256), { throwIfNoEntry: false })?.size;
    if (bytes === undefined) {
      throw new UserError(`there is no blob ${digest} (${path}): send it first`, {
        code: "blob_not_found",
        param: "files",
      });
    }
    // A GGUF may come under any name; in the package its name says what it is.
    const isNamed = name.endsWith(".gguf") || isModelFolderFile(name);
    return { name: isNamed ? name : `${name}.gguf`, sha256, bytes };
  }

  /** The file's content as a blob. The file itself stays as it is. */
  private async addFile(path: string): Promise<{ sha256: string; bytes: number }> {
    const { folder } = this.store;
    const { report, signal } = this.options;
    const { size } = statSync(path);
    report?.note?.(`Reading ${path}`);
    const sha256 = await sha256OfFile(path, (done) => report?.progress?.(basename(path), done, size), signal);
    await this.hold.add(sha256);
    if (hasBlob(folder, sha256, size)) {
      report?.status?.(`using existing layer sha256:${sha256}`);
      return { sha256, bytes: size };
    }
    report?.status?.(`creating new layer sha256:${sha256}`);
    mkdirSync(join(folder, "partial"), { recursive: true });
    const partial = partialPath(folder, `${sha256}.${process.pid}`);
    try {
      copyFileSync(path, partial, constants.COPYFILE_FICLONE);
      return await adopt(folder, partial, path, { kind: "sha256", hex: sha256 });
    } catch (error) {
      rmSync(partial, { force: true });
      throw error;
    }
  }

  /** The base's layers with what the request says in their place or beside them. */
  async layers(base: readonly Descriptor[]): Promise<Descriptor[]> {
    const { template, system, messages = [], license = [], parameters = {} } = this.request;
    const texts: [type: string, text: string | undefined][] = [
      [layerType.template, template],
      [layerType.system, system],
      [layerType.messages, messages.length === 0 ? undefined : JSON.stringify(messages)],
      ...license.map((text): [string, string] => [layerType.license, text]),
    ];
    const { lines } = this.request;
    if (template !== undefined) await onLine(lines?.template, () => checkTemplate(template));
    let layers = [...base];
    for (const [type, text] of texts) {
      if (text === undefined) continue;
      if (replaced.includes(type)) layers = layers.filter(({ mediaType }) => mediaType !== type);
      // An empty text takes away what the base has.
      if (text !== "") layers.push(await this.text(type, text));
    }
    layers = await this.withParameters(layers, parameters);
    layers.push(...(await this.adapters(layers)), ...(await onLine(lines?.draft, () => this.draft())));
    return layers.sort((a, b) => order.indexOf(a.mediaType) - order.indexOf(b.mediaType));
  }

  private async withParameters(layers: readonly Descriptor[], parameters: object): Promise<Descriptor[]> {
    if (Object.keys(parameters).length === 0) return [...layers];
    const before = layers.find(({ mediaType }) => mediaType === layerType.parameters);
    const inherited = before === undefined ? {} : (JSON.parse(this.store.blobText(before)) as object);
    const all: Record<string, unknown> = { ...inherited, ...parameters };
    // In one order, so that the same parameters are the same blob.
    const names = [...parameterNames.filter((name) => name in all), ...Object.keys(all)];
    const text = JSON.stringify(Object.fromEntries(names.map((name) => [name, all[name]])));
    return [...layers.filter((one) => one !== before), await this.text(layerType.parameters, text)];
  }

  private async adapters(layers: readonly Descriptor[]): Promise<Descriptor[]> {
    const { adapters = [], adapterFiles = {}, folder, lines } = this.request;
    let number = layers.filter(({ mediaType }) => mediaType === layerType.adapter).length;
    const out: Descriptor[] = [];
    const add = (name: string, sha256: string, bytes: number) =>
      out.push({
        mediaType: layerType.adapter,
        digest: `sha256:${sha256}`,
        size: bytes,
        ...titled(`${number}/${name}`),
      });
    for (const [index, adapter] of adapters.entries()) {
      const path = absolute(adapter, folder ?? ".");
      for (const file of await onLine(lines?.adapters[index], () => adapterFilesOf(path))) {
        const { sha256, bytes } = await this.addFile(file);
        add(basename(file), sha256, bytes);
      }
      number++;
    }
    for (const [path, digest] of Object.entries(adapterFiles)) {
      const { sha256, bytes } = await this.sentFile(path, digest);
      add(path.split(/[\\/]/).at(-1)!, sha256, bytes);
    }
    return out;
  }

  /** The model that guesses, quantised where the request asks for that. */
  private async draft(): Promise<Descriptor[]> {
    const given = await this.draftLayer();
    const { draftQuantize } = this.request;
    if (!draftQuantize) return given === undefined ? [] : [{ ...given, mediaType: layerType.draft }];
    if (given === undefined) throw new UserError("there is no DRAFT to quantise", { param: "draft_quantize" });
    this.options.report?.status?.(`quantizing draft model to ${draftQuantize.toUpperCase()}`);
    return [{ ...(await this.quantise([given], draftQuantize)), mediaType: layerType.draft }];
  }

  /** As a model's layer; undefined: none is asked for. */
  private async draftLayer(): Promise<Descriptor | undefined> {
    const { draft, draftFiles = {}, folder } = this.request;
    const [sent] = Object.entries(draftFiles);
    if (sent !== undefined) return fileLayer(await this.sentFile(...sent));
    if (draft === undefined) return undefined;
    const path = folder === undefined ? null : absolute(draft, folder);
    if (path !== null && statSync(path, { throwIfNoEntry: false })?.isFile()) {
      return fileLayer({ name: basename(path), ...(await this.addFile(path)) });
    }
    const { layers } = await this.fromPackage(draft);
    const models = layers.filter(({ mediaType }) => mediaType === layerType.model);
    if (models.length !== 1) throw new UserError(`${draft} is no draft model: it must be one GGUF file`);
    return models[0];
  }

  text(mediaType: string, text: string): Promise<Descriptor> {
    return this.store.addText(this.hold, mediaType, text);
  }
}

function absolute(path: string, folder: string): string {
  const expanded = path.replace(/^~(?=[\\/])/, homedir());
  return isAbsolute(expanded) ? expanded : resolve(folder, expanded);
}

/** A part of a split GGUF: what all parts are called, and how many there are. */
const splitPattern = /^(.*)-\d{5}-of-(\d{5})\.gguf$/;

/** All parts of a split GGUF, by name. */
function partsOf(path: string): string[] {
  const split = splitPattern.exec(basename(path));
  if (split === null) return [basename(path)];
  const parts = readdirSync(dirname(path)).filter((name) => {
    const other = splitPattern.exec(name);
    return other?.[1] === split[1] && other[2] === split[2];
  });
  return parts.sort();
}

const isModelFolderFile = (name: string) => isFolderFile(name) || /^[^/]+\.safetensors(\.index\.json)?$/.test(name);

/** What makes the model, by path within the folder, "/" between. */
function folderFilesOf(path: string): string[] {
  const below = ["1_Pooling", "additional_chat_templates"].flatMap((folder) =>
    existsSync(join(path, folder)) ? readdirSync(join(path, folder)).map((name) => `${folder}/${name}`) : [],
  );
  const names = [...readdirSync(path), ...below].sort();
  const files = names.filter(isModelFolderFile);
  if (names.includes("config.json") && files.some((name) => name.endsWith(".safetensors"))) return files;
  const ggufs = names.filter((name) => /^[^/]+\.gguf$/.test(name));
  if (ggufs.length > 0) return ggufs;
  throw new FormatError(`${path} is no model folder: it holds neither config.json with safetensors nor a .gguf`);
}

function adapterFilesOf(path: string): string[] {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) throw new UserError(`there is no adapter ${path}`, { status: 404, code: "model_not_found" });
  if (!stat.isDirectory()) return [path];
  const files = ["adapter_config.json", "adapter_model.safetensors"].map((name) => join(path, name));
  if (files.every((file) => statSync(file, { throwIfNoEntry: false })?.isFile())) return files;
  throw new FormatError(`${path} is no adapter: it must hold adapter_config.json and adapter_model.safetensors`);
}

/** A failure names the Modelfile's line that asked for it. */
async function onLine<T>(line: number | undefined, work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw line !== undefined && error instanceof UserError ? atLine(line, error) : error;
  }
}

/** Where it cannot be read, now is the time to say so. */
async function checkTemplate(text: string): Promise<void> {
  const { parseTemplate } = await import("../text/any-template.js");
  parseTemplate(text);
}
