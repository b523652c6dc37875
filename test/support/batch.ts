// Owns: writing Batches by hand for tests: sequences that keep their pages in order, with nothing of the engine.
import {
  type Batch,
  noBias,
  type PageTable,
  SlotFloat,
  SlotInt,
  type SlotUpdates,
  slotFloats,
  slotInts,
} from "../../src/device/batch.js";
import type { Limits, Program } from "../../src/device/device.js";

export const limits: Limits = {
  maxTokens: 256,
  maxRows: 64,
  maxSequences: 16,
  slots: 32,
  contextLength: 512,
  memoryBytes: 2 ** 30,
  kvDtype: "f32",
  threads: 2,
  depth: 3,
  deterministic: true,
  adapterSlots: 2,
  maxPages: 256,
};

export interface SlotSettings {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetition?: number;
  frequency?: number;
  presence?: number;
  seed?: number;
  adapter?: number;
  counts?: { prompt: readonly number[]; output: readonly number[] };
}

export function updates(settings: readonly (readonly [slot: number, settings: SlotSettings])[]): SlotUpdates {
  const floats = new Float32Array(settings.length * slotFloats);
  const ints = new Int32Array(settings.length * slotInts);
  settings.forEach(([, s], u) => {
    const f = u * slotFloats;
    floats[f + SlotFloat.temperature] = s.temperature ?? 0;
    floats[f + SlotFloat.topP] = s.topP ?? 1;
    floats[f + SlotFloat.minP] = s.minP ?? 0;
    floats[f + SlotFloat.repetition] = s.repetition ?? 1;
    floats[f + SlotFloat.frequency] = s.frequency ?? 0;
    floats[f + SlotFloat.presence] = s.presence ?? 0;
    const i = u * slotInts;
    ints[i + SlotInt.topK] = s.topK ?? 0;
    ints[i + SlotInt.seedLow] = s.seed ?? 0;
    ints[i + SlotInt.adapter] = s.adapter ?? -1;
    ints[i + SlotInt.counts] = s.counts ? 1 : 0;
  });
  const prompts = ragged(settings.map(([, s]) => s.counts?.prompt ?? []));
  const outputs = ragged(settings.map(([, s]) => s.counts?.output ?? []));
  return {
    slots: Int32Array.from(settings, ([slot]) => slot),
    floats,
    ints,
    promptStart: prompts.start,
    promptIds: prompts.ids,
    outputStart: outputs.start,
    outputIds: outputs.ids,
  };
}

export function ragged(lists: readonly (readonly number[])[]): { start: Int32Array; ids: Int32Array } {
  const start = new Int32Array(lists.length + 1);
  lists.forEach((list, i) => {
    start[i + 1] = start[i] + list.length;
  });
  return { start, ids: Int32Array.from(lists.flat()) };
}

/** One sequence's part of a step. */
export interface Part {
  slot: number;
  tokens: readonly number[];
  kvStart: number;
  /** Page ids of each group, oldest first; `first` of a group: index of the first page that is still held. */
  pages: readonly (readonly number[])[];
  first?: readonly number[];
  /** Which of its tokens are sampled; by default the last. */
  rows?: readonly number[];
  targets?: readonly number[];
}

export function batchOf(parts: readonly Part[], extra: Partial<Batch> = {}): Batch {
  const { start: tokenStart, ids: tokens } = ragged(parts.map((part) => part.tokens));
  const rows: number[] = [];
  const targets: number[] = [];
  const positions: number[] = [];
  parts.forEach((part, s) => {
    (part.rows ?? [part.tokens.length - 1]).forEach((row, i) => {
      rows.push(tokenStart[s] + row);
      targets.push(part.targets?.[i] ?? -1);
      positions.push(part.kvStart + row + 1);
    });
  });
  const groups = parts[0]?.pages.length ?? 0;
  const pages = Array.from({ length: groups }, (_, g): PageTable => {
    const { start, ids } = ragged(parts.map((part) => part.pages[g]));
    return { start, ids, first: Int32Array.from(parts, (part) => part.first?.[g] ?? 0) };
  });
  return {
    tokens,
    slots: Int32Array.from(parts, (part) => part.slot),
    tokenStart,
    kvStart: Int32Array.from(parts, (part) => part.kvStart),
    pages,
    rows: Int32Array.from(rows),
    targets: Int32Array.from(targets),
    rowPositions: Int32Array.from(positions),
    bias: noBias(rows.length),
    maskedRows: new Int32Array(0),
    topLogprobs: 0,
    updates: updates([]),
    ...extra,
  };
}

/** Hands out pages of each group, first come first served. */
export class PageKeeper {
  private readonly next: number[];

  constructor(private readonly program: Program) {
    this.next = program.caches.map(() => 0);
  }

  /** Page ids of each group for a sequence of up to `tokens` tokens. */
  take(tokens: number): number[][] {
    return this.program.caches.map((group, g) => {
      const count = group.kind === "state" ? 1 : Math.ceil(tokens / group.pageTokens);
      return Array.from({ length: count }, () => this.next[g]++);
    });
  }
}
