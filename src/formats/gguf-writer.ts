// Owns: writing GGUF v3: the header from metadata and tensor infos, and where each tensor's bytes go. It opens no file:
// the caller writes the header, then each tensor at its offset. Source: ggml's docs/gguf.md.
import { InternalError } from "../base/errors.js";
import type { TensorInfo } from "./checkpoint.js";
import { ggmlType } from "./gguf.js";
import { valueTypes } from "./gguf-metadata.js";

type Scalar = Exclude<keyof typeof valueTypes, "array">;

/** A value with the type it is to be stored as. */
export type TypedValue =
  | { readonly type: Scalar; readonly value: number | bigint | boolean | string }
  | { readonly type: "array"; readonly of: Scalar; readonly value: ArrayLike<number | bigint | boolean | string> };

/** raw: as another file had it, GgufHeader.stored. */
export type GgufValue = TypedValue | { readonly type: "raw"; readonly bytes: Uint8Array };

export interface GgufLayout {
  /** The file's beginning, padded to where the first tensor starts. */
  readonly header: Uint8Array;
  /** From the start of the file. */
  readonly offsets: ReadonlyMap<string, number>;
  readonly fileBytes: number;
}

const alignment = 32;
const aligned = (at: number) => Math.ceil(at / alignment) * alignment;

export function layOutGguf(values: ReadonlyMap<string, GgufValue>, tensors: readonly TensorInfo[]): GgufLayout {
  const out = new Bytes();
  out.u32(0x46554747);
  out.u32(3);
  out.u64(tensors.length);
  out.u64(values.size);
  for (const [key, value] of values) {
    out.string(key);
    writeValue(out, value);
  }
  const offsets = new Map<string, number>();
  let at = 0;
  for (const { name, type, shape, bytes } of tensors) {
    out.string(name);
    out.u32(shape.length);
    for (const size of [...shape].reverse()) out.u64(size);
    out.u32(ggmlType(type));
    out.u64(at);
    offsets.set(name, at);
    at = aligned(at + bytes);
  }
  const header = out.padded(alignment);
  for (const [name, offset] of offsets) offsets.set(name, header.length + offset);
  return { header, offsets, fileBytes: header.length + at };
}

function writeValue(out: Bytes, value: GgufValue): void {
  if (value.type === "raw") {
    out.bytes(value.bytes);
  } else if (value.type !== "array") {
    out.u32(valueTypes[value.type]);
    writeScalar(out, value.type, value.value);
  } else {
    out.u32(valueTypes.array);
    out.u32(valueTypes[value.of]);
    out.u64(value.value.length);
    for (let i = 0; i < value.value.length; i++) writeScalar(out, value.of, value.value[i]);
  }
}

function writeScalar(out: Bytes, type: Scalar, value: number | bigint | boolean | string): void {
  if (type === "string") out.string(String(value));
  else out.scalar(type, value);
}

const widths: Record<Exclude<Scalar, "string">, number> = {
  u8: 1,
  i8: 1,
  bool: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  u64: 8,
  i64: 8,
  f64: 8,
};

const utf8 = new TextEncoder();

/** A buffer that grows. */
class Bytes {
  private data = new Uint8Array(1 << 16);
  private view = new DataView(this.data.buffer);
  private length = 0;

  u32(value: number): void {
    this.scalar("u32", value);
  }

  u64(value: number): void {
    this.scalar("u64", value);
  }

  string(text: string): void {
    const bytes = utf8.encode(text);
    this.u64(bytes.length);
    this.bytes(bytes);
  }

  bytes(bytes: Uint8Array): void {
    this.reserve(bytes.length);
    this.data.set(bytes, this.length);
    this.length += bytes.length;
  }

  scalar(type: Exclude<Scalar, "string">, value: number | bigint | boolean | string): void {
    this.reserve(8);
    const { view, length: at } = this;
    const number = Number(value);
    if (type === "u8" || type === "bool") view.setUint8(at, number);
    else if (type === "i8") view.setInt8(at, number);
    else if (type === "u16") view.setUint16(at, number, true);
    else if (type === "i16") view.setInt16(at, number, true);
    else if (type === "u32") view.setUint32(at, number, true);
    else if (type === "i32") view.setInt32(at, number, true);
    else if (type === "f32") view.setFloat32(at, number, true);
    else if (type === "f64") view.setFloat64(at, number, true);
    else if (type === "u64") view.setBigUint64(at, BigInt(value), true);
    else view.setBigInt64(at, BigInt(value), true);
    this.length += widths[type];
  }

  padded(to: number): Uint8Array {
    this.reserve(to);
    return this.data.slice(0, Math.ceil(this.length / to) * to);
  }

  private reserve(bytes: number): void {
    if (this.length + bytes <= this.data.length) return;
    if (this.length + bytes > 2 ** 31) throw new InternalError("a GGUF header of over 2 GiB");
    const grown = new Uint8Array(Math.max(2 * this.data.length, this.length + bytes));
    grown.set(this.data.subarray(0, this.length));
    this.data = grown;
    this.view = new DataView(grown.buffer);
  }
}
