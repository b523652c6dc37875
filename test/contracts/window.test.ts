// Layers with a window keep their pages in a group of their own and give back those behind the window.
import { expect, test } from "vitest";
import { batchOf, updates } from "../support/batch.js";
import { describeDevices } from "../support/devices.js";
import { goldenCases } from "../support/golden.js";
import { compileTiny, generate } from "../support/tiny.js";

await describeDevices("window groups", (device) => {
  test("gemma3 has a full and a window group", async () => {
    const { program } = await compileTiny(device, "gemma3");
    expect(program.caches.map(({ kind, window }) => [kind, window])).toEqual([
      ["paged", undefined],
      ["paged", 8],
    ]);
    await program.close();
  });

  test("pages behind the window can be given to others without anyone noticing", async () => {
    const name = "gemma3";
    const { program } = await compileTiny(device, name);
    const golden = goldenCases(name)[2];
    const count = 24;
    const truth = (await generate(program, golden.prompt_ids, count)).tokens;
    const { pageTokens, pageBytes, window = 0 } = program.caches[1];
    const noise = new Uint8Array(pageBytes).fill(0x7b);
    const total = golden.prompt_ids.length + count;
    const full = Array.from({ length: Math.ceil(total / pageTokens) }, (_, i) => 100 + i);
    const tokens: number[] = [];
    let held: number[] = [];
    let first = 0;
    let next = 0;
    const step = async (ids: readonly number[], kvStart: number) => {
      const oldest = Math.floor(Math.max(0, kvStart - window + 1) / pageTokens);
      while (first < oldest && held.length > 0) {
        program.writePages(1, Int32Array.of(held[0]), noise);
        held = held.slice(1);
        first++;
      }
      while ((first + held.length) * pageTokens < kvStart + ids.length) held.push(next++);
      const part = { slot: 5, tokens: ids, kvStart, pages: [full, held], first: [0, first] };
      const own = kvStart === 0 ? { updates: updates([[5, {}]]) } : {};
      tokens.push((await program.run(batchOf([part], own)).result).tokens[0]);
    };
    await step(golden.prompt_ids, 0);
    while (tokens.length < count) await step([-6], golden.prompt_ids.length + tokens.length - 1);
    expect(tokens).toEqual(truth);
    expect(first).toBeGreaterThan(0);
    await program.close();
  });

  test("a batch that leaves out pages in reach of the window is refused", async () => {
    const { program } = await compileTiny(device, "gemma3");
    const part = { slot: 0, tokens: [5], kvStart: 40, pages: [[0, 1, 2], [0]], first: [0, 2] };
    expect(() => program.run(batchOf([{ ...part, first: [0, 3] }], { updates: updates([[0, {}]]) }))).toThrow(
      /pages of sequence 0/,
    );
    await program.close();
  });
});
