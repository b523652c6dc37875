// `bench techniques` on a tiny model: both sides of each row are real runs, and what must be cheaper is.
import { describe, expect, test } from "vitest";
import type * as Module from "../../src/cli/techniques.js";
import { attentionRows } from "../../src/cli/techniques-attention.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { shapes } from "../../src/model/shapes.js";

// Compiled: engines run in worker threads.
const { Techniques } = (await import(new URL("../../dist/cli/techniques.js", import.meta.url).href)) as typeof Module;
const none = whyNoNative();
if (none) console.warn(`SKIPPED: bench techniques: ${none}`);

const tiny = {
  ...shapes["smollm2-135m"],
  hidden_size: 256,
  intermediate_size: 512,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 512,
};

const sides = (rows: readonly Module.TechniqueRow[]) => new Map(rows.map((row) => [row.variant, row]));

describe.skipIf(none)("techniques", () => {
  const { all } = new Techniques({ device: "cpu", threads: 1 }, tiny);
  const measure = new Map(all);

  test("flash attention gives what attention with all scores gives, and keeps fewer bytes", async () => {
    const rows = sides(await attentionRows({ device: "cpu", threads: 2 }, [256]));
    expect(rows.get("with")!.value).toBeGreaterThan(0);
    expect(rows.get("all scores kept")!.bytes).toBe(4 * 256 * 256 * 2);
  });

  test("a cached token is cheaper than a recomputed one, a found prefix than a read one", async () => {
    const cache = (await measure.get("KV cache")!()).slice(-2);
    expect(cache[0].value).toBeLessThan(cache[1].value);
    expect(cache[0].bytes).toBe((256 + 24) * 2 * 2 * 2 * 64 * 2);
    const prefix = sides(await measure.get("prefix cache")!());
    expect(prefix.get("with")!.value).toBeLessThan(prefix.get("without")!.value);
  });

  test("fewer bits take fewer bytes; every row has a number", async () => {
    const weights = await measure.get("quantised weights")!();
    const bytes = weights.map((row) => row.bytes!);
    expect([...bytes].sort((a, b) => b - a)).toEqual(bytes);
    for (const row of [...weights, ...(await measure.get("continuous batching")!())])
      expect(row.value).toBeGreaterThan(0);
  });
});
