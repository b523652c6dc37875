// A draft model on the null device: it guesses what pays, and answers stay what they are without.
import { describe, expect, it } from "vitest";
import { Hope } from "../../src/engine/hope.js";
import { greedy, ids, request, World } from "./harness.js";

describe("a draft model", () => {
  it("that knows what comes brings several tokens a step, the same ones", async () => {
    const answers = async (draftPages?: number) => {
      const world = new World({ draftPages });
      const wanted = [request("a", ids(20), { maxTokens: 60 }), request("b", ids(31, 2), { maxTokens: 60 })];
      for (const one of wanted) world.submit(one);
      await world.finish();
      const tokens = wanted.map(({ id }) => world.tokens(id));
      return { tokens, stats: world.engine.stats() };
    };
    const [without, drafted] = [await answers(), await answers(256)];
    expect(drafted.tokens).toEqual(without.tokens);
    expect(without.stats.draftTokens).toBe(0);
    expect(drafted.stats.acceptedTokens).toBeGreaterThan(60);
    expect(drafted.stats.steps).toBeLessThan(without.stats.steps / 1.5);
  });

  it("that is always wrong changes no answer, and is asked less and less", async () => {
    const otherwise = { ...greedy, temperature: 0.7, seed: 3n };
    const answer = async (draftPages?: number) => {
      const world = new World({ draftPages, contextLength: 512 });
      world.submit(request("a", ids(9, 5), { maxTokens: 200, sampling: otherwise }));
      await world.finish();
      return { tokens: world.tokens("a"), stats: world.engine.stats() };
    };
    const [without, drafted] = [await answer(), await answer(256)];
    expect(drafted.tokens).toEqual(without.tokens);
    expect(drafted.stats.acceptedTokens).toBeLessThan(10);
    expect(drafted.stats.draftTokens).toBeLessThan(100);
  });

  it("is not asked where its context ends", async () => {
    const world = new World({ draftPages: 5, contextLength: 20 });
    world.submit(request("a", ids(12), { maxTokens: 8 }));
    await world.finish();
    expect(world.tokens("a").length).toBe(8);
  });
});

describe("hope", () => {
  it("follows what was right, and comes back while nothing is tried", () => {
    const hope = new Hope();
    for (let i = 0; i < 40; i++) hope.learn(4, 4);
    expect(hope.probability).toBeGreaterThan(0.99);
    expect(hope.expected(4)).toBeCloseTo(5, 1);
    for (let i = 0; i < 40; i++) hope.learn(4, 0);
    expect(hope.probability).toBeLessThan(0.01);
    expect(hope.expected(4)).toBeCloseTo(1, 1);
    for (let i = 0; i < 100; i++) hope.recover();
    expect(hope.probability).toBeGreaterThan(0.5);
  });
});
