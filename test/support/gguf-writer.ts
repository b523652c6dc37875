// Owns: writing small GGUF files for tests: metadata and tensors as given, and random weights of any storage type. It
// checks nothing, so that a test can write what a reader must refuse.
import { writeFileSync } from "node:fs";
import { blocks, type StorageType, storageBytes } from "../../src/base/dtype.js";
import { f32ToBf16, f32ToF16 } from "../../src/base/half.js";
import type { Random } from "./random.js";

export const ggufType = {
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
export type GgufTypeName = keyof typeof ggufType;

const scalarBytes = { u8: 1, i8: 1, bool: 1, u16: 2, i16: 2, u32: 4, i32: 4, f32: 4, u64: 8, i64: 8, f64: 8 };

/** Plain values: a whole number is u32 (i32 when negative), another number f32, a string[] an array of strings. */
export type MetaInput =
  | number
  | boolean
  | string
  | readonly string[]
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | TypedMeta;

/** type "array": value is {of, items}. */
export type TypedMeta =
  | { readonly type: Exclude<GgufTypeName, "array">; readonly value: number | bigint | boolean | string | Uint8Array }
  | { readonly type: "array"; readonly of: GgufTypeName; readonly items: readonly TypedMeta[] };

export interface TensorInput {
  readonly name: string;
  readonly type: StorageType;
  /** Outermost first. */
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

export interface GgufInput {
  readonly version?: number;
  readonly alignment?: number;
  /** Pairs rather than an object where a key shall be there twice. */
  readonly meta: Readonly<Record<string, MetaInput>> | readonly (readonly [string, MetaInput])[];
  readonly tensors?: readonly TensorInput[];
}

/** ggml's numbers of our types. */
export const ggmlTypeNumbers: Readonly<Record<StorageType, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q5_0: 6,
  Q5_1: 7,
  Q8_0: 8,
  Q4_K: 12,
  Q5_K: 13,
  Q6_K: 14,
  BF16: 30,
};

/** Little-endian bytes, appended. */
export class ByteWriter {
  private bytes = new Uint8Array(1024);
  private view = new DataView(this.bytes.buffer);
  length = 0;

  private grow(count: number): number {
    const at = this.length;
    this.length += count;
    if (this.length > this.bytes.length) {
      const larger = new Uint8Array(Math.max(this.length, 2 * this.bytes.length));
      larger.set(this.bytes.subarray(0, at));
      this.bytes = larger;
      this.view = new DataView(larger.buffer);
    }
    return at;
  }

  number(type: Exclude<GgufTypeName, "string" | "array">, value: number | bigint | boolean): this {
    const at = this.grow(scalarBytes[type]); // may replace this.view
    const { view } = this;
    if (type === "u64" || type === "i64") view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
    else if (type === "f64") view.setFloat64(at, Number(value), true);
    else if (type === "f32") view.setFloat32(at, Number(value), true);
    else if (type === "u32" || type === "i32") view.setUint32(at, Number(value), true);
    else if (type === "u16" || type === "i16") view.setUint16(at, Number(value), true);
    else view.setUint8(at, Number(value));
    return this;
  }

  raw(bytes: Uint8Array): this {
    const at = this.grow(bytes.length);
    this.bytes.set(bytes, at);
    return this;
  }

  string(text: string | Uint8Array): this {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
    this.number("u64", bytes.length);
    return this.raw(bytes);
  }

  pad(alignment: number): this {
    this.grow(Math.ceil(this.length / alignment) * alignment - this.length);
    return this;
  }

  finish(): Uint8Array {
    return this.bytes.slice(0, this.length);
  }
}

function elementType(value: object): GgufTypeName {
  if (value instanceof Uint8Array) return "u8";
  if (value instanceof Int8Array) return "i8";
  if (value instanceof Uint16Array) return "u16";
  if (value instanceof Int16Array) return "i16";
  if (value instanceof Uint32Array) return "u32";
  if (value instanceof Int32Array) return "i32";
  if (value instanceof Float32Array) return "f32";
  return "f64";
}

function typed(input: MetaInput): TypedMeta {
  if (typeof input === "boolean") return { type: "bool", value: input };
  if (typeof input === "string") return { type: "string", value: input };
  if (typeof input === "number") {
    return { type: !Number.isInteger(input) ? "f32" : input < 0 ? "i32" : "u32", value: input };
  }
  if ("type" in input) return input;
  if (Array.isArray(input)) {
    return { type: "array", of: "string", items: input.map((value) => ({ type: "string", value })) };
  }
  const of = elementType(input) as "u8";
  return { type: "array", of, items: Array.from(input as Uint8Array, (value) => ({ type: of, value })) };
}

function writeBody(writer: ByteWriter, meta: TypedMeta): void {
  if (meta.type === "array") {
    writer.number("u32", ggufType[meta.of]);
    writer.number("u64", meta.items.length);
    for (const item of meta.items) writeBody(writer, item);
  } else if (meta.type === "string") {
    writer.string(meta.value as string | Uint8Array);
  } else {
    writer.number(meta.type, meta.value as number);
  }
}

export function ggufBytes(input: GgufInput): Uint8Array {
  const { version = 3, alignment = 32, tensors = [] } = input;
  const pairs: [string, MetaInput][] = Array.isArray(input.meta) ? [...input.meta] : Object.entries(input.meta);
  if (input.alignment !== undefined) pairs.push(["general.alignment", alignment]);
  const writer = new ByteWriter();
  writer.raw(new TextEncoder().encode("GGUF"));
  writer.number("u32", version);
  writer.number("u64", tensors.length);
  writer.number("u64", pairs.length);
  for (const [key, value] of pairs) {
    const meta = typed(value);
    writer.string(key);
    writer.number("u32", ggufType[meta.type]);
    writeBody(writer, meta);
  }
  let offset = 0;
  for (const { name, type, shape, data } of tensors) {
    writer.string(name);
    writer.number("u32", shape.length);
    for (const size of [...shape].reverse()) writer.number("u64", size);
    writer.number("u32", ggmlTypeNumbers[type]);
    writer.number("u64", offset);
    offset = Math.ceil((offset + data.length) / alignment) * alignment;
  }
  for (const { data } of tensors) {
    writer.pad(alignment);
    writer.raw(data);
  }
  return writer.finish();
}

export function writeGguf(path: string, input: GgufInput): void {
  writeFileSync(path, ggufBytes(input));
}

// What a block of random codes has as root mean square with d = 1, and where dmin or m centre it, in units of d.
const randomBlock: Record<string, { rms: number; scale: number; min?: number; centre?: number }> = {
  Q4_0: { rms: 4.6, scale: 0 },
  Q4_1: { rms: 4.6, scale: 0, min: 2, centre: -7.5 },
  Q5_0: { rms: 9.2, scale: 0 },
  Q5_1: { rms: 9.2, scale: 0, min: 2, centre: -15.5 },
  Q8_0: { rms: 74, scale: 0 },
  Q4_K: { rms: 259, scale: 0, min: 2, centre: 7.5 },
  Q5_K: { rms: 527, scale: 0, min: 2, centre: 15.5 },
  Q6_K: { rms: 1367, scale: 208 },
};

/** Random weights: every code and sub-scale uniform, scales such that values have about this root mean square. */
export function randomWeights(type: StorageType, values: number, random: Random, rms = 0.05): Uint8Array {
  const bytes = new Uint8Array(storageBytes(type, values));
  const view = new DataView(bytes.buffer);
  const block = blocks[type];
  const spec = randomBlock[type];
  for (let at = 0; at < bytes.length; at += block.bytes) {
    if (type === "F32") view.setFloat32(at, random.normal() * rms, true);
    else if (type === "F16") view.setUint16(at, f32ToF16(random.normal() * rms), true);
    else if (type === "BF16") view.setUint16(at, f32ToBf16(random.normal() * rms), true);
    else {
      bytes.set(random.bytes(block.bytes), at);
      const d = (rms / spec.rms) * (0.7 + 0.6 * random.next());
      view.setUint16(at + spec.scale, f32ToF16(d), true);
      if (spec.min !== undefined) view.setUint16(at + spec.min, f32ToF16(d * spec.centre!), true);
    }
  }
  return bytes;
}
