// Owns: what any model file is once opened: named tensors, its configuration as the file gives it, and what its tokenizer
// is made from. gguf.ts and safetensors.ts produce it; model/config.ts and text/ read it.
import type { StorageType } from "../base/dtype.js";
import type { GgufValue } from "./gguf-writer.js";

export interface TensorInfo {
  readonly name: string;
  readonly type: StorageType;
  /** Outermost first: a matrix of a linear layer is [rows = out, cols = in], each row contiguous. (GGUF writes the
   *  reverse order; the reader turns it round.) */
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** GGUF metadata values as JavaScript has them; arrays of numbers are typed arrays, 64-bit integers are numbers where
 *  they are safe and bigint where not. */
export type MetaValue = number | bigint | boolean | string | MetaArray;
export type MetaArray =
  | readonly string[]
  | readonly boolean[]
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | readonly bigint[]
  | readonly MetaArray[];

/** A Hugging Face folder's JSON files, parsed; absent ones are undefined. */
export interface HuggingFaceFiles {
  readonly config: Readonly<Record<string, unknown>>;
  /** sentence-transformers' 1_Pooling/config.json. */
  readonly pooling?: Readonly<Record<string, unknown>>;
  readonly generationConfig?: Readonly<Record<string, unknown>>;
  readonly tokenizer?: Readonly<Record<string, unknown>>;
  readonly tokenizerConfig?: Readonly<Record<string, unknown>>;
  readonly specialTokensMap?: Readonly<Record<string, unknown>>;
  /** chat_template.jinja, and named ones from additional_chat_templates/ by their names. */
  readonly chatTemplate?: string;
  readonly namedChatTemplates?: Readonly<Record<string, string>>;
}

export type CheckpointMeta =
  | {
      readonly kind: "gguf";
      readonly values: ReadonlyMap<string, MetaValue>;
      /** The same for writing again. Valid until close(). */
      readonly stored?: ReadonlyMap<string, GgufValue>;
    }
  | { readonly kind: "huggingface"; readonly files: HuggingFaceFiles };

export interface Checkpoint {
  readonly meta: CheckpointMeta;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** A view of the mapped file, valid until close(). Throws FormatError for an unknown name. */
  read(name: string): Uint8Array;
  /** Tells the system that these pages will not be read again. */
  release(name: string): void;
  close(): void;
  /** Of all files. */
  readonly fileBytes: number;
  /** The files that hold the tensors; absent where none do. */
  readonly paths?: readonly string[];
  /** What the model is called where nobody gave it a name: the file's or folder's own. */
  readonly label: string;
}
