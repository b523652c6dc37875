// Owns: what a device keeps of every live sequence between steps: its last token, sampling parameters, adapter, counts.
import { InternalError } from "../../base/errors.js";
import { SlotFloat, SlotInt, type SlotUpdates, slotFloats, slotInts } from "../batch.js";
import type { SlotSampling } from "./sample.js";

export interface Slot {
  lastToken: number;
  adapter: number;
  sampling: SlotSampling;
  counts?: { prompt: Set<number>; output: Map<number, number> };
}

export class Slots {
  private readonly slots = new Map<number, Slot>();

  get(index: number): Slot {
    const slot = this.slots.get(index);
    if (!slot) throw new InternalError(`slot ${index} was used before an update gave it parameters`);
    return slot;
  }

  /** The token that −1 − slot stands for. */
  lastToken(index: number): number {
    const { lastToken } = this.get(index);
    if (lastToken < 0) throw new InternalError(`slot ${index} has not sampled a token yet`);
    return lastToken;
  }

  drawn(index: number, token: number): void {
    const slot = this.get(index);
    slot.lastToken = token;
    slot.counts?.output.set(token, (slot.counts.output.get(token) ?? 0) + 1);
  }

  update(updates: SlotUpdates): void {
    for (let u = 0; u < updates.slots.length; u++) {
      const floats = updates.floats.subarray(u * slotFloats, (u + 1) * slotFloats);
      const ints = updates.ints.subarray(u * slotInts, (u + 1) * slotInts);
      const slot: Slot = {
        lastToken: this.slots.get(updates.slots[u])?.lastToken ?? -1,
        adapter: ints[SlotInt.adapter],
        sampling: {
          temperature: floats[SlotFloat.temperature],
          topK: ints[SlotInt.topK],
          topP: floats[SlotFloat.topP],
          minP: floats[SlotFloat.minP],
          repetition: floats[SlotFloat.repetition],
          frequency: floats[SlotFloat.frequency],
          presence: floats[SlotFloat.presence],
          seedLow: ints[SlotInt.seedLow],
          seedHigh: ints[SlotInt.seedHigh],
        },
      };
      if (ints[SlotInt.counts] === 1) {
        const prompt = new Set(updates.promptIds.subarray(updates.promptStart[u], updates.promptStart[u + 1]));
        const output = new Map<number, number>();
        for (const id of updates.outputIds.subarray(updates.outputStart[u], updates.outputStart[u + 1])) {
          output.set(id, (output.get(id) ?? 0) + 1);
        }
        slot.counts = { prompt, output };
      }
      this.slots.set(updates.slots[u], slot);
    }
  }
}
