// Files that are damaged or lie, through the whole path of loading and generating: a refusal in words or defined tokens,
// never a crash, never a hang. Each is tried on the cpu device where it is built, else on the reference device.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FormatError, UserError } from "../../src/base/errors.js";
import { whyNoNative } from "../../src/device/cpu/native.js";
import type { LoadedModel } from "../../src/engine/host.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { type LoadSpec, loadModel } from "../../src/host/load.js";
import { ggufBytes, writeGguf } from "../support/gguf-writer.js";
import { seededRandom } from "../support/random.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { type OddModel, oddMetadata, oddTensors, writeOddGguf } from "./odd-model.js";
import { drawn, greedy, request, runAll } from "./world.js";

const folder = mkdtempSync(join(tmpdir(), "millrace-hostile-"));
afterAll(() => rmSync(folder, { recursive: true }));

const absent = whyNoNative();
const devices = absent ? ["reference"] : ["cpu", "reference"];
if (absent) console.warn(`SKIPPED: hostile files on the cpu device: ${absent}`);

const load = (path: string, device: string, more: Partial<LoadSpec> = {}): Promise<LoadedModel> =>
  loadModel({ path, device, threads: 2, cacheShare: 0.01, ...more }, () => {});

/** Loads and generates, or is refused in words: which of the two. Anything else fails the test. */
async function survive(path: string, device: string): Promise<"ran" | "refused"> {
  let model: LoadedModel;
  try {
    model = await load(path, device);
  } catch (error) {
    if (!(error instanceof UserError || error instanceof FormatError)) throw error;
    expect(error.message.length).toBeGreaterThan(10);
    return "refused";
  }
  const { program, limits } = model;
  const { vocabSize } = program;
  const requests = [greedy, drawn].map((sampling, i) =>
    request(`r${i}`, [1 % vocabSize, 0, vocabSize - 1], { sampling, maxTokens: 4, logprobs: Math.min(2, vocabSize) }),
  );
  const { said } = await runAll(program, requests, { limits });
  for (const { choices } of said.values()) {
    expect(choices[0].reason).toBe("length");
    expect(choices[0].tokens).toHaveLength(4);
    for (const token of choices[0].tokens) expect(token >= 0 && token < vocabSize).toBe(true);
  }
  await model.close();
  return "ran";
}

const small: OddModel = { type: "Q4_1", layers: 1, hidden: 64, feedForward: 96, heads: 2, kvHeads: 1, headDim: 32 };

