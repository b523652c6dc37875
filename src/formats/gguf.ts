// Owns: GGUF v2 and v3, little-endian: a parser over a view of the file's first bytes, which checks every count, length
// and offset before it is used and allocates nothing that the bytes at hand do not back. It opens no file: open.ts does,
// and a browser or a range request can pass a prefix. Refuses v1, big-endian files and tensor types that are not in
// base/dtype.ts. Source: ggml's docs/gguf.md.
//
//   | magic, version, counts | key, type, value … | name, dims, type, offset … | padding | tensor | padding | tensor …
//   0                                                                         dataStart (offsets count from here)
import { blocks, type StorageType, storageBytes } from "../base/dtype.js";
import { FormatError, InternalError } from "../base/errors.js";
import type { MetaArray, MetaValue, TensorInfo } from "./checkpoint.js";
import { HeaderIncomplete, quote } from "./header.js";

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

const VALUE = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
};
const valueBytes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];
const typedArrays = [Uint8Array, Int8Array, Uint16Array, Int16Array, Uint32Array, Int32Array, Float32Array];

const maxDims = 4;
const maxNameBytes = 65535;
const maxStringBytes = 2 ** 28;
const maxArrayDepth = 4;

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenientUtf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** fileBytes: the whole file's length, where `bytes` is only its beginning; Infinity where it is not known. */
export function parseGguf(bytes: Uint8Array, fileBytes: number = bytes.length): GgufHeader {
  const reader = new Reader(bytes, fileBytes);
  const version = readVersion(reader);
  const tensorCount = reader.count("tensors", 24);
  const valueCount = reader.count("metadata values", 13);
  const values = new Metadata();
  for (let i = 0; i < valueCount; i++) {
    const key = reader.name("a metadata key");
    if (values.has(key)) throw new FormatError(`metadata key ${quote(key)} is there twice`);
    values.set(key, readValue(reader, key));
  }
  const alignment = readAlignment(values);
  const infos = readTensorInfos(reader, tensorCount);
  const dataStart = Math.ceil(reader.at / alignment) * alignment;
  const tensors = infos.map((info) => placeTensor(info, dataStart, alignment, fileBytes));
  refuseOverlaps(tensors);
  return { version, alignment, dataStart, values, tensors, forgetBytes: () => values.forgetBytes() };
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

function readValue(reader: Reader, key: string): MetaValue | Later {
  const what = `the value of ${quote(key)}`;
  const type = reader.u32(what);
  switch (type) {
    case VALUE.u8:
    case VALUE.bool: {
      const value = reader.u8(what);
      return type === VALUE.u8 ? value : asBoolean(value, what);
    }
    case VALUE.i8:
      return (reader.u8(what) << 24) >> 24;
    case VALUE.u16:
      return reader.u16(what);
    case VALUE.i16:
      return (reader.u16(what) << 16) >> 16;
    case VALUE.u32:
      return reader.u32(what);
    case VALUE.i32:
      return reader.u32(what) | 0;
    case VALUE.f32:
      return reader.view.getFloat32(reader.take(4, what), true);
    case VALUE.f64:
      return reader.view.getFloat64(reader.take(8, what), true);
    case VALUE.u64:
      return asNumber(reader.view.getBigUint64(reader.take(8, what), true));
    case VALUE.i64:
      return asNumber(reader.view.getBigInt64(reader.take(8, what), true));
    case VALUE.string:
      return lenientUtf8.decode(reader.string(what));
    case VALUE.array:
      return readArray(reader, what, 1);
  }
  throw new FormatError(`${what} has type ${type}; types 0 to 12 exist`);
}

function asBoolean(value: number, what: string): boolean {
  if (value > 1) throw new FormatError(`${what} is a truth value of ${value}; it must be 0 or 1`);
  return value === 1;
}

function asNumber(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function readArray(reader: Reader, what: string, depth: number): MetaArray | Later {
  if (depth > maxArrayDepth) throw new FormatError(`${what}: arrays are nested more than ${maxArrayDepth} deep`);
  const type = reader.u32(what);
  if (type >= valueBytes.length) throw new FormatError(`${what} is an array of type ${type}; types 0 to 12 exist`);
  const count = reader.count(`elements in ${what}`, valueBytes[type]);
  if (type === VALUE.array) {
    const elements: MetaArray[] = [];
    for (let i = 0; i < count; i++) {
      const element = readArray(reader, what, depth + 1);
      elements.push(element instanceof Later ? element.decode() : element);
    }
    return elements;
  }
  if (type === VALUE.string) {
    const start = reader.at;
    reader.skipStrings(count, what);
    return new Later(reader.bytes, start, reader.at, count);
  }
  const start = reader.take(count * valueBytes[type], what);
  const copy = reader.bytes.slice(start, reader.at);
  if (type === VALUE.bool) return Array.from(copy, (value) => asBoolean(value, what));
  if (type === VALUE.f64) return new Float64Array(copy.buffer);
  if (type === VALUE.u64) return Array.from(new BigUint64Array(copy.buffer));
  if (type === VALUE.i64) return Array.from(new BigInt64Array(copy.buffer));
  return new typedArrays[type](copy.buffer);
}

/** An array of strings whose lengths have been checked and whose text nobody has asked for yet. */
class Later {
  constructor(
    private readonly bytes: Uint8Array,
    private readonly start: number,
    private readonly end: number,
    private readonly count: number,
  ) {}

  /**
   * One decoder call a string is what costs. So the text of all strings is moved together, decoded once, and cut by the
   * UTF-16 lengths counted on the way. A string that begins inside a character spoils that: then one by one.
   */
  decode(): string[] {
    const { bytes, count } = this;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const joined = new Uint8Array(this.end - this.start - 8 * count);
    const ends = new Uint32Array(count);
    let whole = true;
    let units = 0;
    for (let i = 0, at = this.start, to = 0; i < count; i++) {
      const stop = at + 8 + view.getUint32(at, true);
      at += 8;
      if (at < stop && (bytes[at] & 0xc0) === 0x80) whole = false;
      while (at < stop) {
        const byte = bytes[at++];
        joined[to++] = byte;
        if ((byte & 0xc0) !== 0x80) units += byte >= 0xf0 ? 2 : 1;
      }
      ends[i] = units;
    }
    const text = whole ? decodeStrictly(joined) : undefined;
    const strings = new Array<string>(count);
    for (let i = 0, at = this.start; i < count; i++) {
      const stop = at + 8 + view.getUint32(at, true);
      strings[i] = text?.slice(i === 0 ? 0 : ends[i - 1], ends[i]) ?? lenientUtf8.decode(bytes.subarray(at + 8, stop));
      at = stop;
    }
    return strings;
  }
}

function decodeStrictly(bytes: Uint8Array): string | undefined {
  try {
    return strictUtf8.decode(bytes);
  } catch {
    return undefined;
  }
}

/** A map whose arrays of strings are decoded at the first look. */
class Metadata implements ReadonlyMap<string, MetaValue> {
  private readonly map = new Map<string, MetaValue | Later>();
  private readable = true;

  set(key: string, value: MetaValue | Later): void {
    this.map.set(key, value);
  }

  forgetBytes(): void {
    this.readable = false;
  }

  get size(): number {
    return this.map.size;
  }

  has(key: string): boolean {
    return this.map.has(key);
  }

  get(key: string): MetaValue | undefined {
    const value = this.map.get(key);
    if (!(value instanceof Later)) return value;
    if (!this.readable) throw new InternalError(`the file was closed before ${quote(key)} was read`);
    const strings = value.decode();
    this.map.set(key, strings);
    return strings;
  }

  keys(): MapIterator<string> {
    return this.map.keys();
  }

  *entries(): MapIterator<[string, MetaValue]> {
    for (const key of this.map.keys()) yield [key, this.get(key)!];
  }

  *values(): MapIterator<MetaValue> {
    for (const key of this.map.keys()) yield this.get(key)!;
  }

  [Symbol.iterator](): MapIterator<[string, MetaValue]> {
    return this.entries();
  }

  forEach(callback: (value: MetaValue, key: string, map: ReadonlyMap<string, MetaValue>) => void): void {
    for (const [key, value] of this.entries()) callback(value, key, this);
  }
}

class Reader {
  at = 0;
  readonly view: DataView;

  constructor(
    readonly bytes: Uint8Array,
    readonly fileBytes: number,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** Steps over n bytes and returns where they begin. */
  take(n: number, what: string): number {
    const start = this.at;
    const end = start + n;
    if (end > this.bytes.length) {
      if (end <= this.fileBytes) throw new HeaderIncomplete(end);
      throw new FormatError(`the file ends at byte ${this.fileBytes}, within ${what}: it is truncated or corrupt`);
    }
    this.at = end;
    return start;
  }

  u8(what: string): number {
    return this.bytes[this.take(1, what)];
  }

  u16(what: string): number {
    return this.view.getUint16(this.take(2, what), true);
  }

  u32(what: string): number {
    return this.view.getUint32(this.take(4, what), true);
  }

  /** Refuses what a double cannot hold: no file is that large. */
  u64(what: string): number {
    const at = this.take(8, what);
    const value = this.view.getUint32(at + 4, true) * 2 ** 32 + this.view.getUint32(at, true);
    if (!Number.isSafeInteger(value)) throw new FormatError(`${what}: an absurd number, ${value}`);
    return value;
  }

  /** A count of things that take at least minBytes each in the rest of the file. */
  count(what: string, minBytes: number): number {
    const count = this.u64(`the number of ${what}`);
    if (count > (this.fileBytes - this.at) / minBytes) {
      throw new FormatError(`${count} ${what} cannot be in the ${this.fileBytes - this.at} bytes that follow`);
    }
    return count;
  }

  /** Checks the lengths of an array's strings. */
  skipStrings(count: number, what: string): void {
    const end = endOfStrings(this.view, this.at, count);
    this.at = end < 0 ? -1 - end : end;
    if (end < 0) this.string(`a string in ${what}`); // says what is wrong
  }

  /** The bytes of a string, a view. */
  string(what: string): Uint8Array {
    const length = this.count(`bytes in ${what}`, 1);
    if (length > maxStringBytes) throw new FormatError(`${what}: a string of ${length} bytes is absurd`);
    const start = this.take(length, what);
    return this.bytes.subarray(start, start + length);
  }

  name(what: string): string {
    const bytes = this.string(what);
    if (bytes.length === 0 || bytes.length > maxNameBytes) {
      throw new FormatError(`${what} has ${bytes.length} bytes; 1 to ${maxNameBytes} are possible`);
    }
    const name = decodeStrictly(bytes);
    if (name === undefined) throw new FormatError(`${what} is not UTF-8`);
    return name;
  }
}

/**
 * Where `count` strings from `start` on end; -1 - at, where the one at `at` is too long or not all there. Vocabularies
 * have 262,144 strings: a function of its own, of locals alone, takes a quarter of the time.
 */
function endOfStrings(view: DataView, start: number, count: number): number {
  const last = view.byteLength - 8;
  let at = start;
  for (let i = 0; i < count; i++) {
    if (at > last) return -1 - at;
    const length = view.getUint32(at, true);
    if (view.getUint32(at + 4, true) !== 0 || length > maxStringBytes || length > last - at) return -1 - at;
    at += 8 + length;
  }
  return at;
}
