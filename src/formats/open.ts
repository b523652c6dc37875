// Owns: from a path to a Checkpoint: which files there are, that the parts of one model agree, and which bytes are whose.
// Opens a .gguf (any part of a split one; one that holds only a vocabulary too), a Hugging Face folder with safetensors,
// or a folder that holds exactly one GGUF. Reads no pickle (.bin, .pt): those run code.
import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { FormatError, InternalError, UserError } from "../base/errors.js";
import type { Checkpoint, CheckpointMeta, TensorInfo } from "./checkpoint.js";
import { type GgufHeader, parseGguf } from "./gguf.js";
import { ggufLabel, sameSplit, splitName } from "./gguf-split.js";
import { HeaderIncomplete, quote } from "./header.js";
import { readHuggingFaceFiles, readJson } from "./huggingface.js";
import { type MappedFile, mapFile, maxViewBytes } from "./mmap.js";
import { parseSafetensors, parseShardIndex, type SafetensorsTensor } from "./safetensors.js";

export interface OpenOptions {
  /** false: read the files piece by piece even where they could be mapped. */
  readonly mmap?: boolean;
}

/** path: a .gguf file or a folder. Throws UserError (404) where there is nothing, FormatError for what is not a model. */
export async function openCheckpoint(path: string, options: OpenOptions = {}): Promise<Checkpoint> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) {
    throw new UserError(`there is no file or folder ${path}`, { status: 404, code: "model_not_found" });
  }
  const absolute = resolve(path);
  return stat.isDirectory() ? openFolder(absolute, options) : openFile(absolute, options);
}

/**
 * A LoRA adapter: a GGUF file, or a PEFT folder (or its adapter_model.safetensors), whose adapter_config.json is then the
 * checkpoint's config.
 */
export async function openAdapter(path: string, options: OpenOptions = {}): Promise<Checkpoint> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) {
    throw new UserError(`there is no adapter ${path}: give a .gguf file or a PEFT folder`, {
      status: 404,
      code: "adapter_not_found",
    });
  }
  const absolute = resolve(path);
  if (!stat.isDirectory() && !path.endsWith(".safetensors")) return openFile(absolute, options);
  const folder = stat.isDirectory() ? absolute : dirname(absolute);
  const config = join(folder, "adapter_config.json");
  const weights = join(folder, "adapter_model.safetensors");
  for (const file of [config, weights]) {
    if (!existsSync(file)) throw new FormatError(`${path} is no PEFT adapter: it has no ${basename(file)}`);
  }
  const located = new Map<string, Located>();
  return withFiles((open) => {
    const file = open(weights);
    for (const tensor of parseHeader(file, parseSafetensors).tensors) locateTensor(located, tensor, file);
    const files = { config: readJson(config) as Record<string, unknown> };
    return new FileCheckpoint({ kind: "huggingface", files }, basename(folder), [file], located);
  }, options);
}

interface Located {
  readonly info: TensorInfo;
  readonly file: MappedFile;
  readonly offset: number;
}

class FileCheckpoint implements Checkpoint {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly fileBytes: number;
  readonly paths: readonly string[];
  private closed = false;

  constructor(
    readonly meta: CheckpointMeta,
    readonly label: string,
    private readonly files: readonly MappedFile[],
    private readonly located: ReadonlyMap<string, Located>,
    private readonly onClose: () => void = () => {},
  ) {
    this.tensors = new Map([...located].map(([name, { info }]) => [name, info]));
    this.paths = files.map(({ path }) => path);
    this.fileBytes = files.reduce((sum, file) => sum + file.size, 0);
  }

  read(name: string): Uint8Array {
    if (this.closed) throw new InternalError(`${this.label} was closed: ${quote(name)} can no longer be read`);
    const { file, offset, info } = this.locate(name);
    return file.view(offset, offset + info.bytes);
  }

  release(name: string): void {
    if (this.closed) return;
    const { file, offset, info } = this.locate(name);
    file.release(offset, offset + info.bytes);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.onClose();
    for (const file of this.files) file.close();
  }

  private locate(name: string): Located {
    const located = this.located.get(name);
    if (located === undefined) throw new FormatError(`${this.label} has no tensor ${quote(name)}`);
    return located;
  }
}

function openFile(path: string, options: OpenOptions): Checkpoint {
  if (/\.(bin|pt|pth|ckpt)$/.test(path)) throw pickleError(path);
  if (path.endsWith(".safetensors")) {
    throw new FormatError(`${path} is one file of a model: give the folder that also holds its config.json`);
  }
  return openGguf(path, options);
}

