// Pages below the device: what is fetched is what was put, whoever runs meanwhile, and nobody waits for a store that does
// not answer. On the null device, whose next token depends on every page that attention sees.
import { describe, expect, test } from "vitest";
import { ids, pageTokens, request, TestStore, World, type WorldOptions } from "./harness.js";

/** More pages than are fetched at once. */
const prompt = ids(101, 3);
const most = Math.floor((prompt.length - 1) / pageTokens) * pageTokens;

async function alone(id: string, store?: TestStore, more: WorldOptions = {}) {
  const world = new World({ ...more, store });
  world.submit(request(id, prompt));
  await world.finish();
  await world.engine.flush();
  return world;
}

describe("pages below the device", () => {
  test("a prompt that another engine computed is fetched, and its answer is the same", async () => {
    const store = new TestStore();
    const first = await alone("a", store);
    const plain = await alone("a");
    expect(first.tokens("a")).toEqual(plain.tokens("a"));
    expect(store.asked).toEqual([]);

    const second = await alone("a", store);
    expect(second.of("a").starts[0].cachedTokens).toBe(most);
    expect(second.tokens("a")).toEqual(plain.tokens("a"));
    const { tiers, prefixHits } = second.engine.stats();
    expect(prefixHits).toBe(most);
    expect(tiers!.disk).toMatchObject({ hits: most / pageTokens, misses: 0 });
    expect(tiers!.memory).toMatchObject({ hits: 0, misses: most / pageTokens });
    // behind the window of 10 nothing is read: of that group only the last pages are asked for
    const groups = store.asked.flat().map((key) => key.charCodeAt(0));
    expect(groups.filter((g) => g === 0)).toHaveLength(most / pageTokens);
    expect(groups.filter((g) => g === 1).length).toBeLessThan(most / pageTokens);
  });

  test("pages that make room for others are kept", async () => {
    const store = new TestStore();
    // One page a step goes down of itself at most: the clock stands still.
    const world = new World({ store, pages: 32, windowPages: 32 });
    for (let i = 0; i < 4; i++) {
      world.submit(request(`${i}`, i === 0 ? prompt : ids(101, 100 + i)));
      await world.finish();
    }
    world.submit(request("again", prompt));
    await world.finish();
    expect(world.of("again").starts[0].cachedTokens).toBe(most);
    expect(world.tokens("again")).toEqual(world.tokens("0"));
  });

  test("others run while pages are fetched", async () => {
    const store = new TestStore();
    await alone("a", store);
    let open: (value?: unknown) => void = () => {};
    store.gate = new Promise((resolve) => {
      open = resolve;
    });
    const world = new World({ store });
    world.submit(request("a", prompt));
    world.submit(request("b", ids(20, 9)));
    while (world.reason("b") === "") await world.engine.step();
    expect(world.of("a").starts).toEqual([]);
    open();
    await world.finish();
    expect(world.of("a").starts[0].cachedTokens).toBe(most);
    expect(world.tokens("a")).toEqual((await alone("a")).tokens("a"));
  });

  test("two prompts that begin alike are fetched once", async () => {
    const store = new TestStore();
    await alone("a", store);
    const world = new World({ store });
    world.submit(request("a", prompt));
    world.submit(request("b", prompt));
    await world.finish();
    expect(new Set(store.asked.flat()).size).toBe(store.asked.flat().length);
    for (const id of ["a", "b"]) expect(world.of(id).starts[0].cachedTokens).toBe(most);
  });

  test("what is gone when it is asked for is computed", async () => {
    const store = new TestStore();
    const { outcomes } = await alone("a", store);
    store.keeps = false;
    const world = await alone("a", store);
    expect(store.asked.length).toBeGreaterThan(0);
    expect(world.of("a").starts[0].cachedTokens).toBe(0);
    expect(world.tokens("a")).toEqual(outcomes.get("a")!.choices[0].tokens);
  });

  test("pages that are quicker computed are not fetched, until it is tried again", async () => {
    const store = new TestStore();
    const prompts = Array.from({ length: 60 }, (_, i) => ids(101, 200 + i));
    const filling = new World({ store });
    for (const [i, one] of prompts.entries()) {
      filling.submit(request(`${i}`, one));
      await filling.finish();
    }
    await filling.engine.flush();
    const world = new World({ store, stepTokens: 16 });
    const get = store.get.bind(store);
    store.get = (keys) => {
      world.clock += 5; // slower than a step, but not hopelessly
      return get(keys);
    };
    world.submit(request("computed", ids(101, 99)));
    await world.finish();
    const fetched: boolean[] = [];
    for (const [i, one] of prompts.entries()) {
      world.submit(request(`${i}`, one));
      await world.finish();
      fetched.push(world.of(`${i}`).starts[0].cachedTokens > 0);
      expect(world.tokens(`${i}`)).toEqual(filling.tokens(`${i}`));
    }
    expect(fetched[0]).toBe(true);
    expect(fetched[1]).toBe(false);
    expect(fetched.indexOf(true, 2)).toBeGreaterThan(2);
    expect(world.engine.stats().tiers!.skipped).toBeGreaterThan(0);
  });

  test("a store that does not answer in time is not waited for again at once", async () => {
    const store = new TestStore();
    const filling = new World({ store });
    for (const id of ["1", "2"]) {
      filling.submit(request(id, ids(101, Number(id))));
      await filling.finish();
    }
    await filling.engine.flush();
    const world = new World({ store, stepTokens: 16 });
    store.get = async (keys, patienceMs = 0) => {
      store.asked.push(keys);
      world.clock += patienceMs;
      return keys.map(() => undefined);
    };
    for (const id of ["1", "2"]) {
      world.submit(request(id, ids(101, Number(id))));
      await world.finish();
      expect(world.of(id).starts[0].cachedTokens).toBe(0);
      expect(world.tokens(id)).toEqual(filling.tokens(id));
      // The second prompt is not asked for: what the first one cost is known.
      expect(new Set(store.asked.flat().map((key) => key.slice(1))).size).toBeLessThan(32);
    }
    expect(world.engine.stats().tiers!.skipped).toBeGreaterThan(0);
  });

  test("an aborted request's fetch harms nobody", async () => {
    const store = new TestStore();
    await alone("a", store);
    const world = new World({ store });
    world.submit(request("a", prompt));
    await world.engine.step();
    world.engine.abort("a");
    world.submit(request("b", prompt));
    await world.finish();
    expect(world.reason("a")).toBe("abort");
    expect(world.tokens("b")).toEqual((await alone("b")).tokens("b"));
  });

  test("salts keep apart, and an adapter without a digest is of this process alone", async () => {
    const store = new TestStore();
    await alone("a", store);
    const kept = store.pages.size;
    const world = new World({ store });
    world.submit(request("a", prompt, { cacheSalt: "another" }));
    await world.finish();
    expect(world.of("a").starts[0].cachedTokens).toBe(0);
    await world.engine.flush();
    expect(store.pages.size).toBe(2 * kept);
    for (const digest of [undefined, "x"]) {
      const own = new World({ store });
      await own.engine.loadAdapter("one", { sites: new Map(), scale: 1, digest });
      own.submit(request("a", prompt, { adapter: "one" }));
      await own.finish();
      await own.engine.flush();
      expect(own.of("a").starts[0].cachedTokens).toBe(0);
      expect(store.pages.size).toBe(digest === undefined ? 2 * kept : 3 * kept);
    }
  });

  test.each([1, 2, 3])("nothing of a step that failed is kept, at depth %i", async (depth) => {
    const store = new TestStore();
    const world = new World({ store, depth, stepTokens: 4, fault: (step) => (step === 20 ? "reject" : undefined) });
    world.submit(request("a", prompt));
    world.submit(request("b", ids(101, 4)));
    while (world.reason("a") === "") {
      world.clock += 1000; // time enough for every page
      await world.engine.step();
    }
    expect(world.reason("a")).toBe("error");
    await world.engine.flush();
    const kept = [...store.pages.values()];
    const plain = new TestStore();
    const good = new World({ store: plain });
    good.submit(request("a", prompt));
    good.submit(request("b", ids(101, 4)));
    await good.finish();
    await good.engine.flush();
    for (const [key, bytes] of store.pages) expect(plain.pages.get(key)).toEqual(bytes);
    expect(kept.length).toBeLessThan(plain.pages.size);
  });

  test("a store that is behind takes nothing, and a model with states uses none", async () => {
    const store = new TestStore();
    store.takes = false;
    await alone("a", store);
    expect(store.pages.size).toBe(0);
    store.takes = true;
    const world = await alone("a", store, { states: 32 });
    expect(store.pages.size).toBe(0);
    expect(world.engine.stats().tiers).toBeUndefined();
  });
});
