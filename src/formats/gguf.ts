// Owns: GGUF v2 and v3, little-endian: a parser over a view of the file's first bytes, which checks every count, length
// and offset before it is used and allocates nothing that the bytes at hand do not back. It opens no file: open.ts does,
// and a browser or a range request can pass a prefix. Refuses v1, big-endian files and tensor types that are not in
// base/dtype.ts. Source: ggml's docs/gguf.md.
//
//   | magic, version, counts | key, type, value … | name, dims, type, offset … | padding | tensor | padding | tensor …
//   0                                                                         dataStart (offsets count from here)
import { blocks, type StorageType, storageBytes } from "../base/dtype.js";
import { FormatError } from "../base/errors.js";
import type { MetaValue, TensorInfo } from "./checkpoint.js";
import { Metadata, readValue } from "./gguf-metadata.js";
import { Reader } from "./gguf-reader.js";
import type { GgufValue } from "./gguf-writer.js";
import { quote } from "./header.js";

export interface GgufTensor extends TensorInfo {
  /** From the start of the file, in bytes. */
  readonly offset: number;
}

export interface GgufHeader {
  readonly version: 2 | 3;
  readonly alignment: number;
  /** Bytes from the start of the file to the first tensor's. */
  readonly dataStart: number;
  /** Arrays of strings are decoded when first asked for: keep the bytes until then, or call forgetBytes(). */
  readonly values: ReadonlyMap<string, MetaValue>;
  /** Each value as it stands in the file: for writing it again. Views of the bytes given. */
  readonly stored: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly GgufTensor[];
  /** The bytes go away: asking for an array that was not decoded yet is an error from now on. */
  forgetBytes(): void;
}

/** ggml's type numbers; what is not in StorageType is there to be named in an error. */
const ggmlTypes: Readonly<Record<number, string>> = {
  0: "F32",
  1: "F16",
  2: "Q4_0",
  3: "Q4_1",
  4: "Q4_2",
  5: "Q4_3",
  6: "Q5_0",
  7: "Q5_1",
  8: "Q8_0",
  9: "Q8_1",
  10: "Q2_K",
  11: "Q3_K",
  12: "Q4_K",
  13: "Q5_K",
  14: "Q6_K",
  15: "Q8_K",
  16: "IQ2_XXS",
  17: "IQ2_XS",
  18: "IQ3_XXS",
  19: "IQ1_S",
  20: "IQ4_NL",
  21: "IQ3_S",
  22: "IQ2_S",
  23: "IQ4_XS",
  24: "I8",
  25: "I16",
  26: "I32",
  27: "I64",
  28: "F64",
  29: "IQ1_M",
  30: "BF16",
  31: "Q4_0_4_4",
  32: "Q4_0_4_8",
  33: "Q4_0_8_8",
  34: "TQ1_0",
  35: "TQ2_0",
  36: "IQ4_NL_4_4",
  37: "IQ4_NL_4_8",
  38: "IQ4_NL_8_8",
  39: "MXFP4",
  40: "NVFP4",
  41: "Q1_0",
};

/** ggml's number of a type. */
export function ggmlType(type: StorageType): number {
  return Number(Object.keys(ggmlTypes).find((number) => ggmlTypes[Number(number)] === type));
}

const maxDims = 4;
/** Name of one byte with its length, dimensions, type, offset; key of one byte with its length, type, one byte. */
const leastInfoBytes = 8 + 1 + 4 + 4 + 8;
const leastValueBytes = 8 + 1 + 4 + 1;

/** fileBytes: the whole file's length, where `bytes` is only its beginning; Infinity where it is not known. */
export function parseGguf(bytes: Uint8Array, fileBytes: number = bytes.length): GgufHeader {
  const reader = new Reader(bytes, fileBytes);
  const version = readVersion(reader);
  const tensorCount = reader.count("tensors", leastInfoBytes);
  const valueCount = reader.count("metadata values", leastValueBytes);
  const values = new Metadata();
  const stored = new Map<string, GgufValue>();
  for (let i = 0; i < valueCount; i++) {
    const key = reader.name("a metadata key");
    if (values.has(key)) throw new FormatError(`metadata key ${quote(key)} is there twice`);
    const start = reader.at;
    values.set(key, readValue(reader, key));
    stored.set(key, { type: "raw", bytes: bytes.subarray(start, reader.at) });
  }
  const alignment = readAlignment(values);
  const infos = readTensorInfos(reader, tensorCount);
  const dataStart = Math.ceil(reader.at / alignment) * alignment;
  const tensors = infos.map((info) => placeTensor(info, dataStart, alignment, fileBytes));
  refuseOverlaps(tensors);
  return { version, alignment, dataStart, values, stored, tensors, forgetBytes: () => values.forgetBytes() };
}

