// What the engine promises, one promise a test, on the null device.
import { describe, expect, it } from "vitest";
import { StepBudget } from "../../src/engine/budget.js";
import type { GenerateRequest, TokenConstraint } from "../../src/engine/types.js";
import { greedy, ids, pageTokens, request, vocabSize, World, type WorldOptions } from "./harness.js";

async function alone(r: GenerateRequest): Promise<number[]> {
  const world = new World({ prefixCache: false });
  world.submit(r);
  await world.finish();
  return world.tokens(r.id);
}

const depths: WorldOptions[] = [{ depth: 1 }, { depth: 2 }, { depth: 3 }];

describe("the prefix cache", () => {
  it.each([{}, { states: 12 }])("reports what it found, and always computes the last prompt token: %j", async (o) => {
    const world = new World(o);
    const prompt = ids(24);
    world.submit(request("cold", prompt));
    await world.finish();
    world.submit(request("warm", prompt));
    await world.finish();
    expect(world.of("cold").starts).toMatchObject([{ cachedTokens: 0 }]);
    expect(world.of("warm").starts).toMatchObject([{ cachedTokens: 24 - pageTokens }]);
    expect(world.tokens("warm")).toEqual(world.tokens("cold"));
    expect(world.of("warm").choices[0].finishes[0].timings.cachedTokens).toBe(20);
    expect(world.engine.stats()).toMatchObject({ prefixQueries: 48, prefixHits: 20 });
  });

  it("finds the answer too, when a conversation goes on", async () => {
    const world = new World();
    world.submit(request("one", ids(10), { maxTokens: 20 }));
    await world.finish();
    const next = [...ids(10), ...world.tokens("one"), ...ids(5, 9)];
    world.submit(request("two", next));
    await world.finish();
    expect(world.of("two").starts[0].cachedTokens).toBe(28); // 29 positions were computed: the last token's was not
    expect(world.tokens("two")).toEqual(await alone(request("two", next)));
  });

  it("does not cross salts", async () => {
    const world = new World();
    for (const salt of ["a", "b", "a"]) {
      const id = `${salt}${world.outcomes.size}`;
      world.submit(request(id, ids(24), { cacheSalt: salt }));
      await world.finish();
    }
    const cached = [...world.outcomes.values()].map(({ starts }) => starts[0].cachedTokens);
    expect(cached).toEqual([0, 0, 20]);
  });

  it("is not used by a request that wants its prompt's logprobs", async () => {
    const world = new World({ stepTokens: 7, maxRows: 4 });
    world.submit(request("a", ids(24)));
    await world.finish();
    world.submit(request("b", ids(24), { promptLogprobs: 2 }));
    await world.finish();
    const [start] = world.of("b").starts;
    expect(start.cachedTokens).toBe(0);
    expect(start.promptLogprobs![0]).toBeNull();
    expect(start.promptLogprobs!.slice(1).every((entry) => entry!.top.length === 2)).toBe(true);
    expect(world.tokens("b")).toEqual(world.tokens("a"));
  });
});

describe("choices of one request", () => {
  it.each([{}, { states: 20 }])("share the prompt's pages and copy only the last: %j", async (o) => {
    const world = new World(o);
    world.submit(request("n", ids(30), { n: 4, maxTokens: 2, sampling: { ...greedy, seed: 2n ** 64n - 2n } }));
    let most = 0;
    for (let i = 0; i < 20; i++) {
      await world.engine.step();
      world.engine.check();
      most = Math.max(most, world.engine.stats().pages[0].used);
    }
    expect(most).toBe(7 + 4); // 30 tokens: 7 whole pages for all, a page of its own for each
    for (let index = 0; index < 4; index++) {
      const seed = BigInt.asUintN(64, 2n ** 64n - 2n + BigInt(index));
      const r = request("one", ids(30), { maxTokens: 2, sampling: { ...greedy, seed } });
      const single = new World({ ...o, prefixCache: false });
      single.submit(r);
      await single.finish();
      expect(world.tokens("n", index)).toEqual(single.tokens("one"));
    }
  });

  it("go on when the one that computes the prompt is aborted", async () => {
    const world = new World({ stepTokens: 4 });
    const r = request("n", ids(30), { n: 3 });
    world.submit(r);
    await world.engine.step();
    world.engine.abort("n", 0);
    await world.finish();
    expect([0, 1, 2].map((index) => world.reason("n", index))).toEqual(["abort", "length", "length"]);
    const whole = new World();
    whole.submit(r);
    await whole.finish();
    expect(world.tokens("n", 2)).toEqual(whole.tokens("n", 2));
  });
});

