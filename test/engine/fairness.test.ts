// Whose turn it is: clients by weight, prompts of all lengths, and an engine that keeps dying.
import { describe, expect, it } from "vitest";
import { Backoff } from "../../src/engine/backoff.js";
import { Shares } from "../../src/engine/fairness.js";
import { ids, request, World } from "./harness.js";

describe("clients", () => {
  /** Two clients whose requests never run out, one sequence at a time: what each has generated after so many steps. */
  async function contest(weights: [number, number], lengths: [number, number], steps: number): Promise<number[]> {
    const world = new World({ maxSequences: 4, slots: 4, contextLength: 256, pages: 4096, windowPages: 4096 });
    const open = [new Set<string>(), new Set<string>()];
    const all: string[][] = [[], []];
    const refill = () => {
      for (const who of [0, 1]) {
        for (const id of open[who]) if (world.reason(id) !== "") open[who].delete(id);
        // The first floods the queue, the second has a few.
        while (open[who].size < [40, 6][who]) {
          const id = `${who}-${all[who].length}`;
          const prompt = ids(lengths[who], 1000 * (who + 1) + all[who].length);
          world.submit(request(id, prompt, { client: `c${who}`, weight: weights[who], maxTokens: 16 }));
          open[who].add(id);
          all[who].push(id);
        }
      }
    };
    for (let step = 0; step < steps; step++) {
      refill();
      await world.engine.step();
      world.engine.check();
    }
    const cost = (who: number) =>
      all[who].reduce((sum, id) => {
        const { starts } = world.of(id);
        return sum + (starts.length > 0 ? lengths[who] : 0) + 2 * world.tokens(id).length;
      }, 0);
    return [cost(0), cost(1)];
  }

  it("get the same, however many requests one of them sends", async () => {
    const [flood, few] = await contest([1, 1], [12, 12], 600);
    expect(flood / few).toBeGreaterThan(0.85);
    expect(flood / few).toBeLessThan(1.15);
  });

  it("get the same where one sends longer prompts", async () => {
    const [long, short] = await contest([1, 1], [100, 4], 900);
    expect(long / short).toBeGreaterThan(0.8);
    expect(long / short).toBeLessThan(1.25);
  });

  it("get service by weight", async () => {
    const [heavy, light] = await contest([3, 1], [12, 12], 900);
    expect(heavy / light).toBeGreaterThan(2.4);
    expect(heavy / light).toBeLessThan(3.6);
  });

  it("save nothing up by being away", () => {
    const shares = new Shares();
    shares.join("here");
    shares.join("away");
    shares.leave("away");
    shares.charge("here", 1000, 1);
    shares.join("away");
    expect(shares.served("away")).toBe(1000);
    shares.join("fresh");
    expect(shares.served("fresh")).toBe(1000);
    for (const name of ["here", "away", "fresh"]) shares.leave(name);
    shares.join("here");
    expect(shares.served("here")).toBe(0);
  });

  it("come after better priorities, whosever they are", async () => {
    const world = new World({ maxSequences: 1 });
    world.submit(request("mine", ids(8), { client: "a", maxTokens: 30 }));
    await world.engine.step();
    world.submit(request("theirs", ids(8, 2), { client: "b" }));
    world.submit(request("urgent", ids(8, 3), { client: "a", priority: -1 }));
    for (let i = 0; i < 6; i++) await world.engine.step();
    expect(world.tokens("urgent").length).toBeGreaterThan(0);
    expect(world.tokens("theirs").length).toBe(0);
    await world.finish();
    expect(world.reason("theirs")).toBe("length");
  });
});

describe("prompts", () => {
  it("that are long get half of each step, and hold up no short one", async () => {
    const world = new World({ stepTokens: 16, contextLength: 512, pages: 1024, windowPages: 1024 });
    world.submit(request("long", ids(400), { maxTokens: 2 }));
    await world.engine.step();
    for (let i = 0; i < 5; i++) world.submit(request(`short${i}`, ids(8, i + 2), { maxTokens: 2 }));
    for (let i = 0; i < 8; i++) await world.engine.step();
    for (let i = 0; i < 5; i++) expect(world.tokens(`short${i}`).length, `short${i}`).toBeGreaterThan(0);
    expect(world.tokens("long").length).toBe(0);
    let steps = 9;
    for (; world.tokens("long").length === 0; steps++) await world.engine.step();
    // Alone it takes 25 steps.
    expect(steps).toBeLessThan(33);
    await world.finish();
  });
});

describe("an engine that keeps dying without an answer", () => {
  it("is started again at once, then ever later, until it answers", () => {
    let now = 0;
    const backoff = new Backoff(() => now);
    expect(backoff.waitMs).toBe(0);
    const waits = [false, false, false, false].map((answered) => {
      backoff.ended(answered);
      return backoff.waitMs;
    });
    expect(waits).toEqual([0, 1000, 2000, 4000]);
    now += 3999;
    expect(backoff.waitMs).toBe(1);
    now += 1;
    expect(backoff.waitMs).toBe(0);
    for (let i = 0; i < 20; i++) backoff.ended(false);
    expect(backoff.waitMs).toBe(60_000);
    backoff.ended(true);
    expect(backoff.waitMs).toBe(0);
  });
});