/** What a file is that does not begin as a GGUF does, for a message: seen at its first bytes. */
function refuseOther(file: MappedFile): void {
  const start = String.fromCharCode(...file.view(0, Math.min(file.size, 64)));
  if (start.startsWith("GGUF") || start.length < 4) return;
  const kind = beginnings.find(([beginning]) => beginning.test(start))?.[1];
  throw new FormatError(
    `${file.path} is no model file${kind === undefined ? "" : `: it is ${kind}`}; ` +
      "a model is a .gguf file, or a folder with config.json and .safetensors files",
  );
}

const beginnings: readonly (readonly [beginning: RegExp, kind: string])[] = [
  [/^version https:\/\/git-lfs/, "the pointer that Git LFS puts in a file's place (git lfs pull fetches the file)"],
  [/^\s*<(!doctype|html|\?xml)/i, "a web page: the download brought something else than the file"],
  [/^PK|^\x80/, "in PyTorch's pickle format or a ZIP archive, which is never read"],
  [/^(ggml|lmgg|fmgg|tjgg|ggjt|ggmf|algg)/, "in a format older than GGUF: convert the original model again"],
  [/^.{8}\{"/s, "one safetensors file of a model: give the folder that also holds its config.json"],
];

function pickleError(path: string): FormatError {
  return new FormatError(
    `${path} is in PyTorch's pickle format, which can run code and is never read: use safetensors or GGUF`,
  );
}

/** Closes what has been opened when opening the rest fails. */
function withFiles<T>(body: (open: (path: string) => MappedFile) => T, options: OpenOptions): T {
  const files: MappedFile[] = [];
  try {
    return body((path) => {
      const file = mapFile(path, options);
      files.push(file);
      return file;
    });
  } catch (error) {
    for (const file of files) file.close();
    throw error;
  }
}

/** Parses the header from the beginning of the file, however long it is. Errors name the file. */
function parseHeader<H>(file: MappedFile, parse: (bytes: Uint8Array, fileBytes: number) => H): H {
  const limit = Math.min(file.size, maxViewBytes);
  let length = file.mapped ? limit : Math.min(limit, 2 ** 20);
  for (;;) {
    try {
      return parse(file.view(0, length), file.size);
    } catch (error) {
      if (error instanceof HeaderIncomplete && length < limit) {
        length = Math.min(limit, Math.max(error.needed, 4 * length));
      } else if (error instanceof FormatError) {
        throw new FormatError(`${file.path}: ${error.message}`, error);
      } else {
        throw error;
      }
    }
  }
}

function openGguf(path: string, options: OpenOptions): Checkpoint {
  return withFiles((open) => {
    const first = open(path);
    refuseOther(first);
    const firstHeader = parseHeader(first, parseGguf);
    const parts = splitParts(path, first, firstHeader, open);
    const located = new Map<string, Located>();
    for (const { file, header } of parts) {
      for (const { offset, ...info } of header.tensors) {
        if (located.has(info.name))
          throw new FormatError(`${file.path}: tensor ${quote(info.name)} is in another part too`);
        located.set(info.name, { info, file, offset });
      }
    }
    const { values, stored } = parts[0].header;
    const stated = values.get("split.tensors.count");
    if (parts.length > 1 && stated !== undefined && stated !== located.size) {
      throw new FormatError(
        `${path}: split.tensors.count is ${String(stated)}, but the parts hold ${located.size} tensors`,
      );
    }
    const forget = () => {
      for (const { header } of parts) header.forgetBytes();
    };
    const files = parts.map(({ file }) => file);
    return new FileCheckpoint({ kind: "gguf", values, stored }, ggufLabel(basename(path)), files, located, forget);
  }, options);
}

interface Part {
  readonly file: MappedFile;
  readonly header: GgufHeader;
}

/** All parts of the model that this file belongs to, in order; metadata is the first one's. */
function splitParts(path: string, file: MappedFile, header: GgufHeader, open: (path: string) => MappedFile): Part[] {
  const count = header.values.get("split.count") ?? 1;
  const name = splitName(basename(path));
  if (count === 1 || count === 0) {
    if (name !== undefined && name.count > 1) {
      throw new FormatError(`${path}: the name says part ${name.part} of ${name.count}, but it holds no split.count`);
    }
    return [{ file, header }];
  }
  if (name === undefined || name.count !== count) {
    const wanted = `…-00001-of-${String(count).padStart(5, "0")}.gguf`;
    throw new FormatError(
      `${path} is one of ${quote(count)} parts: the files must keep their names (${wanted}) to be found`,
    );
  }
  const paths = Array.from({ length: name.count }, (_, index) => join(dirname(path), sameSplit(name, index + 1)));
  const missing = paths.filter((one) => !existsSync(one));
  if (missing.length > 0) {
    const shown = missing.slice(0, 5).map((one) => basename(one));
    throw new FormatError(`${path}: ${missing.length} of its ${name.count} parts are not there: ${shown.join(", ")}`);
  }
  return paths.map((one, index) => {
    const part = index + 1 === name.part ? { file, header } : openPart(open(one));
    const [no, of] = [part.header.values.get("split.no"), part.header.values.get("split.count")];
    if (no !== index || of !== count) {
      throw new FormatError(
        `${one} says it is part ${quote(no)} of ${quote(of)} (from 0); part ${index} of ${count} is wanted`,
      );
    }
    return part;
  });
}

function openPart(file: MappedFile): Part {
  return { file, header: parseHeader(file, parseGguf) };
}

function openFolder(path: string, options: OpenOptions): Checkpoint {
  const names = readdirSync(path).sort();
  const hasSafetensors = names.some((name) => name.endsWith(".safetensors") || name === indexName);
  const models = names.filter((name) => name.endsWith(".gguf") && (splitName(name)?.part ?? 1) === 1);
  const huggingFace = names.includes("config.json") || names.includes("tokenizer.json");
  if (huggingFace && (hasSafetensors || models.length === 0)) return openHuggingFace(path, names, options);
  if (models.length === 1) return openGguf(join(path, models[0]), options);
  if (models.length > 1) {
    throw new FormatError(
      `${path} holds ${models.length} GGUF models; give one of them: ${models.slice(0, 10).join(", ")}`,
    );
  }
  if (hasSafetensors) throw new FormatError(`${path} holds safetensors but no config.json`);
  throw new FormatError(`${path} is no model folder: it holds neither config.json with safetensors nor a .gguf`);
}

const indexName = "model.safetensors.index.json";

function openHuggingFace(path: string, names: readonly string[], options: OpenOptions): Checkpoint {
  const files = readHuggingFaceFiles(path);
  const located = new Map<string, Located>();
  return withFiles((open) => {
    const { shards, weightMap } = weightFiles(path, names);
    const opened = shards.map((name) => {
      const file = open(join(path, name));
      for (const tensor of parseHeader(file, parseSafetensors).tensors) {
        if ((weightMap?.get(tensor.name) ?? name) === name) locateTensor(located, tensor, file);
      }
      return file;
    });
    const lost = [...(weightMap ?? [])].find(([name]) => !located.has(name));
    if (lost !== undefined)
      throw new FormatError(`${path}: ${lost[1]} does not hold ${quote(lost[0])}, as the index says`);
    return new FileCheckpoint({ kind: "huggingface", files }, basename(path), opened, located);
  }, options);
}

function locateTensor(located: Map<string, Located>, tensor: SafetensorsTensor, file: MappedFile): void {
  const { offset, ...info } = tensor;
  if (located.has(info.name)) throw new FormatError(`${file.path}: tensor ${quote(info.name)} is in another file too`);
  located.set(info.name, { info, file, offset });
}

interface WeightFiles {
  readonly shards: readonly string[];
  readonly weightMap?: ReadonlyMap<string, string>;
}

/** Which files hold the weights; none for a folder that holds only a tokenizer. */
function weightFiles(path: string, names: readonly string[]): WeightFiles {
  if (names.includes("model.safetensors")) return { shards: ["model.safetensors"] };
  if (names.includes(indexName)) {
    const { files, weightMap } = parseShardIndex(readJson(join(path, indexName)));
    const missing = files.filter((name) => !names.includes(name));
    if (missing.length > 0) {
      throw new FormatError(
        `${path}: ${missing.length} of ${files.length} shards are not there: ${missing.slice(0, 5).join(", ")}`,
      );
    }
    return { shards: files, weightMap };
  }
  const single = names.filter((name) => name.endsWith(".safetensors"));
  if (single.length > 1) throw new FormatError(`${path} holds ${single.length} safetensors files but no ${indexName}`);
  const pickle = names.find((name) => /^pytorch_model.*\.bin$/.test(name));
  if (single.length === 0 && pickle !== undefined) throw pickleError(join(path, pickle));
  return { shards: single };
}