describe.each(devices)("on %s", (device) => {
  let whole: Uint8Array;
  const path = join(folder, `${device}.gguf`);
  /** Where the weights begin. */
  let weights: number;
  beforeAll(async () => {
    writeTinyLlamaGguf(path, { type: "Q4_0", layers: 1, hidden: 64, feedForward: 96, heads: 2, kvHeads: 1 });
    whole = new Uint8Array(readFileSync(path));
    const checkpoint = await openCheckpoint(path);
    weights = whole.length;
    for (const { bytes } of checkpoint.tensors.values()) weights -= Math.ceil(bytes / 32) * 32;
    checkpoint.close();
  });

  test("a file cut anywhere is refused", async () => {
    expect(await survive(path, device)).toBe("ran");
    const random = seededRandom(3);
    const lengths = [
      0,
      1,
      4,
      8,
      23,
      24,
      whole.length - 1,
      ...Array.from({ length: 40 }, () => random.below(whole.length)),
    ];
    for (const length of lengths) {
      writeFileSync(path, whole.subarray(0, length));
      expect(await survive(path, device), `${length} of ${whole.length} bytes`).toBe("refused");
    }
  });

  test("bytes changed anywhere before the weights: refused or harmless", async () => {
    const random = seededRandom(4);
    const found = { ran: 0, refused: 0 };
    for (let i = 0; i < 150; i++) {
      const damaged = whole.slice();
      // where names, counts, sizes and offsets stand: the beginning, and the table of tensors
      const at = i % 2 ? random.below(900) : weights - 1 - random.below(800);
      damaged[at] = i % 3 ? random.below(256) : 255;
      writeFileSync(path, damaged);
      found[await survive(path, device)]++;
    }
    expect(found.refused).toBeGreaterThan(20);
    expect(found.ran).toBeGreaterThan(5);
  });

  test("random weights, whatever numbers they make", async () => {
    const random = seededRandom(5);
    for (let i = 0; i < 10; i++) {
      const damaged = whole.slice();
      for (let at = weights; at < whole.length; at++) if (random.next() < 0.02) damaged[at] = random.below(256);
      writeFileSync(path, damaged);
      expect(await survive(path, device)).toBe("ran");
    }
  });

  test.each([
    ["NaN", 0x7e00],
    ["Infinity", 0x7c00],
    ["-Infinity", 0xfc00],
  ])("scales that are %s, in one matrix or all", async (_, bits) => {
    for (const type of ["Q4_0", "Q4_1", "Q8_0", "F16"] as const) {
      for (const which of [/ffn_down/, /attn_q/, /attn_v/, /token_embd/, /output\.weight/, /weight/]) {
        const tensors = oddTensors({ ...small, type }).map((tensor) => {
          if (!which.test(tensor.name) || tensor.type === "F32") return tensor;
          const data = tensor.data.slice();
          // the first block's scale, and one in the middle
          for (const at of [0, Math.floor(data.length / 2 / blockBytes[type]) * blockBytes[type]]) {
            data[at] = bits & 255;
            data[at + 1] = bits >> 8;
          }
          return { ...tensor, data };
        });
        const file = join(folder, `${device}-nan.gguf`);
        writeGguf(file, { meta: oddMetadata({ ...small, type }), tensors });
        expect(await survive(file, device), `${type} ${which}`).toBe("ran");
      }
    }
  });

  test("norms of NaN, of Infinity and of zero", async () => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, 0, 3e38]) {
      const tensors = oddTensors(small).map((tensor) =>
        tensor.type === "F32"
          ? { ...tensor, data: new Uint8Array(new Float32Array(tensor.shape[0]).fill(value).buffer) }
          : tensor,
      );
      const file = join(folder, `${device}-norm.gguf`);
      writeGguf(file, { meta: oddMetadata(small), tensors });
      expect(await survive(file, device)).toBe("ran");
    }
  });

  test("no token allowed: every id biased to −Infinity", async () => {
    const file = join(folder, `${device}-small.gguf`);
    writeOddGguf(file, { ...small, vocabSize: 37 });
    const model = await load(file, device);
    const logitBias = Array.from({ length: 37 }, (_, id) => [id, Number.NEGATIVE_INFINITY] as const);
    const masked = [greedy, drawn].map((sampling, i) =>
      request(`m${i}`, [1, 2], { sampling: { ...sampling, logitBias } }),
    );
    const free = request("free", [1, 2]);
    const alone = (await runAll(model.program, [free], { limits: model.limits })).said.get("free");
    const { said } = await runAll(model.program, [...masked, free], { limits: model.limits });
    for (const { choices } of said.values()) {
      expect(choices[0].reason).toBe("length");
      for (const token of choices[0].tokens) expect(token >= 0 && token < 37).toBe(true);
    }
    expect(said.get("free")).toEqual(alone);
    await model.close();
  });

  test("tensors that are missing, too many, or of another shape are refused by name", async () => {
    const file = join(folder, `${device}-tensors.gguf`);
    const tensors = oddTensors(small);
    const at = tensors.findIndex(({ name }) => name === "blk.0.ffn_up.weight");
    const variants = [
      tensors.filter((_, i) => i !== at),
      [...tensors, { ...tensors[at], name: "blk.0.ffn_sideways.weight" }],
      tensors.map((tensor, i) => (i === at ? { ...tensor, shape: [48, 128] } : tensor)),
      tensors.map((tensor, i) => (i === at ? { ...tensor, shape: [96 * 64] } : tensor)),
    ];
    for (const variant of variants) {
      writeFileSync(file, ggufBytes({ meta: oddMetadata(small), tensors: variant }));
      await expect(load(file, device)).rejects.toThrow(/ffn_(up|sideways)/);
    }
  });

  test.each([
    ["llama.attention.head_count", 0],
    ["llama.attention.head_count", 3],
    ["llama.attention.head_count_kv", 7],
    ["llama.attention.key_length", 33],
    ["llama.attention.key_length", 4_000_000_000],
    ["llama.block_count", 4_000_000_000],
    ["llama.block_count", 2],
    ["llama.context_length", 0],
    ["llama.embedding_length", 2 ** 31],
    ["llama.feed_forward_length", 95],
    ["llama.rope.dimension_count", 31],
    ["llama.rope.freq_base", { type: "f32", value: Number.NaN }],
    ["llama.rope.freq_base", { type: "f32", value: 0 }],
    ["llama.rope.freq_base", { type: "f32", value: -1e4 }],
    ["llama.attention.layer_norm_rms_epsilon", { type: "f32", value: Number.NaN }],
    ["general.architecture", "nonesuch"],
  ] as const)("%s = %j is refused", async (key, value) => {
    const file = join(folder, `${device}-meta.gguf`);
    writeFileSync(file, ggufBytes({ meta: { ...oddMetadata(small), [key]: value }, tensors: oddTensors(small) }));
    const refusal = await load(file, device).then(
      () => "it was loaded",
      (error) => error,
    );
    expect(refusal).toSatisfy((error) => error instanceof UserError || error instanceof FormatError);
  });

  test("a context of billions is cut to what fits, and says so where it was asked for", async () => {
    const file = join(folder, `${device}-context.gguf`);
    writeFileSync(
      file,
      ggufBytes({ meta: { ...oddMetadata(small), "llama.context_length": 2_000_000_000 }, tensors: oddTensors(small) }),
    );
    const model = await load(file, device);
    expect(model.limits.contextLength).toBeGreaterThan(1000);
    expect(model.limits.contextLength).toBeLessThan(2_000_000_000);
    await model.close();
    await expect(load(file, device, { contextLength: 2_000_000_000 })).rejects.toThrow(/2000000000/);
  });
});

const blockBytes = { Q4_0: 18, Q4_1: 20, Q8_0: 34, F16: 2 } as const;
