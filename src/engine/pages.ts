// Owns: the pages of one group: who holds them, which can be found again by their content, and which goes next when one is
// wanted. Knows nothing of sequences; holdings.ts does.
//
//   used    references > 0                      in nobody's list
//   cached  references = 0, has a name          in the free list, towards its tail
//   free    references = 0, has no name         in the free list, at its head
//
//   free list, in the order pages will be taken:  head → [free ...] [cached, longest unused ...] → tail
//
// The list is doubly linked through typed arrays, so a cached page that is found again leaves the middle in O(1).
import { check } from "../base/errors.js";

export class PagePool {
  private readonly references: Int32Array;
  /** Index numPages is the list's end on both sides: next of it is the head, previous of it the tail. */
  private readonly next: Int32Array;
  private readonly previous: Int32Array;
  private readonly names: (string | undefined)[];
  private readonly byName = new Map<string, number>();
  private unreferenced: number;
  /** Hears of a page that can no longer be found, before anybody writes to it. */
  onForgotten: (page: number, name: string) => void = () => {};

  constructor(readonly numPages: number) {
    this.references = new Int32Array(numPages);
    this.names = new Array(numPages);
    this.next = new Int32Array(numPages + 1);
    this.previous = new Int32Array(numPages + 1);
    for (let page = 0; page <= numPages; page++) {
      this.next[page] = page === numPages ? 0 : page + 1;
      this.previous[page] = page === 0 ? numPages : page - 1;
    }
    this.unreferenced = numPages;
  }

  /** Pages that take() can give: free and cached ones. */
  get available(): number {
    return this.unreferenced;
  }

  get cached(): number {
    let used = 0;
    for (const page of this.byName.values()) if (this.references[page] > 0) used++;
    return this.byName.size - used;
  }

  /** A page with one reference and no name; −1 where all are used. */
  take(): number {
    const page = this.next[this.numPages];
    if (page === this.numPages) return -1;
    this.unlink(page);
    const name = this.names[page];
    if (name !== undefined) this.onForgotten(page, name);
    this.forget(page);
    this.references[page] = 1;
    return page;
  }

  retain(page: number): void {
    if (this.references[page]++ === 0) this.unlink(page);
  }

  /** The last reference gone, a named page is the last to be taken and one without a name the first. */
  release(page: number): void {
    check(this.references[page] > 0, `page ${page} is released more often than it was taken`);
    if (--this.references[page] > 0) return;
    this.link(page, this.names[page] === undefined ? this.numPages : this.previous[this.numPages]);
  }

  /** Whether writing to the page would change what someone else reads. */
  shared(page: number): boolean {
    return this.references[page] > 1 || this.names[page] !== undefined;
  }

  /** The first page of a name keeps it: a second one of the same content stays nameless (false). */
  name(page: number, name: string): boolean {
    if (this.byName.has(name)) return false;
    this.forget(page);
    this.names[page] = name;
    this.byName.set(name, page);
    return true;
  }

  /** A cached page becomes the last to be taken. */
  touch(page: number): void {
    this.retain(page);
    this.release(page);
  }

  find(name: string): number | undefined {
    return this.byName.get(name);
  }

  /** No page is found by its content any more. */
  forgetAll(): void {
    for (const page of [...this.byName.values()]) {
      this.forget(page);
      if (this.references[page] > 0) continue;
      this.unlink(page);
      this.link(page, this.numPages);
    }
  }

  /** Proves that every page is used, cached or free, and that the list holds exactly the latter two. */
  check(): void {
    const listed = new Uint8Array(this.numPages);
    let count = 0;
    let before = this.numPages;
    for (let page = this.next[before]; page !== this.numPages; before = page, page = this.next[page]) {
      check(listed[page] === 0 && this.references[page] === 0, `page ${page} is in the free list and in use`);
      check(this.previous[page] === before, `the free list is broken at page ${page}`);
      listed[page] = 1;
      count++;
    }
    check(this.previous[this.numPages] === before, "the free list has another tail");
    check(count === this.unreferenced, `${count} pages are in the free list, ${this.unreferenced} are counted`);
    for (let page = 0; page < this.numPages; page++) {
      check(listed[page] === 1 || this.references[page] > 0, `page ${page} is lost`);
      const name = this.names[page];
      check(name === undefined || this.byName.get(name) === page, `page ${page} has a name that finds another`);
    }
  }

  private forget(page: number): void {
    const name = this.names[page];
    if (name === undefined) return;
    this.names[page] = undefined;
    this.byName.delete(name);
  }

  private unlink(page: number): void {
    this.next[this.previous[page]] = this.next[page];
    this.previous[this.next[page]] = this.previous[page];
    this.unreferenced--;
  }

  private link(page: number, after: number): void {
    const before = this.next[after];
    this.next[after] = page;
    this.previous[page] = after;
    this.next[page] = before;
    this.previous[before] = page;
    this.unreferenced++;
  }
}
