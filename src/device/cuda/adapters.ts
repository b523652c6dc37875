// Owns: adapters on the device: a table [sites][slots] of factors that kernels/cuda/lora.cu reads, at a fixed address in the
// workspace, and one allocation of values for each adapter that is loaded.
import { UserError } from "../../base/errors.js";
import type { AdapterSource } from "../device.js";
import type { PlannedArea } from "./memory.js";
import type { Cuda } from "./native.js";

/** struct Factors of lora.cu. */
export const factorsBytes = 32;
const mostRank = 1024;

/** Where a plan's sites are: numbered as they are met. */
export interface AdapterTable {
  readonly sites: ReadonlyMap<string, number>;
  readonly slots: number;
  /** Absent: the plan has no sites. */
  readonly area?: PlannedArea;
}

export class Adapters {
  private readonly loaded = new Map<number, { source: AdapterSource; address: number }>();

  constructor(
    private readonly cuda: Cuda,
    private readonly table: AdapterTable,
  ) {}

  /** Waits for the steps in flight. null: the slot is empty from now on. */
  set(slot: number, source: AdapterSource | null): void {
    for (const { a } of source?.sites.values() ?? [])
      if (a.shape[0] > mostRank) throw new UserError(`the cuda device takes adapters of rank ${mostRank} at most`);
    const old = this.loaded.get(slot);
    this.loaded.delete(slot);
    if (source) {
      const floats = [...source.sites.values()].reduce((sum, { a, b }) => sum + a.data.length + b.data.length, 0);
      this.loaded.set(slot, { source, address: this.cuda.alloc(4 * floats) });
    }
    this.write(slot);
    this.cuda.synchronize();
    if (old) this.cuda.free(old.address);
  }

  close(): void {
    for (const { address } of this.loaded.values()) this.cuda.free(address);
    this.loaded.clear();
  }

  /** The slot's entry of every site, and the values. */
  private write(slot: number): void {
    const { cuda, table } = this;
    if (!table.area) return;
    const here = this.loaded.get(slot);
    let at = here?.address ?? 0;
    const up = (data: Float32Array) => {
      const address = at;
      cuda.toDevice(address, cuda.addressOf(data), data.byteLength);
      at += data.byteLength;
      return address;
    };
    for (const [site, number] of table.sites) {
      const entry = new DataView(new ArrayBuffer(factorsBytes));
      const factors = here?.source.sites.get(site);
      if (here && factors) {
        const { a, b } = factors;
        entry.setBigUint64(0, BigInt(up(a.data)), true);
        entry.setBigUint64(8, BigInt(up(b.data)), true);
        entry.setInt32(16, a.shape[0], true);
        entry.setInt32(20, a.shape[1], true);
        entry.setFloat32(24, here.source.scale, true);
      }
      const to = table.area.address + BigInt(factorsBytes * (number * table.slots + slot));
      cuda.toDevice(Number(to), cuda.addressOf(entry), factorsBytes);
    }
  }
}