describe("scheduling", () => {
  it("lets nobody's long prompt stop the others", async () => {
    const world = new World({ stepTokens: 8 });
    world.submit(request("short", ids(4), { maxTokens: 12 }));
    await world.engine.step();
    world.submit(request("long", ids(90, 2), { maxTokens: 1 }));
    for (let i = 1; i < 12; i++) {
      await world.engine.step();
      expect(world.tokens("short")).toHaveLength(i + 1);
    }
    await world.finish();
    expect(world.reason("long")).toBe("length");
  });

  it("lets those that generate not starve a prompt, even with a token a step", async () => {
    const world = new World({ stepTokens: 1 });
    for (const id of ["a", "b", "c"]) world.submit(request(id, ids(1, id.charCodeAt(0)), { maxTokens: 50 }));
    for (let i = 0; i < 6; i++) await world.engine.step();
    world.submit(request("prompt", ids(5), { maxTokens: 1 }));
    for (let i = 0; i < 30; i++) await world.engine.step();
    expect(world.reason("prompt")).toBe("length");
    await world.finish();
  });

  it("runs better priorities first, and takes the place of worse ones for them", async () => {
    const world = new World({ maxSequences: 1 });
    world.submit(request("low", ids(5), { priority: 1, maxTokens: 20 }));
    await world.engine.step();
    world.submit(request("normal", ids(6), { maxTokens: 20 }));
    world.submit(request("high", ids(7), { priority: -1, maxTokens: 20 }));
    await world.finish();
    const ends = ["high", "normal", "low"].map((id) => world.of(id).choices[0].finishes[0].timings);
    expect(world.engine.stats().preemptions).toBe(1);
    expect(ends[0].queueMs).toBeLessThan(ends[1].queueMs);
    expect(world.tokens("low")).toEqual(await alone(request("low", ids(5), { maxTokens: 20 })));
  });

  it("takes pages from the youngest, who computes again what it lost", async () => {
    // each is admitted with 32 tokens' room to grow; three of 60 tokens need 45 pages
    const world = new World({ pages: 34, prefixCache: false });
    const all = ["a", "b", "c"].map((id, i) => request(id, ids(4, i), { maxTokens: 56 }));
    for (const r of all) world.submit(r);
    await world.finish();
    expect(world.engine.stats().preemptions).toBeGreaterThan(0);
    for (const r of all) expect(world.tokens(r.id)).toEqual(await alone(r));
  });

  it("refuses what could not finish even alone, with the numbers", () => {
    const world = new World({ pages: 10, contextLength: 100 });
    expect(() => world.submit(request("a", ids(30), { maxTokens: 11 }))).toThrow(/30 tokens and 11 .* 41.* holds 40/);
    expect(() => world.submit(request("b", [5, vocabSize]))).toThrow(/not in the vocabulary/);
    expect(() => world.submit(request("c", []))).toThrow(/no tokens/);
    expect(() => world.submit(request("d", [1], { maxTokens: 0 }))).toThrow(/max_tokens/);
    expect(() => world.submit(request("e", [1], { adapter: "x" }))).toThrow(/no adapter called x/);
    expect(world.engine.stats()).toMatchObject({ running: 0, waiting: 0 });
  });

  it("bounds a slow device's steps to 50 ms while others generate and 200 ms otherwise", () => {
    const budget = new StepBudget(512);
    const learn = (cost: (tokens: number) => number) => {
      for (let i = 0; i < 40; i++) for (const tokens of [1, 8, 100]) budget.observe(tokens, cost(tokens));
    };
    learn((tokens) => 10 + tokens / 2); // 10 ms to read the weights, half a millisecond a token
    expect([budget.tokens(true), budget.tokens(false)]).toEqual([80, 380]);
    learn((tokens) => 100 * tokens);
    expect([budget.tokens(true), budget.tokens(false)]).toEqual([16, 16]);
    learn((tokens) => 1 + tokens / 1000);
    expect(budget.tokens(true)).toBe(512);
    learn(() => 3); // a slope that jitter has made nothing of
    expect(budget.tokens(true)).toBe(512);
  });
});

