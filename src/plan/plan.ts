// Owns: what a Plan is. A model's forward pass is built once, as data: a flat list of semantic operations over symbolic
// sizes. model/ builds it, passes/ rewrite it, a Device compiles it. Nothing here knows a model or a device.
import type { DType, StorageType } from "../base/dtype.js";
import type { Op } from "./op.js";

/** tokens: of the step, all sequences packed. sequences: in the step. rows: positions whose next token is wanted. */
export type Dim = number | "tokens" | "sequences" | "rows";

/** Half open: [start, end). */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/**
 * One piece of a weight: (a part of) a tensor of the checkpoint. Order of evaluation: transform, then rows and cols.
 * `rows` and `cols` are thus ranges of the transformed tensor, so fusing q, k and v or splitting over ranks edits
 * recipes and never bytes. A vector (a bias, a norm) is a column here: [n, 1], so its elements are its rows.
 */
export interface WeightPiece {
  readonly name: string;
  readonly type: StorageType;
  /** Shape of the checkpoint's tensor as [rows, cols], before the transform; a vector of n is [n, 1]. */
  readonly shape: readonly [number, number];
  readonly transform?: WeightTransform;
  readonly rows?: Range;
  readonly cols?: Range;
}

export type WeightTransform =
  /** [cols, rows] on disk (GPT-2's Conv1D); only for F32, F16 and BF16. */
  | { readonly kind: "transpose" }
  /** Rows of each head on disk are pairs (0, 1), (2, 3)... of an interleaved rope; wanted: halves (0, d/2), (1, d/2+1)...
   *  Disk row h·d + 2·i + j becomes row h·d + j·d/2 + i. (GGUF files of llama and mistral.) */
  | { readonly kind: "unpermute"; readonly heads: number }
  /** Stored as w − 1 (Gemma's norms in safetensors): the weight is 1 + what is stored. Vectors only. */
  | { readonly kind: "addOne" };

export type Role = "weight" | "activation" | "cache" | "input" | "output";

export interface Tensor {
  /** Index in plan.tensors. */
  readonly id: number;
  /** Unique in the plan; the checkpoint's own names for weights ("model.layers.0.self_attn.q_proj.weight"), paths like
   *  "layers.0.attention.q" for the rest: what dump() and diff take. */
  readonly name: string;
  readonly shape: readonly Dim[];
  readonly dtype: DType;
  readonly role: Role;
  /** role "weight" only: pieces stacked along rows. dtype is then what the reference widens it to (f32). */
  readonly from?: readonly WeightPiece[];
  /** role "cache" only: index in plan.caches. */
  readonly cache?: number;
  /** role "input" only. */
  readonly input?: InputName;
}

/** What every step brings. tokenIds, positions: [tokens] i32. sampleRows: [rows] i32, indices into tokens. */
export type InputName = "tokenIds" | "positions" | "sampleRows";

export interface Node {
  readonly op: Op;
  /** By the op's own input names; an optional input that is absent is undefined. */
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly params: Readonly<Record<string, unknown>>;
}

/**
 * What a layer remembers between steps. "paged": bytes a token a layer, in pages of the group's page table.
 * "state": one block of bytes a sequence (recurrent layers), in the group's state pages.
 * Caches of one group share a page table: full attention layers one group, each window size one, states one.
 */
export type Cache =
  | {
      readonly group: number;
      readonly kind: "paged";
      readonly window?: number;
      readonly numKvHeads: number;
      readonly headDim: number;
      readonly vHeadDim: number;
    }
  | { readonly group: number; readonly kind: "state"; readonly shape: readonly number[] };

export interface Plan {
  readonly nodes: readonly Node[];
  readonly tensors: readonly Tensor[];
  readonly caches: readonly Cache[];
  readonly vocabSize: number;
  /** Which rank of how many this plan is; {rank: 0, size: 1} when not split. */
  readonly rank: { readonly rank: number; readonly size: number };
}
