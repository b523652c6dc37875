// Owns: the memory of pages, a pool a group, and moving pages. When, and whether the ids are there, is the program's.
import type { PageGroup } from "../device.js";
import type { Cuda } from "./native.js";

export class PagePools {
  /** addresses: read by the lowered plan; 0n where there is no memory. */
  constructor(
    private readonly cuda: Cuda,
    private readonly addresses: bigint[],
    private readonly groups: readonly PageGroup[],
  ) {}

  /** All zero. */
  allocate(): void {
    for (const [g, { pageBytes, numPages }] of this.groups.entries()) {
      this.addresses[g] ||= BigInt(this.cuda.alloc(pageBytes * numPages));
      this.cuda.fill(Number(this.addresses[g]), 0, pageBytes * numPages);
    }
  }

  free(): void {
    for (const [g, address] of this.addresses.entries()) {
      if (address) this.cuda.free(Number(address));
      this.addresses[g] = 0n;
    }
  }

  copy(group: number, from: Int32Array, to: Int32Array): void {
    const { pageBytes } = this.groups[group];
    for (let i = 0; i < from.length; i++) {
      this.cuda.copy(this.page(group, to[i]), this.page(group, from[i]), pageBytes);
    }
  }

  /** As the kernels lay them out. Waits for them. */
  read(group: number, ids: Int32Array): Uint8Array {
    const { pageBytes } = this.groups[group];
    const out = new Uint8Array(ids.length * pageBytes);
    const at = this.cuda.addressOf(out);
    for (let i = 0; i < ids.length; i++) this.cuda.toHost(at + i * pageBytes, this.page(group, ids[i]), pageBytes);
    this.cuda.synchronize();
    return out;
  }

  /** Waits until they are there. */
  write(group: number, ids: Int32Array, bytes: Uint8Array): void {
    const { pageBytes } = this.groups[group];
    const at = this.cuda.addressOf(bytes);
    for (let i = 0; i < ids.length; i++) this.cuda.toDevice(this.page(group, ids[i]), at + i * pageBytes, pageBytes);
    this.cuda.synchronize();
  }

  private page(group: number, id: number): number {
    return Number(this.addresses[group]) + id * this.groups[group].pageBytes;
  }
}
