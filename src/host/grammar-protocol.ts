// Owns: what the grammar worker and the engine's host say to each other, and the layout of the memory that they share.
//
//   Int32Array of one choice    [ stamp | verdict | jumps | up to 64 ids that must follow | mask, one bit an id ]
//
// A choice's operations (open, accept, rollback) are counted on both sides. The worker writes everything else first and
// then the count, so that who sees the count sees what belongs to it; the host reads it before it sends the next one.
import type { TokenGrammar } from "../engine/types.js";

export interface GrammarWorkerData {
  /** The model file or folder, for its tokenizer. */
  readonly path: string;
  /** Of the logits. */
  readonly vocabSize: number;
  /** Milliseconds that one choice may take of the worker, where its tokens take long; half as much for a single token. */
  readonly patienceMs?: number;
}

export const usualPatienceMs = 20_000;

/** What a worker gets beside: it writes there which choice it is working on, 0 for none, and how many pieces of work it has begun. */
export interface GrammarWorkerStart extends GrammarWorkerData {
  readonly busy: Int32Array;
}

export type GrammarMessage =
  /** Reads and compiles it, so that a later open finds it ready. */
  | { readonly type: "compile"; readonly ticket: number; readonly grammar: TokenGrammar }
  | {
      readonly type: "open";
      readonly id: number;
      readonly grammar: TokenGrammar;
      readonly shared: Int32Array;
      /** A worker that takes the place of a dead one is told what had come, and whether jumps were taken since. */
      readonly history: readonly number[];
      readonly stamp: number;
      readonly jumped: boolean;
    }
  /** (id, token) for each token that was drawn. */
  | { readonly type: "accept"; readonly drawn: readonly number[] }
  | { readonly type: "rollback"; readonly id: number; readonly count: number }
  | { readonly type: "close"; readonly id: number };

export type GrammarReply =
  | { readonly type: "compiled"; readonly ticket: number; readonly error?: { message: string; code: string } }
  /** What was asked for up to here is in the shared memory. */
  | { readonly type: "written" };

export const Slot = { stamp: 0, verdict: 1, jumps: 2, jumpIds: 3, mask: 67 } as const;
export const mostJumps = Slot.mask - Slot.jumpIds;
export const Busy = { choice: 0, count: 1 } as const;
export const VerdictCode = { mask: 0, end: 1, failed: 2, slow: 3 } as const;