function readVersion(reader: Reader): 2 | 3 {
  const magic = reader.u32("the magic number");
  if (magic !== 0x46554747) throw new FormatError(`not a GGUF file: it does not begin with "GGUF"`);
  const version = reader.u32("the version");
  if (version === 2 || version === 3) return version;
  if ((version & 0xffff) === 0 && version !== 0) {
    throw new FormatError("the GGUF file is big-endian; only little-endian files can be read: convert it");
  }
  throw new FormatError(`GGUF version ${version}; versions 2 and 3 can be read`);
}

function readAlignment(values: Metadata): number {
  const alignment = values.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || alignment < 1 || !Number.isInteger(Math.log2(alignment))) {
    throw new FormatError(`general.alignment is ${String(alignment)}; it must be a power of two`);
  }
  return alignment;
}

/** Offset still counts from dataStart, which is known only when all infos have been read. */
function readTensorInfos(reader: Reader, count: number): GgufTensor[] {
  const names = new Set<string>();
  const infos: GgufTensor[] = [];
  for (let i = 0; i < count; i++) {
    const name = reader.name("a tensor's name");
    if (names.has(name)) throw new FormatError(`tensor ${quote(name)} is there twice`);
    names.add(name);
    const what = `tensor ${quote(name)}`;
    const dims = reader.u32(what);
    if (dims > maxDims) throw new FormatError(`${what} has ${dims} dimensions; at most ${maxDims} are possible`);
    const shape: number[] = [];
    let elements = 1;
    for (let d = 0; d < dims; d++) {
      const size = reader.u64(`${what}, dimension ${d}`);
      elements *= size;
      if (size === 0) throw new FormatError(`${what}: dimension ${d} is 0`);
      if (!Number.isSafeInteger(elements))
        throw new FormatError(`${what} has an absurd size: ${size} in dimension ${d}`);
      shape.unshift(size);
    }
    const type = storageType(reader.u32(what), what);
    const row = shape.at(-1) ?? 1;
    if (row % blocks[type].values !== 0) {
      throw new FormatError(`${what}: rows of ${row} values are not whole ${type} blocks of ${blocks[type].values}`);
    }
    const bytes = storageBytes(type, elements);
    if (!Number.isSafeInteger(bytes)) throw new FormatError(`${what} has an absurd size: ${elements} values`);
    infos.push({ name, type, shape, bytes, offset: reader.u64(`${what}, offset`) });
  }
  return infos;
}

function storageType(number: number, what: string): StorageType {
  const name = ggmlTypes[number];
  if (name !== undefined && name in blocks) return name as StorageType;
  const readable = Object.keys(blocks).join(", ");
  throw new FormatError(`${what} has type ${number} (${name ?? "unknown"}); types that can be read: ${readable}`);
}

function placeTensor(info: GgufTensor, dataStart: number, alignment: number, fileBytes: number): GgufTensor {
  if (info.offset % alignment !== 0) {
    throw new FormatError(`tensor ${quote(info.name)}: offset ${info.offset} is not a multiple of ${alignment}`);
  }
  const offset = dataStart + info.offset;
  const end = offset + info.bytes;
  if (!Number.isSafeInteger(end) || end > fileBytes) {
    throw new FormatError(
      `tensor ${quote(info.name)} ends at byte ${end}, but the file has ${fileBytes}: it is truncated or corrupt`,
    );
  }
  return { ...info, offset };
}

function refuseOverlaps(tensors: readonly GgufTensor[]): void {
  const sorted = [...tensors].sort((a, b) => a.offset - b.offset);
  for (let i = 1; i < sorted.length; i++) {
    const [before, after] = [sorted[i - 1], sorted[i]];
    if (before.offset + before.bytes > after.offset) {
      throw new FormatError(`tensors ${quote(before.name)} and ${quote(after.name)} overlap in the file`);
    }
  }
}
