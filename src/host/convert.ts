// Owns: writing a model as one GGUF file: names, rows and metadata as GGUF has them, each tensor as its quantisation says.
// The file appears whole or not at all.
import { closeSync, fsyncSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { UserError } from "../base/errors.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { type GgufValue, layOutGguf } from "../formats/gguf-writer.js";
import { openCheckpoint } from "../formats/open.js";
import { fileType, parseQuantisation, type Quantisation, storageFor } from "../formats/quant/recipe.js";
import type { ModelConfig } from "../model/config.js";
import { ggufModel } from "../model/config-to-gguf.js";
import { encoderConfig } from "../model/encoder-config.js";
import { ggufSource } from "../model/to-gguf.js";
import { ggufTokenizer } from "../text/to-gguf.js";
import { physicalCores } from "./load.js";
import { quantize, quantizedInfo } from "./quantize.js";

export interface ConvertOptions {
  /** Default: a GGUF model stays as it is; of a folder, the type of its first matrix. */
  readonly quantisation?: Quantisation;
  readonly threads?: number;
  /** Bytes of the file that have been written, and all of them. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * Writes `path`, over what may be there; returns the file's size. Throws FormatError for a model that is not known or has
 * broken values, UserError where it is quantised already or the disk is full; nothing is left then.
 */
export async function convertToGguf(
  checkpoint: Checkpoint,
  path: string,
  options: ConvertOptions = {},
): Promise<number> {
  if (encoderConfig(checkpoint) !== undefined) {
    throw new UserError("an embedding model is used as it is: only models that give text are converted and quantised");
  }
  const { config, tensors } = ggufSource(checkpoint);
  const quantisation = options.quantisation ?? ownQuantisation(checkpoint);
  const model = { layers: config.layers.length, tied: config.tiedEmbeddings };
  const planned = tensors.map((source) => {
    const { info } = source;
    if (quantisation === undefined) return { source, info };
    return { source, info: quantizedInfo(info, storageFor(quantisation, info.name, info.shape, model)) };
  });
  const values = metadata(checkpoint, config, quantisation);
  const { header, offsets, fileBytes } = layOutGguf(
    values,
    planned.map(({ info }) => info),
  );
  const temporary = `${path}.${process.pid}.tmp`;
  const file = openSync(temporary, "wx");
  try {
    writeAll(file, header, 0);
    for (const { source, info } of planned) {
      options.signal?.throwIfAborted();
      const from = source.info.type;
      const { name, type: to } = info;
      const threads = options.threads ?? physicalCores();
      const bytes = await quantize({ name, bytes: source.read(), from, to }, threads, options.signal);
      const at = offsets.get(name)!;
      writeAll(file, bytes, at);
      source.release();
      options.onProgress?.(at + bytes.length, fileBytes);
    }
    ftruncateSync(file, fileBytes);
    fsyncSync(file);
    closeSync(file);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw isFull(error)
      ? new UserError(`the disk is full: ${path} needs ${fileBytes} bytes`, { status: 507, cause: error })
      : error;
  }
  return fileBytes;
}

const isFull = (error: unknown) => ["ENOSPC", "EDQUOT"].includes((error as NodeJS.ErrnoException).code ?? "");

function writeAll(file: number, bytes: Uint8Array, at: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done, bytes.length - done, at + done);
}

/** As convertToGguf, from a path; throws UserError for a quantisation that is not known. */
export async function quantizeModel(
  path: string,
  quantisation: string,
  output: string,
  options: Omit<ConvertOptions, "quantisation">,
): Promise<void> {
  const known = parseQuantisation(quantisation);
  const checkpoint = await openCheckpoint(path);
  try {
    await convertToGguf(checkpoint, output, { ...options, quantisation: known });
  } finally {
    checkpoint.close();
  }
}

/** A folder has to become some file type; a GGUF file has one. */
function ownQuantisation({ meta, tensors }: Checkpoint): Quantisation | undefined {
  if (meta.kind === "gguf") return undefined;
  const matrix = [...tensors.values()].find(({ shape }) => shape.length > 1);
  return matrix?.type === "BF16" ? "bf16" : matrix?.type === "F16" ? "f16" : "f32";
}

function metadata(
  { meta, label }: Checkpoint,
  config: ModelConfig,
  quantisation: Quantisation | undefined,
): Map<string, GgufValue> {
  if (meta.kind === "huggingface") {
    const { values } = ggufModel(config, label, fileType(quantisation!));
    return new Map<string, GgufValue>([...values, ...ggufTokenizer(meta.files, config.vocabSize)]);
  }
  const values = new Map([...meta.stored!].filter(([key]) => !key.startsWith("split.")));
  if (quantisation !== undefined) {
    values.set("general.file_type", { type: "u32", value: fileType(quantisation) });
    values.set("general.quantization_version", { type: "u32", value: 2 });
  }
  return values;
}