describe.each(depths)("the end of a choice at depth $depth", ({ depth }) => {
  it("comes with a stop id, reported as the last token, and what was drawn after it is dropped", async () => {
    const r = request("a", ids(6), { maxTokens: 30 });
    const tokens = await alone(r);
    const stop = tokens.findIndex((id, i) => i > 3 && tokens.indexOf(id) === i);
    const world = new World({ depth });
    world.submit({ ...r, stopIds: [tokens[stop]] });
    await world.finish();
    expect(world.tokens("a")).toEqual(tokens.slice(0, stop + 1));
    expect(world.of("a").choices[0].finishes).toMatchObject([{ reason: "stop", stopId: tokens[stop] }]);
    expect(world.engine.stats().generatedTokens).toBe(stop + 1);
  });

  it("does not come before min_tokens", async () => {
    const world = new World({ depth });
    const stopIds = Array.from({ length: vocabSize - 1 }, (_, i) => i);
    world.submit(request("a", ids(6), { maxTokens: 30, minTokens: 7, stopIds }));
    await world.finish();
    const tokens = world.tokens("a");
    expect(tokens.slice(0, 7)).toEqual(Array(7).fill(vocabSize - 1));
    // then any id may come, nearly all of which stop
    expect(tokens.length).toBeLessThan(12);
    expect(world.reason("a")).toBe("stop");
  });

  it.each(["reject", "throw"] as const)("comes for all when the device fails (%s), and nothing stays", async (how) => {
    const world = new World({ depth, fault: (step) => (step === 5 ? how : undefined) });
    for (const id of ["a", "b"]) world.submit(request(id, ids(6), { n: 2, maxTokens: 30 }));
    await world.finish();
    for (const id of ["a", "b"]) {
      for (const index of [0, 1]) expect(world.reason(id, index)).toBe("error");
    }
    expect(world.of("a").choices[0].finishes[0].error).toMatchObject({ status: 500, code: "device_error" });
    expect(world.engine.stats().pages.every(({ free, total }) => free === total)).toBe(true);
    const r = request("c", ids(6));
    world.submit(r);
    await world.finish();
    expect(world.tokens("c")).toEqual(await alone(r));
  });
});

