// How much memory and context a model gets, and what is refused: on the null device, which takes any plan.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { NullDevice } from "../../src/device/null/device.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { physicalCores, planModel } from "../../src/host/load.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const MiB = 2 ** 20;

describe("what a model gets", () => {
  let folder: string;
  let checkpoint: Checkpoint;
  /** Bytes of a token in the cache. */
  let perToken: number;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "millrace-load-"));
    const path = join(folder, "tiny.gguf");
    writeTinyLlamaGguf(path, { contextLength: 65536 });
    checkpoint = await openCheckpoint(path);
    const { memory, limits } = planModel(checkpoint, new NullDevice(), { contextLength: 65536, maxSequences: 1 });
    perToken = memory.cache / limits.contextLength;
  });
  afterAll(() => {
    checkpoint.close();
    rmSync(folder, { recursive: true });
  });

  it("is the trained context and no more pages than are of use, where memory is plenty", () => {
    const { limits, memory } = planModel(checkpoint, new NullDevice(2 ** 40), {});
    expect(limits.contextLength).toBe(65536);
    expect(memory.cache).toBe(65536 * perToken);
    const short = planModel(checkpoint, new NullDevice(2 ** 40), { contextLength: 512, maxSequences: 4 });
    expect(short.memory.cache).toBe(4 * 2048 * perToken);
  });

  it("is the longest context that a quarter of free memory holds, where that is less", () => {
    const { limits, memory } = planModel(checkpoint, new NullDevice(8 * MiB), {});
    expect(memory.cache).toBeLessThanOrEqual(2 * MiB);
    expect(limits.contextLength).toBe(Math.floor((2 * MiB) / perToken / 4) * 4);
    const more = planModel(checkpoint, new NullDevice(8 * MiB), { cacheShare: 0.5 });
    expect(more.limits.contextLength).toBe(2 * limits.contextLength);
  });

  it("is a larger share where a context was asked for, and a refusal with the numbers where that is not enough", () => {
    const fits = Math.floor((4 * MiB) / perToken);
    const { limits } = planModel(checkpoint, new NullDevice(8 * MiB), { contextLength: fits });
    expect(limits.contextLength).toBe(fits);
    const ask = () => planModel(checkpoint, new NullDevice(8 * MiB), { contextLength: 2 * fits });
    expect(ask).toThrow(new RegExp(`${2 * fits} tokens does not fit: ${6 * MiB} bytes`));
    const longer = () => planModel(checkpoint, new NullDevice(), { contextLength: 65537 });
    expect(longer).toThrow(/65537 tokens was asked for, the model was made for 65536/);
  });

  it("counts cores, not hardware threads", () => {
    expect(physicalCores()).toBeGreaterThanOrEqual(1);
    expect(planModel(checkpoint, new NullDevice(), {}).limits.threads).toBe(physicalCores());
  });
});
