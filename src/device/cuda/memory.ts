// Owns: where a program's workspace lies: areas of one allocation, planned before there is any. Areas that live only from one
// node of the plan to another share room with areas of other times.
import { check } from "../../base/errors.js";
import type { Area } from "./launch.js";

const align = (bytes: number) => Math.ceil(Math.max(bytes, 1) / 256) * 256;

export class PlannedArea implements Area {
  /** Places in the plan, both included; [0, Infinity] for what stays. */
  first: number;
  last: number;
  offset = -1;

  constructor(
    private readonly workspace: Workspace,
    public bytes: number,
    first: number,
    last: number,
  ) {
    this.first = first;
    this.last = last;
  }

  get address(): bigint {
    check(this.offset >= 0 && this.workspace.base > 0n, "an area's address was read before it had one");
    return this.workspace.base + BigInt(this.offset);
  }
}

export class Workspace {
  /** Set once the memory is there. */
  base = 0n;
  private readonly areas: PlannedArea[] = [];

  /** first, last: nodes between which it is used. */
  add(bytes: number, first = 0, last = Number.POSITIVE_INFINITY): PlannedArea {
    const area = new PlannedArea(this, align(bytes), first, last);
    this.areas.push(area);
    return area;
  }

  grow(area: PlannedArea, bytes: number): void {
    area.bytes = Math.max(area.bytes, align(bytes));
  }

  /** Gives every area its offset, large ones first, each in the lowest gap; returns the bytes of all. apart: none share. */
  place(apart: boolean): number {
    let end = 0;
    const placed: PlannedArea[] = [];
    for (const area of [...this.areas].sort((a, b) => b.bytes - a.bytes || a.first - b.first)) {
      const others = placed.filter((other) => apart || (other.first <= area.last && area.first <= other.last));
      others.sort((a, b) => a.offset - b.offset);
      let offset = 0;
      for (const other of others) {
        if (other.offset - offset >= area.bytes) break;
        offset = Math.max(offset, other.offset + other.bytes);
      }
      area.offset = offset;
      placed.push(area);
      end = Math.max(end, offset + area.bytes);
    }
    return end;
  }
}
