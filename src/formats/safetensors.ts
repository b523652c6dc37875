// Owns: safetensors headers: a parser over a view of a file's first bytes, and the index of a sharded checkpoint. Like
// the format it refuses overlaps, holes and bytes that no tensor owns. Opens no file (open.ts does). Dtypes other than
// F32, F16 and BF16 are errors that name them. Source: huggingface/safetensors, README, "Format".
//
//   | u64 length n | JSON of n bytes: name → {dtype, shape, data_offsets: [begin, end]} | tensors, without holes |
//   0              8                                                     dataStart = 8 + n (offsets count from here)
import { type StorageType, storageBytes } from "../base/dtype.js";
import { FormatError } from "../base/errors.js";
import type { TensorInfo } from "./checkpoint.js";
import { HeaderIncomplete, quote } from "./header.js";

export interface SafetensorsTensor extends TensorInfo {
  /** From the start of the file, in bytes; at no alignment that could be relied on. */
  readonly offset: number;
}

export interface SafetensorsHeader {
  readonly dataStart: number;
  readonly tensors: readonly SafetensorsTensor[];
  readonly metadata: ReadonlyMap<string, string>;
}

/** The limit of the format's own reader. */
const maxHeaderBytes = 100_000_000;
const readable: readonly StorageType[] = ["F32", "F16", "BF16"];

/** fileBytes: the whole file's length, where `bytes` is only its beginning; Infinity where it is not known. */
export function parseSafetensors(bytes: Uint8Array, fileBytes: number = bytes.length): SafetensorsHeader {
  if (fileBytes < 8) throw new FormatError(`not a safetensors file: it has ${fileBytes} bytes`);
  if (bytes.length < 8) throw new HeaderIncomplete(8);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const length = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
  if (length > maxHeaderBytes) {
    throw new FormatError(
      `not a safetensors file: its header would have ${length} bytes, at most ${maxHeaderBytes} can be`,
    );
  }
  const dataStart = 8 + length;
  if (dataStart > fileBytes) {
    throw new FormatError(`the header has ${length} bytes, but the file ends at byte ${fileBytes}: it is truncated`);
  }
  if (dataStart > bytes.length) throw new HeaderIncomplete(dataStart);
  const header = parseObject(bytes.subarray(8, dataStart));
  const tensors: SafetensorsTensor[] = [];
  let metadata: ReadonlyMap<string, string> = new Map();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") metadata = readMetadata(entry);
    else tensors.push(readTensor(name, entry, dataStart));
  }
  const counters = tensors.filter(({ name }) => isCounter(name));
  checkCoverage(tensors, dataStart, fileBytes);
  return {
    dataStart,
    tensors: counters.length === 0 ? tensors : tensors.filter((one) => !counters.includes(one)),
    metadata,
  };
}

/** BERT's buffer of 0, 1, 2…: older versions of transformers wrote it as integers, and nothing reads it. */
const isCounter = (name: string) => /(^|\.)position_ids$/.test(name);

function parseObject(bytes: Uint8Array): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new FormatError("not a safetensors file: its header is not JSON", error);
  }
  if (!isObject(value)) throw new FormatError("not a safetensors file: its header is not a JSON object");
  return value;
}

function readMetadata(entry: unknown): Map<string, string> {
  const metadata = new Map<string, string>();
  if (!isObject(entry)) throw new FormatError("__metadata__ is not an object");
  for (const [key, value] of Object.entries(entry)) {
    if (typeof value !== "string") throw new FormatError(`__metadata__ ${quote(key)} is not a string`);
    metadata.set(key, value);
  }
  return metadata;
}

function readTensor(name: string, entry: unknown, dataStart: number): SafetensorsTensor {
  const what = `tensor ${quote(name)}`;
  if (!isObject(entry)) throw new FormatError(`${what} has no description`);
  const { dtype, shape, data_offsets: offsets } = entry;
  // Two halves a number: the bytes are what counts of it.
  const counter = isCounter(name) && dtype === "I64";
  const type = counter ? "F32" : readable.find((one) => one === dtype);
  if (type === undefined) {
    throw new FormatError(`${what} has dtype ${quote(dtype)}; dtypes that can be read: ${readable.join(", ")}`);
  }
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw new FormatError(`${what} has no proper shape: ${quote(shape)}`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0] > offsets[1]) {
    throw new FormatError(`${what} has no proper data_offsets: ${quote(offsets)}`);
  }
  const values = shape.reduce((product, size) => product * size, 1);
  const bytes = storageBytes(type, counter ? 2 * values : values);
  if (bytes !== offsets[1] - offsets[0]) {
    const has = offsets[1] - offsets[0];
    throw new FormatError(`${what} of ${type} ${quote(shape)} takes ${bytes} bytes, but has ${has}`);
  }
  return { name, type, shape, bytes, offset: dataStart + offsets[0] };
}

/** Every byte after the header belongs to exactly one tensor. */
function checkCoverage(tensors: readonly SafetensorsTensor[], dataStart: number, fileBytes: number): void {
  const sorted = [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = dataStart;
  for (const { name, offset, bytes } of sorted) {
    if (offset < end) throw new FormatError(`tensor ${quote(name)} overlaps the one before it in the file`);
    if (offset > end) throw new FormatError(`there is a hole of ${offset - end} bytes before tensor ${quote(name)}`);
    end = offset + bytes;
  }
  if (end > fileBytes)
    throw new FormatError(`the tensors end at byte ${end}, but the file has ${fileBytes}: it is truncated`);
  if (end < fileBytes && fileBytes !== Number.POSITIVE_INFINITY) {
    throw new FormatError(`the last ${fileBytes - end} bytes of the file belong to no tensor`);
  }
}

export interface ShardIndex {
  /** Names of the shard files, in order. */
  readonly files: readonly string[];
  /** Tensor name → shard file. */
  readonly weightMap: ReadonlyMap<string, string>;
}

/** index: model.safetensors.index.json, parsed. */
export function parseShardIndex(index: Readonly<Record<string, unknown>>): ShardIndex {
  const { weight_map: map } = index;
  if (!isObject(map)) throw new FormatError("the index has no weight_map object");
  const weightMap = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== "string" || !/^[^/\\]+\.safetensors$/.test(file)) {
      throw new FormatError(`weight_map puts ${quote(name)} in ${quote(file)}: not a .safetensors file here`);
    }
    weightMap.set(name, file);
  }
  if (weightMap.size === 0) throw new FormatError("the index's weight_map is empty");
  return { files: [...new Set(weightMap.values())].sort(), weightMap };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
