// Owns: a step's entries as flat arrays (device/batch.ts), and which row of the result is whose. Arrays are made anew for
// every step: the device may still read those of the steps before.
//
//   rows of an entry, in order:  | scored prompt positions ... | the drawn token | what follows each guess ... |
import {
  type Batch,
  noUpdates,
  type PageTable,
  type RaggedBias,
  SlotFloat,
  SlotInt,
  type SlotUpdates,
  slotFloats,
  slotInts,
} from "../device/batch.js";
import { type Entry, rowsOfEntry } from "./scheduler.js";
import type { Sequence } from "./sequence.js";
import type { SamplingParams } from "./types.js";

export function buildBatch(entries: readonly Entry[], numGroups: number): Batch {
  const n = entries.length;
  let numTokens = 0;
  let numRows = 0;
  let topLogprobs = 0;
  for (const entry of entries) {
    const { sequence, tokens, scoreFrom, scoreTo, draws } = entry;
    numTokens += tokens;
    numRows += rowsOfEntry(entry);
    if (draws) topLogprobs = Math.max(topLogprobs, sequence.request.logprobs ?? 0);
    if (scoreTo > scoreFrom) topLogprobs = Math.max(topLogprobs, sequence.request.promptLogprobs ?? 0);
  }
  const tokens = new Int32Array(numTokens);
  const slots = new Int32Array(n);
  const tokenStart = new Int32Array(n + 1);
  const kvStart = new Int32Array(n);
  const rows = new Int32Array(numRows);
  const targets = new Int32Array(numRows).fill(-1);
  const rowPositions = new Int32Array(numRows);
  const maskedRows: number[] = [];
  let row = 0;
  entries.forEach((entry, s) => {
    const { sequence } = entry;
    const at = tokenStart[s];
    const kv = sequence.computed;
    slots[s] = sequence.slot;
    kvStart[s] = kv;
    tokenStart[s + 1] = at + entry.tokens;
    const own = entry.tokens - entry.drafts.length;
    const known = Math.max(0, Math.min(own, sequence.length - kv));
    tokens.set(sequence.tokens.subarray(kv, kv + known), at);
    if (known < own) tokens[at + known] = -1 - sequence.slot;
    tokens.set(entry.drafts, at + own);
    for (let position = entry.scoreFrom; position < entry.scoreTo; position++, row++) {
      rows[row] = at + position - 1 - kv;
      targets[row] = sequence.tokens[position];
      rowPositions[row] = position;
    }
    if (!entry.draws) return;
    if (sequence.constraint) maskedRows.push(row);
    for (let token = own; token <= entry.tokens; token++, row++) {
      rows[row] = at + token - 1;
      rowPositions[row] = kv + token;
    }
  });
  return {
    tokens,
    slots,
    tokenStart,
    kvStart,
    pages: Array.from({ length: numGroups }, (_, g) => pageTable(entries, g)),
    rows,
    targets,
    rowPositions,
    bias: biases(entries, numRows),
    maskedRows: Int32Array.from(maskedRows),
    topLogprobs,
    updates: slotUpdates(entries.map(({ sequence }) => sequence).filter(({ slotIsNew }) => slotIsNew)),
  };
}

function pageTable(entries: readonly Entry[], g: number): PageTable {
  const start = new Int32Array(entries.length + 1);
  const first = new Int32Array(entries.length);
  entries.forEach(({ sequence }, s) => {
    start[s + 1] = start[s] + sequence.held[g].ids.length;
    first[s] = sequence.held[g].first;
  });
  const ids = new Int32Array(start[entries.length]);
  for (const [s, { sequence }] of entries.entries()) ids.set(sequence.held[g].ids, start[s]);
  return { start, first, ids };
}

/** The caller's logit_bias, and −Infinity for stop ids until min_tokens have been drawn. Scored rows have none. */
function biases(entries: readonly Entry[], numRows: number): RaggedBias {
  const start = new Int32Array(numRows + 1);
  const ids: number[] = [];
  const values: number[] = [];
  let row = 0;
  for (const { sequence, scoreFrom, scoreTo, draws, drafts } of entries) {
    for (let i = scoreFrom; i < scoreTo; i++) start[++row] = ids.length;
    if (!draws) continue;
    const { request, drawn } = sequence;
    for (let ahead = 0; ahead <= drafts.length; ahead++) {
      for (const [id, value] of request.sampling.logitBias) {
        ids.push(id);
        values.push(value);
      }
      if (drawn + ahead < request.minTokens) {
        for (const id of sequence.record.stopIds) {
          ids.push(id);
          values.push(Number.NEGATIVE_INFINITY);
        }
      }
      start[++row] = ids.length;
    }
  }
  return { start, ids: Int32Array.from(ids), values: Float32Array.from(values) };
}

function slotUpdates(sequences: readonly Sequence[]): SlotUpdates {
  const n = sequences.length;
  if (n === 0) return noUpdates;
  const floats = new Float32Array(n * slotFloats);
  const ints = new Int32Array(n * slotInts);
  const prompts: Int32Array[] = [];
  const outputs: Int32Array[] = [];
  sequences.forEach((sequence, u) => {
    const { sampling } = sequence.request;
    const counts = hasPenalties(sampling);
    floats[u * slotFloats + SlotFloat.temperature] = sampling.temperature;
    floats[u * slotFloats + SlotFloat.topP] = sampling.topP;
    floats[u * slotFloats + SlotFloat.minP] = sampling.minP;
    floats[u * slotFloats + SlotFloat.repetition] = sampling.repetitionPenalty;
    floats[u * slotFloats + SlotFloat.frequency] = sampling.frequencyPenalty;
    floats[u * slotFloats + SlotFloat.presence] = sampling.presencePenalty;
    const seed = BigInt.asUintN(64, sampling.seed + BigInt(sequence.index));
    ints[u * slotInts + SlotInt.topK] = sampling.topK;
    ints[u * slotInts + SlotInt.seedLow] = Number(BigInt.asIntN(32, seed));
    ints[u * slotInts + SlotInt.seedHigh] = Number(BigInt.asIntN(32, seed >> 32n));
    ints[u * slotInts + SlotInt.adapter] = sequence.record.adapter;
    ints[u * slotInts + SlotInt.counts] = counts ? 1 : 0;
    const { tokens, promptLength, length } = sequence;
    prompts.push(tokens.subarray(0, counts ? promptLength : 0));
    outputs.push(counts ? tokens.subarray(promptLength, length) : tokens.subarray(0, 0));
  });
  const [promptStart, promptIds] = joined(prompts);
  const [outputStart, outputIds] = joined(outputs);
  const slots = Int32Array.from(sequences, ({ slot }) => slot);
  return { slots, floats, ints, promptStart, promptIds, outputStart, outputIds };
}

function joined(lists: readonly Int32Array[]): [start: Int32Array, ids: Int32Array] {
  const start = new Int32Array(lists.length + 1);
  lists.forEach((list, i) => {
    start[i + 1] = start[i] + list.length;
  });
  const ids = new Int32Array(start[lists.length]);
  for (const [i, list] of lists.entries()) ids.set(list, start[i]);
  return [start, ids];
}

export function hasPenalties(p: SamplingParams): boolean {
  return p.repetitionPenalty !== 1 || p.frequencyPenalty !== 0 || p.presencePenalty !== 0;
}