describe.each(depths)("a constraint at depth $depth", ({ depth }) => {
  /** Allows only multiples of three; every third of them is followed by 5 and 7, and after `most` tokens nothing is. Ready
   *  at the `late`th asking after each token. */
  class Threes implements TokenConstraint {
    readonly accepted: number[] = [];
    closed = 0;
    private asked = 0;
    private given = true;
    constructor(
      private readonly late: number,
      private readonly most = Number.POSITIVE_INFINITY,
    ) {}
    ready(): boolean {
      return this.asked++ >= this.late;
    }
    jump(): readonly number[] {
      if (this.given || this.accepted.length % 3 !== 0) return [];
      this.given = true;
      return [5, 7];
    }
    mask(out: Uint32Array): boolean {
      for (let id = 0; id < vocabSize; id += 3) out[id >>> 5] |= 1 << (id & 31);
      return this.accepted.length < this.most;
    }
    accept(id: number): void {
      this.accepted.push(id);
      this.asked = 0;
      this.given = false;
    }
    rollback(): void {}
    close(): void {
      this.closed++;
    }
  }

  it.each([0, 1, 2, 7])("masks its own rows and nobody else's; ready at asking %i", async (late) => {
    const world = new World({ depth, stepTokens: 17 });
    const constraint = new Threes(late);
    const free = request("free", ids(20, 2), { maxTokens: 20 });
    world.submit(request("bound", ids(30), { maxTokens: 10 }), () => constraint);
    world.submit(free);
    await world.finish();
    expect(world.tokens("bound")).toHaveLength(10);
    const bound = world.tokens("bound");
    expect([3, 4, 8, 9].map((at) => bound[at])).toEqual([5, 7, 5, 7]);
    const drawn = bound.filter((_, at) => at % 5 < 3);
    expect(drawn.every((id) => id % 3 === 0)).toBe(true);
    expect(constraint.accepted).toEqual(drawn);
    expect(constraint.closed).toBe(1);
    expect(world.tokens("free")).toEqual(await alone(free));
  });

  it.each([0, 3])("draws what it would draw if what must follow had been drawn; ready at asking %i", async (late) => {
    const world = new World({ depth });
    world.submit(request("bound", ids(30), { maxTokens: 9 }), () => new Threes(late));
    await world.finish();
    const bound = world.tokens("bound");
    const again = new World({ depth });
    again.submit(request("rest", [...ids(30), ...bound.slice(0, 5)], { maxTokens: 3 }), () => new Threes(0));
    await again.finish();
    expect(again.tokens("rest")).toEqual(bound.slice(5, 8));
  });

  it.each([0, 3])("that fails ends its choice with its error, ready at asking %i, and nobody else", async (late) => {
    const failure = { message: "the grammar's worker is gone", status: 500, code: "grammar_failed" };
    class Failing extends Threes {
      failure: typeof failure | undefined;
      override ready(): boolean {
        const ready = super.ready();
        if (ready && this.accepted.length === 4) this.failure = failure;
        return ready;
      }
    }
    const world = new World({ depth });
    const constraint = new Failing(late);
    world.submit(request("bound", ids(30), { maxTokens: 50 }), () => constraint);
    world.submit(request("free", ids(20, 2), { maxTokens: 20 }));
    await world.finish();
    expect(world.of("bound").choices[0].finishes).toMatchObject([{ reason: "error", error: failure }]);
    expect(constraint.accepted.length).toBe(4);
    expect(constraint.closed).toBe(1);
    expect(world.reason("free")).toBe("length");
  });

  it("ends where nothing can follow, and waits for nobody", async () => {
    const world = new World({ depth });
    world.submit(request("never", ids(30, 3)), () => new Threes(Number.POSITIVE_INFINITY));
    world.submit(request("bound", ids(30), { maxTokens: 50 }), () => new Threes(1, 4));
    world.submit(request("free", ids(20, 2), { maxTokens: 20 }));
    for (let i = 0; i < 60; i++) await world.engine.step();
    expect([world.reason("bound"), world.tokens("bound").length]).toEqual(["stop", 6]);
    expect(world.reason("free")).toBe("length");
    expect(world.tokens("never")).toEqual([]);
    world.engine.abort("never");
    await world.finish();
    expect(world.reason("never")).toBe("abort");
  });
});

describe("scoring a prompt", () => {
  it.each([1, 3, 512])(
    "gives a logprob for every token after the first and generates nothing (%i a step)",
    async (n) => {
      const world = new World({ stepTokens: n });
      world.submit(request("a", ids(20), { maxTokens: 0, promptLogprobs: 1 }));
      world.submit(request("one", ids(1), { maxTokens: 0, promptLogprobs: 1 }));
      await world.finish();
      const [{ promptLogprobs }] = world.of("a").starts;
      expect(promptLogprobs!.map((entry) => entry !== null)).toEqual([false, ...Array(19).fill(true)]);
      expect(world.of("one").starts[0].promptLogprobs).toEqual([null]);
      for (const id of ["a", "one"]) expect([world.reason(id), world.tokens(id)]).toEqual(["length", []]);
      const whole = new World();
      whole.submit(request("a", ids(20), { promptLogprobs: 1 }));
      await whole.finish();
      expect(whole.of("a").starts[0].promptLogprobs).toEqual(promptLogprobs);
    },
  );
});

describe("the loop", () => {
  it("sleeps while there is nothing to do, wakes for requests, drains and closes", async () => {
    const world = new World();
    const running = world.engine.run();
    world.submit(request("a", ids(5)));
    await world.engine.drain();
    expect(world.reason("a")).toBe("length");
    world.submit(request("b", ids(5)));
    await world.engine.drain();
    expect(world.reason("b")).toBe("length");
    world.submit(request("c", ids(5), { maxTokens: 100 }));
    world.engine.close();
    await running;
    expect(world.reason("c")).toBe("abort");
    expect(() => world.submit(request("d", ids(5)))).toThrow(/unloaded/);
  });
});
