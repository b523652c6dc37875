// What best_of means by the best.
import { expect, it } from "vitest";
import { noTimings } from "../../src/engine/client.js";
import { type Choice, ranked } from "../../src/session/collect.js";

const token = (logprob: number) => ({
  id: 1,
  bytes: new Uint8Array(0),
  offset: 0,
  logprobs: { logprob, rank: 1, top: [] },
});
const choice = (text: string, shown: number[], silent: number[] = []): Choice => ({
  index: 0,
  text,
  reasoning: "",
  reasoningTokens: 0,
  toolCalls: [],
  tokens: shown.map(token),
  silentTokens: silent.map(token),
  reason: "stop",
  timings: noTimings,
});

it("ranks choices by how likely their tokens are on average, the one that ends them among these", () => {
  const choices = [
    choice("long", [-1, -1, -1, -1]),
    choice("ends badly", [-0.5], [-3]),
    choice("likely", [-0.5, -0.9]),
    choice("unlikely", [-2]),
  ];
  expect(ranked(choices).map(({ text }) => text)).toEqual(["likely", "long", "ends badly", "unlikely"]);
});
