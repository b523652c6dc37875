// Owns: GGUF metadata values of every type, arrays of strings decoded only when somebody looks at them.
import { FormatError, InternalError } from "../base/errors.js";
import type { MetaArray, MetaValue } from "./checkpoint.js";
import { decodeStrictly, type Reader } from "./gguf-reader.js";
import { quote } from "./header.js";

/** GGUF's numbers of a value's type. */
export const valueTypes = {
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
} as const;
const valueBytes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];
const typedArrays = [Uint8Array, Int8Array, Uint16Array, Int16Array, Uint32Array, Int32Array, Float32Array];
const maxArrayDepth = 4;

const lenientUtf8 = new TextDecoder("utf-8", { ignoreBOM: true });

export function readValue(reader: Reader, key: string): MetaValue | Later {
  const what = `the value of ${quote(key)}`;
  const type = reader.u32(what);
  switch (type) {
    case valueTypes.u8:
    case valueTypes.bool: {
      const value = reader.u8(what);
      return type === valueTypes.u8 ? value : asBoolean(value, what);
    }
    case valueTypes.i8:
      return (reader.u8(what) << 24) >> 24;
    case valueTypes.u16:
      return reader.u16(what);
    case valueTypes.i16:
      return (reader.u16(what) << 16) >> 16;
    case valueTypes.u32:
      return reader.u32(what);
    case valueTypes.i32:
      return reader.u32(what) | 0;
    case valueTypes.f32:
      return reader.view.getFloat32(reader.take(4, what), true);
    case valueTypes.f64:
      return reader.view.getFloat64(reader.take(8, what), true);
    case valueTypes.u64:
      return asNumber(reader.view.getBigUint64(reader.take(8, what), true));
    case valueTypes.i64:
      return asNumber(reader.view.getBigInt64(reader.take(8, what), true));
    case valueTypes.string:
      return lenientUtf8.decode(reader.string(what));
    case valueTypes.array:
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
  if (type === valueTypes.array) {
    const elements: MetaArray[] = [];
    for (let i = 0; i < count; i++) {
      const element = readArray(reader, what, depth + 1);
      elements.push(element instanceof Later ? element.decode() : element);
    }
    return elements;
  }
  if (type === valueTypes.string) {
    const start = reader.at;
    reader.skipStrings(count, what);
    return new Later(reader.bytes, start, reader.at, count);
  }
  const start = reader.take(count * valueBytes[type], what);
  const copy = reader.bytes.slice(start, reader.at);
  if (type === valueTypes.bool) return Array.from(copy, (value) => asBoolean(value, what));
  if (type === valueTypes.f64) return new Float64Array(copy.buffer);
  if (type === valueTypes.u64) return Array.from(new BigUint64Array(copy.buffer));
  if (type === valueTypes.i64) return Array.from(new BigInt64Array(copy.buffer));
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

/** A map whose arrays of strings are decoded at the first look. */
export class Metadata implements ReadonlyMap<string, MetaValue> {
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
