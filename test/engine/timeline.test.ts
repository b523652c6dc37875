// What the engine tells of its own steps, on the null device.
import { expect, it } from "vitest";
import type { Timeline, TimelineAction } from "../../src/engine/types.js";
import { ids, request, World } from "./harness.js";

const kinds = (timeline: Timeline) => timeline.steps.map(({ actions }) => actions.map(({ action }) => action).join());
const all = ({ steps }: Timeline): TimelineAction[] => steps.flatMap(({ actions }) => actions);
const sum = (actions: readonly TimelineAction[]) => actions.reduce((total, { tokens }) => total + tokens, 0);

it("has each step with what was done for whom, prompts in pieces, cached tokens, and when a choice ended", async () => {
  const world = new World({ stepTokens: 8 });
  world.submit(request("a", ids(20), { maxTokens: 3, client: "x", label: "call-1" }));
  await world.finish();
  const first = world.engine.timeline(100);
  expect(kinds(first)).toEqual(["admit,compute", "compute", "compute", "compute", "compute"]);
  expect(all(first).slice(1)).toMatchObject([
    { choice: 0, from: 0, tokens: 8, draws: false },
    { choice: 0, from: 8, tokens: 8, draws: false },
    { choice: 0, from: 16, tokens: 4, draws: true },
    { choice: 0, from: 20, tokens: 1, draws: true },
    { choice: 0, from: 21, tokens: 1, draws: true },
  ]);
  expect(first.steps.map(({ step, tokens, running }) => [step, tokens, running])).toEqual([
    [1, 8, 1],
    [2, 8, 1],
    [3, 4, 1],
    [4, 1, 1],
    [5, 1, 1],
  ]);
  expect(first.choices).toMatchObject([
    {
      choice: 0,
      request: "call-1",
      client: "x",
      promptTokens: 20,
      generatedTokens: 3,
      cachedTokens: 0,
      reason: "length",
    },
  ]);
  const { arrived, admitted, firstToken, finished } = first.choices[0];
  const times = [arrived, admitted!, first.steps[0].launched, first.steps[2].ended!, first.steps[4].ended!, finished!];
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(firstToken).toBe(first.steps[2].ended);

  world.submit(request("b", ids(20), { maxTokens: 1 }));
  await world.engine.step();
  const second = world.engine.timeline(1);
  expect(second.steps).toHaveLength(1);
  expect(second.steps[0].actions).toMatchObject([
    { action: "admit", choice: 1, tokens: 16 },
    { action: "compute", choice: 1, from: 16, tokens: 4 },
  ]);
  // What had ended before the oldest step that is told is left out.
  expect(second.choices.map(({ request: name }) => name)).toEqual(["b"]);
});

it("tells preemptions with what is lost, and of guesses how many were right", async () => {
  const pressed = new World({ slots: 1, prefixCache: false });
  pressed.submit(request("worse", ids(8), { priority: 1 }));
  await pressed.engine.step();
  await pressed.engine.step();
  pressed.submit(request("better", ids(8, 2)));
  await pressed.finish();
  const seen = all(pressed.engine.timeline(4000)).filter(({ action }) => action !== "compute");
  expect(seen).toEqual([
    { action: "admit", choice: 0, tokens: 0 },
    { action: "preempt", choice: 0, tokens: 9 },
    { action: "admit", choice: 1, tokens: 0 },
    { action: "admit", choice: 0, tokens: 0 },
  ]);

  const guessing = new World({ draftPages: 64 });
  guessing.submit(request("g", ids(20), { maxTokens: 60 }));
  await guessing.finish();
  const { draftTokens, acceptedTokens } = guessing.engine.stats();
  expect(draftTokens).toBeGreaterThan(0);
  expect(guessing.of("g").choices[0].finishes[0].timings).toMatchObject({ draftTokens, acceptedTokens });
  const guesses = all(guessing.engine.timeline(4000)).filter((one) => one.guesses !== undefined);
  expect(guesses.reduce((total, one) => total + one.guesses!, 0)).toBe(draftTokens);
  expect(guesses.reduce((total, one) => total + one.right!, 0)).toBe(acceptedTokens);
});

it("says of a step that failed that it did, and of one in flight that it has not ended", async () => {
  const world = new World({ depth: 2, fault: (step) => (step === 1 ? "reject" : undefined) });
  world.submit(request("a", ids(5), { maxTokens: 4 }));
  await world.engine.step();
  const [first, second] = world.engine.timeline(10).steps;
  expect(first.ended).toBeGreaterThan(first.launched);
  expect(second.ended).toBeUndefined();
  await world.finish();
  const { steps, choices } = world.engine.timeline(10);
  expect(steps[1].failed).toBe(true);
  expect(choices[0].reason).toBe("error");
});

it("keeps the newest steps however many there were, with all of their actions", async () => {
  const world = new World({ contextLength: 128, maxSequences: 8 });
  for (let round = 0; round < 60; round++) {
    for (let i = 0; i < 8; i++) world.submit(request(`${round}.${i}`, ids(3, i), { maxTokens: 100 }));
    await world.finish();
  }
  const { steps } = world.engine.stats();
  expect(steps).toBeGreaterThan(5000);
  const timeline = world.engine.timeline(4000);
  expect(timeline.steps.map(({ step }) => step)).toEqual(Array.from({ length: 4000 }, (_, i) => steps - 3999 + i));
  for (const { tokens, actions } of timeline.steps.slice(-2000)) {
    expect(sum(actions.filter(({ action }) => action === "compute"))).toBe(tokens);
  }
  expect(timeline.choices.length).toBeLessThanOrEqual(1024);
}, 60_000);
