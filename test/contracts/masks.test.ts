// Two steps in flight, one row of the first masked: the forward does not wait, the row's sampling does, and rows without
// a mask do not change.
import { expect, test } from "vitest";
import { batchOf, PageKeeper, updates } from "../support/batch.js";
import { describeDevices } from "../support/devices.js";
import { goldenCases } from "../support/golden.js";
import { compileTiny } from "../support/tiny.js";

await describeDevices("masked rows", (device) => {
  const prompts = [0, 1].map((i) => goldenCases("llama-mha")[1].prompt_ids.map((id) => (id + i) % 320));

  async function twoSteps(masked: boolean) {
    const { program } = await compileTiny(device, "llama-mha", { depth: 2 });
    const keeper = new PageKeeper(program);
    const parts = prompts.map((tokens, slot) => ({ slot, tokens, kvStart: 0, pages: keeper.take(32) }));
    const drawn = updates([
      [0, { temperature: 0.8, seed: 3 }],
      [1, { temperature: 0.8, seed: 4 }],
    ]);
    const maskedRows = Int32Array.from(masked ? [1] : []);
    const first = program.run(batchOf(parts, { updates: drawn, maskedRows }));
    const more = parts.map(({ slot, tokens, pages }) => ({ slot, tokens: [-1 - slot], kvStart: tokens.length, pages }));
    const second = program.run(batchOf(more));
    expect(() => program.run(batchOf(more))).toThrow(/2 steps are in flight/);
    if (masked) {
      let done = false;
      first.result.then(() => {
        done = true;
      });
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(done, "the step waits for its mask").toBe(false);
      const bits = new Uint32Array(Math.ceil(program.vocabSize / 32));
      bits[7 >> 5] |= 1 << (7 & 31);
      first.setMasks(bits);
    }
    const results = [await first.result, await second.result];
    await program.close();
    return results;
  }

  test("only the masked row obeys, the others draw what they drew without it", async () => {
    const [free, freeNext] = await twoSteps(false);
    const [held, heldNext] = await twoSteps(true);
    expect(held.tokens[1]).toBe(7);
    expect(free.tokens[1]).not.toBe(7);
    expect(held.tokens[0]).toBe(free.tokens[0]);
    expect(held.logprobs[0]).toBe(free.logprobs[0]);
    expect(heldNext.tokens[0]).toBe(freeNext.tokens[0]);
    expect(heldNext.logprobs[0]).toBe(freeNext.logprobs[0]);
  });
});
