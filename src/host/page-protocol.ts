// Owns: what page-store.ts and page-worker.ts say to each other. Bytes change hands, they are not copied.
import type { PageTiersOptions, Where } from "./page-tiers.js";

export type PageWorkerData = PageTiersOptions;

export type PageMessage =
  | { readonly type: "put"; readonly key: string; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly type: "get"; readonly ticket: number; readonly keys: readonly string[] }
  /** Writes what waits, then ends. */
  | { readonly type: "close" };

export type PageReply =
  | { readonly type: "moved"; readonly keys: readonly string[]; readonly where: Where }
  | { readonly type: "got"; readonly ticket: number; readonly pages: readonly (Uint8Array<ArrayBuffer> | undefined)[] }
  /** What was on disk is known. */
  | { readonly type: "opened" }
  | {
      readonly type: "held";
      readonly memory: { readonly pages: number; readonly bytes: number };
      readonly disk: { readonly pages: number; readonly bytes: number };
      readonly damaged: number;
    };
