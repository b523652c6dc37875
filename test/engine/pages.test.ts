import { describe, expect, it } from "vitest";
import { Holdings } from "../../src/engine/holdings.js";
import { PageNames } from "../../src/engine/names.js";
import { PagePool } from "../../src/engine/pages.js";

function take(pool: PagePool, count: number): number[] {
  return Array.from({ length: count }, () => pool.take());
}

describe("a pool of pages", () => {
  it("gives each page once, then none", () => {
    const pool = new PagePool(4);
    expect(new Set(take(pool, 4)).size).toBe(4);
    expect(pool.take()).toBe(-1);
    pool.check();
  });

  it("takes nameless pages first, then cached ones, the longest unused first", () => {
    const pool = new PagePool(5);
    const [a, b, c, d, e] = take(pool, 5);
    for (const page of [a, b, c]) pool.name(page, `name ${page}`);
    for (const page of [b, d, a, e, c]) pool.release(page);
    expect(pool.cached).toBe(3);
    expect(take(pool, 5)).toEqual([e, d, b, a, c]);
    expect(pool.find(`name ${a}`)).toBeUndefined();
    pool.check();
  });

  it("takes a cached page that is found again out of the middle of the line", () => {
    const pool = new PagePool(3);
    const [a, b, c] = take(pool, 3);
    for (const page of [a, b, c]) {
      pool.name(page, `name ${page}`);
      pool.release(page);
    }
    pool.retain(pool.find(`name ${b}`)!);
    pool.check();
    expect(take(pool, 2)).toEqual([a, c]);
    expect(pool.take()).toBe(-1);
    pool.release(b);
    expect(pool.available).toBe(1);
    expect(pool.find(`name ${b}`)).toBe(b);
  });

  it("keeps a page until its last reference is gone, and refuses one release too many", () => {
    const pool = new PagePool(2);
    const page = pool.take();
    pool.retain(page);
    pool.release(page);
    expect(pool.available).toBe(1);
    pool.release(page);
    expect(pool.available).toBe(2);
    expect(() => pool.release(page)).toThrow(/more often/);
  });

  it("leaves a name with the page that had it first", () => {
    const pool = new PagePool(2);
    const [a, b] = take(pool, 2);
    pool.name(a, "same");
    pool.name(b, "same");
    expect(pool.find("same")).toBe(a);
    expect(pool.shared(b)).toBe(false);
    pool.check();
  });

  it("forgets all names, of pages in use too", () => {
    const pool = new PagePool(3);
    const [a, b, c] = take(pool, 3);
    for (const page of [a, b, c]) pool.name(page, `name ${page}`);
    pool.release(b);
    pool.forgetAll();
    pool.check();
    expect([pool.cached, pool.available, pool.shared(a)]).toEqual([0, 1, false]);
    expect(pool.take()).toBe(b);
  });

  it("notices a page in two states", () => {
    const pool = new PagePool(3);
    const page = pool.take();
    pool.check();
    (pool as unknown as { references: Int32Array }).references[page] = 0;
    expect(() => pool.check()).toThrow(/lost/);
  });
});

describe("names of pages", () => {
  const tokens = Int32Array.from({ length: 12 }, (_, i) => i);
  const names = (salt: string, ids = tokens) => [0, 1, 2].map((i) => new PageNames(4, salt).at(i, ids));

  it("depend on every token up to the page's end, on the salt, and on nothing else", () => {
    expect(names("a")).toEqual(names("a"));
    expect(new Set([...names("a"), ...names("b")]).size).toBe(6);
    const other = tokens.slice();
    other[1] = 99;
    for (const [i, name] of names("a", other).entries()) expect(name).not.toBe(names("a")[i]);
    const last = tokens.slice();
    last[11] = 99;
    expect(names("a", last).slice(0, 2)).toEqual(names("a").slice(0, 2));
    expect(names("a", last)[2]).not.toBe(names("a")[2]);
  });
});

describe("holdings", () => {
  const tokens = Int32Array.from({ length: 40 }, (_, i) => i);
  const copies: [group: number, from: number, to: number][] = [];
  const make = (numPages = 16) => {
    copies.length = 0;
    return new Holdings({
      caches: [
        { kind: "paged", pageTokens: 4, pageBytes: 1, numPages },
        { kind: "paged", pageTokens: 4, pageBytes: 1, numPages, window: 6 },
      ],
      copyPages: (group, from, to) => void copies.push([group, from[0], to[0]]),
    });
  };

  it("takes all pages or none", () => {
    const holdings = make(3);
    const held = holdings.none();
    expect(holdings.grow(held, 0, 13)).toBe(false);
    expect(held.map(({ ids }) => ids.length)).toEqual([0, 0]);
    expect(holdings.grow(held, 0, 12)).toBe(true);
    holdings.check([held]);
  });

  it("gives back pages behind the window in the window's group only", () => {
    const holdings = make();
    const held = holdings.none();
    holdings.grow(held, 0, 18);
    holdings.trim(held, 18); // position 18 sees 13 … 18
    expect(held.map(({ first, ids }) => [first, ids.length])).toEqual([
      [0, 5],
      [3, 2],
    ]);
    holdings.check([held]);
  });

  it("finds a prefix by all pages of full groups and those within the window of the others", () => {
    const holdings = make();
    const names = new PageNames(4, "");
    const first = holdings.none();
    holdings.grow(first, 0, 20);
    holdings.name(first, names, tokens, 0, 5);
    holdings.trim(first, 20); // the window's pages 0 to 2 are cached, 3 and 4 held
    const second = holdings.none();
    expect(holdings.adopt(second, new PageNames(4, ""), tokens, 9)).toBe(5);
    expect(second[0].ids).toEqual(first[0].ids);
    expect([second[1].first, second[1].ids]).toEqual([3, first[1].ids]);
    holdings.release(second);
    // the window's cached pages go, which a shorter prefix would need
    while (holdings.pools[1].available > 0) holdings.pools[1].take();
    expect(holdings.adopt(second, new PageNames(4, ""), tokens, 4)).toBe(0);
    expect(holdings.adopt(second, new PageNames(4, ""), tokens, 5)).toBe(5);
    expect(holdings.adopt(holdings.none(), new PageNames(4, "salt"), tokens, 5)).toBe(0);
  });

  it("copies a shared page when it is written, and only then", () => {
    const holdings = make();
    const held = holdings.none();
    holdings.grow(held, 0, 6);
    const other = holdings.share(held);
    expect(copies).toEqual([]);
    holdings.grow(other, 6, 7);
    expect(copies).toEqual([
      [0, held[0].ids[1], other[0].ids[1]],
      [1, held[1].ids[1], other[1].ids[1]],
    ]);
    expect(other[0].ids[0]).toBe(held[0].ids[0]);
    holdings.grow(held, 6, 7); // its alone by now
    expect(copies).toHaveLength(2);
    holdings.check([held, other]);
    holdings.release(held);
    holdings.release(other);
    holdings.check([]);
  });
});
