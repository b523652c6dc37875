// Owns: a step's arrays: where they lie on the device (StepView), and how the host hands a batch over: written into pinned
// memory of the ring's entry, from where mr_begin (kernels/cuda/step.cu) takes everything with one launch.
import { check } from "../../base/errors.js";
import { type Batch, slotFloats, slotInts } from "../batch.js";
import type { Limits } from "../device.js";
import { type Area, pageTokens, type StepView } from "./launch.js";
import type { PlannedArea, Workspace } from "./memory.js";

/** Words before the segments: struct Upload of step.cu. */
const headerWords = 32;
/** Entries of a batch's bias lists, at most, for each row. */
const biasEntries = 1024;
/** Top logprobs of a row, at most. */
export const mostTop = 1024;

/** Arrays of the device that mr_begin fills, in words. */
interface Arrays {
  tokenSequence: PlannedArea;
  positions: PlannedArea;
  slots: PlannedArea;
  tokenStart: PlannedArea;
  kvStart: PlannedArea;
  rowTokens: PlannedArea;
  rowSlot: PlannedArea;
  targets: PlannedArea;
  rowPositions: PlannedArea;
  waves: PlannedArea;
  rowMask: PlannedArea;
  biasStart: PlannedArea;
  biasIds: PlannedArea;
  biasValues: PlannedArea;
}

export class StepMemory {
  readonly view: StepView;
  readonly arrays: Arrays;
  readonly info: Area;
  readonly tokenIds: Area;
  /** [slots, slotFloats], [slots, slotInts] and each slot's last sample. */
  readonly slotFloats: PlannedArea;
  readonly slotInts: PlannedArea;
  readonly lastToken: PlannedArea;
  /** Bytes of pinned memory of one step's upload. */
  readonly uploadBytes: number;
  private readonly tables: { start: PlannedArea; first: PlannedArea; ids: PlannedArea }[];

  constructor(workspace: Workspace, limits: Limits, groups: number, vocabSize: number) {
    const { maxTokens, maxRows, maxSequences, contextLength } = limits;
    let words = 0;
    const array = (count: number) => {
      words += count;
      return workspace.add(4 * count);
    };
    const bias = Math.max(biasEntries * maxRows, vocabSize);
    this.info = array(16);
    this.tokenIds = array(maxTokens);
    this.arrays = {
      tokenSequence: array(maxTokens),
      positions: array(maxTokens),
      slots: array(maxSequences),
      tokenStart: array(maxSequences + 1),
      kvStart: array(maxSequences),
      rowTokens: array(maxRows),
      rowSlot: array(maxRows),
      targets: array(maxRows),
      rowPositions: array(maxRows),
      waves: array(maxRows),
      rowMask: array(maxRows),
      biasStart: array(maxRows + 1),
      biasIds: array(bias),
      biasValues: array(bias),
    };
    this.tables = Array.from({ length: groups }, () => ({
      start: array(maxSequences + 1),
      first: array(maxSequences),
      ids: array(maxSequences * (Math.ceil(contextLength / pageTokens) + 1)),
    }));
    this.slotFloats = workspace.add(4 * slotFloats * limits.slots);
    this.slotInts = workspace.add(4 * slotInts * limits.slots);
    this.lastToken = workspace.add(4 * limits.slots);
    const segments = Object.keys(this.arrays).length + 3 * groups;
    const updates = limits.slots * (1 + slotFloats + slotInts);
    this.uploadBytes = 4 * (headerWords + 4 * segments + words + updates);
    this.view = viewOf(this.info, this.tokenIds, this.slotInts, this.arrays, this.tables);
  }

  /** Writes the batch for step `number` into the upload of the ring's entry. */
  write(batch: Batch, upload: Uint8Array, ring: number, number: number, waves: Int32Array): void {
    const words = new Int32Array(upload.buffer, upload.byteOffset, upload.byteLength / 4);
    const view = new DataView(upload.buffer, upload.byteOffset, upload.byteLength);
    const segments: [PlannedArea, Int32Array][] = [];
    const { arrays } = this;
    const { tokenSequence, positions } = perToken(batch);
    const rowSlot = Int32Array.from(batch.rows, (token) => batch.slots[tokenSequence[token]]);
    const rowMask = new Int32Array(batch.rows.length).fill(-1);
    batch.maskedRows.forEach((row, i) => {
      rowMask[row] = i;
    });
    const values = new Int32Array(Float32Array.from(batch.bias.values).buffer);
    segments.push([arrays.tokenSequence, tokenSequence], [arrays.positions, positions]);
    segments.push([arrays.slots, batch.slots], [arrays.tokenStart, batch.tokenStart], [arrays.kvStart, batch.kvStart]);
    segments.push([arrays.rowTokens, batch.rows], [arrays.rowSlot, rowSlot], [arrays.targets, batch.targets]);
    segments.push([arrays.rowPositions, batch.rowPositions], [arrays.waves, waves], [arrays.rowMask, rowMask]);
    segments.push([arrays.biasStart, batch.bias.start], [arrays.biasIds, batch.bias.ids], [arrays.biasValues, values]);
    for (const [g, table] of batch.pages.entries()) {
      const { start, first, ids } = this.tables[g];
      segments.push([start, table.start], [first, table.first], [ids, table.ids]);
    }
    words.set([batch.tokens.length, batch.slots.length, batch.rows.length, ring, batch.topLogprobs, number], 0);
    let at = headerWords + 4 * segments.length;
    const put = (values: Int32Array) => {
      check(at + values.length <= words.length, "a step's arrays do not fit its upload");
      words.set(values, at);
      at += values.length;
      return at - values.length;
    };
    const { updates } = batch;
    words.set([segments.length, put(batch.tokens), updates.slots.length, put(updates.slots)], 16);
    words.set([put(new Int32Array(Float32Array.from(updates.floats).buffer)), put(updates.ints)], 20);
    for (const [i, [area, array]] of segments.entries()) {
      check(4 * array.length <= area.bytes, `${array.length} values do not fit one of a step's arrays`);
      words.set([put(array), array.length], headerWords + 4 * i);
      view.setBigUint64(4 * (headerWords + 4 * i + 2), area.address, true);
    }
  }
}

function perToken(batch: Batch): { tokenSequence: Int32Array; positions: Int32Array } {
  const tokenSequence = new Int32Array(batch.tokens.length);
  const positions = new Int32Array(batch.tokens.length);
  for (let s = 0; s < batch.slots.length; s++) {
    for (let t = batch.tokenStart[s]; t < batch.tokenStart[s + 1]; t++) {
      tokenSequence[t] = s;
      positions[t] = batch.kvStart[s] + t - batch.tokenStart[s];
    }
  }
  return { tokenSequence, positions };
}

/** Addresses are asked for when launches are made, not before. */
function viewOf(
  info: Area,
  tokenIds: Area,
  slotInts: Area,
  arrays: Arrays,
  tables: readonly { start: Area; first: Area; ids: Area }[],
): StepView {
  return {
    get info() {
      return info.address;
    },
    get tokenIds() {
      return tokenIds.address;
    },
    get positions() {
      return arrays.positions.address;
    },
    get tokenSequence() {
      return arrays.tokenSequence.address;
    },
    get slots() {
      return arrays.slots.address;
    },
    get slotInts() {
      return slotInts.address;
    },
    get tokenStart() {
      return arrays.tokenStart.address;
    },
    get kvStart() {
      return arrays.kvStart.address;
    },
    get rowTokens() {
      return arrays.rowTokens.address;
    },
    pages: tables.map(({ start, first, ids }) => ({
      get start() {
        return start.address;
      },
      get first() {
        return first.address;
      },
      get ids() {
        return ids.address;
      },
    })),
  };
}

/** 0 for all rows, unless a slot whose tokens are counted draws more than once: its second draw sees what the first one drew
 *  and so belongs to wave 1. Returns how many waves there are. counted: slots with penalties. */
export function sampleWaves(batch: Batch, counted: ReadonlySet<number>, out: Int32Array): number {
  if (counted.size === 0) return 1;
  const drawn = new Map<number, number>();
  let most = 1;
  let s = 0;
  for (const [r, token] of batch.rows.entries()) {
    while (token >= batch.tokenStart[s + 1]) s++;
    const slot = batch.slots[s];
    if (!counted.has(slot)) continue;
    const wave = drawn.get(slot) ?? 0;
    out[r] = wave;
    if (batch.targets[r] < 0) drawn.set(slot, wave + 1);
    most = Math.max(most, wave + 1);
  }
  return most;
}
