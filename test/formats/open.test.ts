import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { storageBytes, storageTypes } from "../../src/base/dtype.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { dequantize } from "../../src/formats/quant/dequantize.js";
import { type MetaInput, randomWeights, type TensorInput, writeGguf } from "../support/gguf-writer.js";
import { seededRandom } from "../support/random.js";
import { writeSafetensors } from "../support/safetensors-writer.js";
import { tinyVocabulary, writeTinyLlamaGguf } from "../support/tiny-llama.js";

const base = mkdtempSync(join(tmpdir(), "open-"));
afterAll(() => rmSync(base, { recursive: true }));
let folder: string;
let count = 0;
beforeEach(() => {
  folder = join(base, `t${count++}`);
  mkdirSync(folder);
});
const inFolder = (name: string) => join(folder, name);
const json = (name: string, value: unknown) => writeFileSync(inFolder(name), JSON.stringify(value));

/** What the steps lead to. */
const last = (...steps: unknown[]) => steps.at(-1) as string;

const vector = (name: string, first: number, size = 8): TensorInput => {
  const values = Float32Array.from({ length: size }, (_, i) => first + i);
  return { name, type: "F32", shape: [size], data: new Uint8Array(values.buffer) };
};
const shard = ({ name, type, shape, data }: TensorInput) => ({ name, dtype: type, shape, data });
const floats = (bytes: Uint8Array) => [...new Float32Array(bytes.slice().buffer)];

describe("a GGUF file", () => {
  test.each(storageTypes)("with %s weights opens, and its bytes are those written", async (type) => {
    const path = inFolder("tiny.gguf");
    writeTinyLlamaGguf(path, { type, layers: 1 });
    const checkpoint = await openCheckpoint(path);
    expect(checkpoint.label).toBe("tiny");
    expect(checkpoint.fileBytes).toBe(readFileSync(path).length);
    expect(checkpoint.meta.kind === "gguf" && checkpoint.meta.values.get("general.architecture")).toBe("llama");
    expect(checkpoint.tensors.get("blk.0.ffn_down.weight")).toEqual({
      name: "blk.0.ffn_down.weight",
      type,
      shape: [256, 512],
      bytes: storageBytes(type, 256 * 512),
    });
    const embedding = randomWeights(type, 288 * 256, seededRandom(1), 1); // the first that the writer draws
    expect(Buffer.from(checkpoint.read("token_embd.weight")).equals(Buffer.from(embedding))).toBe(true);
    checkpoint.release("token_embd.weight");
    expect(Buffer.from(checkpoint.read("token_embd.weight")).equals(Buffer.from(embedding))).toBe(true);
    checkpoint.close();
  });

  test.each([true, false])("refuses unknown names, and everything once closed (mmap: %s)", async (mmap) => {
    writeGguf(inFolder("a.gguf"), { meta: { words: ["x"], late: ["y"] }, tensors: [vector("a", 1)] });
    const checkpoint = await openCheckpoint(inFolder("a.gguf"), { mmap });
    expect(() => checkpoint.read("b")).toThrow(/a has no tensor "b"/);
    expect(floats(checkpoint.read("a"))).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    const { meta } = checkpoint;
    if (meta.kind !== "gguf") throw new Error("not a GGUF");
    expect(meta.values.get("words")).toEqual(["x"]);
    checkpoint.close();
    checkpoint.close();
    checkpoint.release("a");
    expect(() => checkpoint.read("a")).toThrow(/was closed/);
    expect(meta.values.get("words")).toEqual(["x"]);
    expect(() => meta.values.get("late")).toThrow(/closed before "late"/);
  });

  test("with a header of megabytes opens without mmap too", async () => {
    const words = Array.from({ length: 200000 }, (_, i) => `word number ${i}`);
    writeGguf(inFolder("long.gguf"), { meta: { words }, tensors: [vector("a", 5)] });
    const checkpoint = await openCheckpoint(inFolder("long.gguf"), { mmap: false });
    expect(checkpoint.meta.kind === "gguf" && checkpoint.meta.values.get("words")).toEqual(words);
    expect(floats(checkpoint.read("a"))[0]).toBe(5);
    checkpoint.close();
  });

  test("with only a vocabulary opens", async () => {
    writeGguf(inFolder("vocab.gguf"), { meta: { "general.architecture": "llama", ...tinyVocabulary() } });
    const checkpoint = await openCheckpoint(inFolder("vocab.gguf"));
    expect(checkpoint.tensors.size).toBe(0);
    expect(checkpoint.meta.kind === "gguf" && checkpoint.meta.values.get("tokenizer.ggml.tokens")).toHaveLength(288);
    checkpoint.close();
  });

  test("needs no ending, and an error names the file", async () => {
    writeGguf(inFolder("sha256-0123"), { meta: {}, tensors: [vector("a", 1)] });
    const checkpoint = await openCheckpoint(inFolder("sha256-0123"));
    expect(checkpoint.label).toBe("sha256-0123");
    checkpoint.close();
    writeFileSync(inFolder("cut.gguf"), readFileSync(inFolder("sha256-0123")).subarray(0, -1));
    await expect(openCheckpoint(inFolder("cut.gguf"))).rejects.toThrow(/cut\.gguf: tensor "a" ends at byte/);
  });
});

test("a file that the gguf package wrote has its metadata and its values", async () => {
  const golden = new URL("../golden/quant/", import.meta.url);
  const { sums } = JSON.parse(readFileSync(new URL("sample.json", golden), "utf8")) as { sums: Record<string, number> };
  const checkpoint = await openCheckpoint(fileURLToPath(new URL("sample.gguf", golden)));
  if (checkpoint.meta.kind !== "gguf") throw new Error("not a GGUF");
  expect(Object.fromEntries(checkpoint.meta.values)).toEqual({
    "general.architecture": "llama",
    "test.text": "grüße, 世界 😀",
    "test.u8": 200,
    "test.i8": -100,
    "test.u16": 60000,
    "test.i16": -30000,
    "test.u32": 4000000000,
    "test.i32": -2000000000,
    "test.u64": 2n ** 63n,
    "test.i64": -5,
    "test.f32": 0.5,
    "test.f64": 0.1,
    "test.bool": true,
    "test.strings": ["<s>", "", "▁the", "😀"],
    "test.floats": Float32Array.of(0, -1.5),
    "test.ints": Int32Array.of(1, -2),
  });
  expect([...checkpoint.tensors.values()].map(({ type, shape }) => [type, ...shape])).toEqual([
    ["F32", 2, 64],
    ["Q4_0", 3, 64],
    ["Q8_0", 4, 64],
    ["BF16", 5, 64],
  ]);
  for (const { name, type, shape } of checkpoint.tensors.values()) {
    const values = new Float32Array(shape[0] * shape[1]);
    dequantize(type, checkpoint.read(name), values);
    expect(values.reduce((sum, value) => sum + value, 0)).toBeCloseTo(sums[name], 10);
  }
  checkpoint.close();
});

describe("a split GGUF", () => {
  const part = (
    no: number,
    of = 3,
    o: { meta?: Record<string, MetaInput>; tensors?: TensorInput[]; total?: number } = {},
  ) => {
    const path = inFolder(`model-0000${no + 1}-of-0000${of}.gguf`);
    const split = {
      "split.no": { type: "u16" as const, value: no },
      "split.count": { type: "u16" as const, value: of },
      "split.tensors.count": { type: "i32" as const, value: o.total ?? 3 },
    };
    writeGguf(path, {
      meta: { ...(no === 0 ? { name: "whole" } : {}), ...split, ...o.meta },
      tensors: o.tensors ?? [vector(`t${no}`, 10 * no)],
    });
    return path;
  };

  test("opens by any of its parts, or by its folder", async () => {
    const paths = [part(0), part(1), part(2)];
    for (const path of [...paths, folder]) {
      const checkpoint = await openCheckpoint(path);
      expect(checkpoint.label).toBe("model");
      expect([...checkpoint.tensors.keys()]).toEqual(["t0", "t1", "t2"]);
      expect(checkpoint.meta.kind === "gguf" && checkpoint.meta.values.get("name")).toBe("whole");
      expect(["t0", "t1", "t2"].map((name) => floats(checkpoint.read(name))[0])).toEqual([0, 10, 20]);
      expect(checkpoint.fileBytes).toBe(paths.reduce((sum, one) => sum + readFileSync(one).length, 0));
      checkpoint.close();
    }
  });

  test("of one part opens", async () => {
    const checkpoint = await openCheckpoint(part(0, 1, { total: 1 }));
    expect(checkpoint.tensors.size).toBe(1);
    checkpoint.close();
  });

  const broken: [string, () => string, RegExp][] = [
    ["a part is missing", () => last(part(0), part(2)), /1 of its 3 parts are not there: model-00002-of-00003\.gguf/],
    ["a part was renamed", () => renamed(), /is one of 3 parts: the files must keep their names/],
    ["parts stand in each other's place", () => swapped(), /says it is part 2 of 3 \(from 0\); part 1 of 3 is wanted/],
    [
      "a part is of another split",
      () => last(part(0), part(1), part(2, 3, { meta: { "split.count": 4 } })),
      /is one of 4 parts: the files must keep their names/,
    ],
    [
      "a tensor is in two parts",
      () => last(part(0), part(2), part(1, 3, { tensors: [vector("t0", 0)] })),
      /tensor "t0" is in another part too/,
    ],
    [
      "tensors are missing",
      () => last(part(1), part(2), part(0, 3, { total: 4 })),
      /split\.tensors\.count is 4, but the parts hold 3/,
    ],
    ["a part that is not one has the name of one", () => plain(), /holds no split\.count/],
  ];
  function renamed() {
    writeFileSync(inFolder("other.gguf"), readFileSync(part(0)));
    return inFolder("other.gguf");
  }
  function swapped() {
    const [first, second, third] = [part(0), part(1), part(2)];
    const bytes = readFileSync(second);
    writeFileSync(second, readFileSync(third));
    writeFileSync(third, bytes);
    return first;
  }
  function plain() {
    writeGguf(inFolder("model-00001-of-00002.gguf"), { meta: {} });
    return inFolder("model-00001-of-00002.gguf");
  }
  test.each(broken)("is refused where %s", async (_, make, message) => {
    await expect(openCheckpoint(make())).rejects.toThrow(message);
  });
});

describe("a Hugging Face folder", () => {
  test("has its weights and all its files", async () => {
    json("config.json", { model_type: "llama", hidden_size: 8 });
    json("generation_config.json", { eos_token_id: [1, 2] });
    json("tokenizer.json", { model: { type: "BPE" } });
    json("tokenizer_config.json", { add_bos_token: true });
    json("special_tokens_map.json", { eos_token: "</s>" });
    writeFileSync(inFolder("chat_template.jinja"), "{{ messages }}");
    mkdirSync(inFolder("additional_chat_templates"));
    writeFileSync(inFolder("additional_chat_templates/tool_use.jinja"), "{{ tools }}");
    writeSafetensors(inFolder("model.safetensors"), [shard(vector("a", 3)), shard(vector("b", 20, 3))], {
      format: "pt",
    });
    const checkpoint = await openCheckpoint(folder);
    expect(checkpoint.label).toBe(folder.slice(base.length + 1));
    if (checkpoint.meta.kind !== "huggingface") throw new Error("not a folder");
    expect({ ...checkpoint.meta.files }).toEqual({
      config: { model_type: "llama", hidden_size: 8 },
      generationConfig: { eos_token_id: [1, 2] },
      tokenizer: { model: { type: "BPE" } },
      tokenizerConfig: { add_bos_token: true },
      specialTokensMap: { eos_token: "</s>" },
      chatTemplate: "{{ messages }}",
      namedChatTemplates: { tool_use: "{{ tools }}" },
    });
    expect(checkpoint.tensors.get("b")).toEqual({ name: "b", type: "F32", shape: [3], bytes: 12 });
    expect(floats(checkpoint.read("b"))).toEqual([20, 21, 22]);
    checkpoint.close();
  });

  test("absent files are undefined, and Python's Infinity and NaN are read", async () => {
    writeFileSync(
      inFolder("config.json"),
      '\uFEFF{"limit": [0.0, Infinity, -Infinity], "x": NaN, "s": "Infinity \\" NaN"}',
    );
    writeSafetensors(inFolder("model.safetensors"), [shard(vector("a", 3))]);
    const checkpoint = await openCheckpoint(folder);
    expect(checkpoint.meta.kind === "huggingface" && { ...checkpoint.meta.files }).toEqual({
      config: { limit: [0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY], x: null, s: 'Infinity " NaN' },
    });
    checkpoint.close();
  });

  test("with shards has the tensors of all", async () => {
    json("config.json", {});
    writeSafetensors(inFolder("model-00001-of-00002.safetensors"), [shard(vector("a", 1)), shard(vector("b", 2))]);
    writeSafetensors(inFolder("model-00002-of-00002.safetensors"), [shard(vector("c", 3))]);
    const [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    json("model.safetensors.index.json", { weight_map: { a: one, b: one, c: two } });
    const checkpoint = await openCheckpoint(folder);
    expect(["a", "b", "c"].map((name) => floats(checkpoint.read(name))[0])).toEqual([1, 2, 3]);
    checkpoint.close();
    json("model.safetensors.index.json", { weight_map: { a: one, b: two, c: two } });
    await expect(openCheckpoint(folder)).rejects.toThrow(/model-00002-of-00002\.safetensors does not hold "b"/);
    json("model.safetensors.index.json", { weight_map: { a: one, c: "model-3.safetensors" } });
    await expect(openCheckpoint(folder)).rejects.toThrow(/1 of 2 shards are not there: model-3\.safetensors/);
    rmSync(inFolder("model.safetensors.index.json"));
    await expect(openCheckpoint(folder)).rejects.toThrow(/2 safetensors files but no model\.safetensors\.index\.json/);
  });

  test("may hold just a tokenizer", async () => {
    json("tokenizer.json", {});
    const checkpoint = await openCheckpoint(folder);
    expect(checkpoint.tensors.size).toBe(0);
    checkpoint.close();
  });

  test("that holds one GGUF is that GGUF", async () => {
    writeTinyLlamaGguf(inFolder("only.gguf"), { layers: 1 });
    json("config.json", {});
    const checkpoint = await openCheckpoint(folder);
    expect(checkpoint.meta.kind).toBe("gguf");
    checkpoint.close();
    writeTinyLlamaGguf(inFolder("second.gguf"), { layers: 1 });
    rmSync(inFolder("config.json"));
    await expect(openCheckpoint(folder)).rejects.toThrow(/2 GGUF models; give one of them: only\.gguf, second\.gguf/);
  });
});

describe("what is no model says what it is", () => {
  const cases: [string, () => string, RegExp][] = [
    ["nothing", () => inFolder("absent"), /there is no file or folder/],
    ["an empty folder", () => folder, /neither config\.json with safetensors nor a \.gguf/],
    ["a pickle", () => last(writeFileSync(inFolder("x.bin"), "x"), inFolder("x.bin")), /pickle/],
    [
      "one safetensors file",
      () => last(writeFileSync(inFolder("x.safetensors"), ""), inFolder("x.safetensors")),
      /give the folder/,
    ],
    [
      "a folder of pickles",
      () => last(json("config.json", {}), writeFileSync(inFolder("pytorch_model.bin"), ""), folder),
      /pickle/,
    ],
    ["safetensors alone", () => last(writeSafetensors(inFolder("model.safetensors"), []), folder), /no config\.json/],
    [
      "a text",
      () => last(writeFileSync(inFolder("x.txt"), "hello, world"), inFolder("x.txt")),
      /x\.txt is no model file; a model is a \.gguf file, or a folder/,
    ],
    ...(
      [
        [
          "Git LFS's pointer",
          "version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
          /is the pointer that Git LFS/,
        ],
        ["a web page", "<!DOCTYPE html><html>", /is a web page/],
        ["a pickle under another name", "PK\u0003\u0004 and more", /pickle format/],
        ["a file older than GGUF", "tjgg and more", /older than GGUF/],
        ["a safetensors file under another name", '\u0010\0\0\0\0\0\0\0{"a": 1}', /one safetensors file/],
      ] as const
    ).map(([what, text, message]): [string, () => string, RegExp] => [
      what,
      () => last(writeFileSync(inFolder("x.gguf"), text), inFolder("x.gguf")),
      message,
    ]),
    [
      "a broken config.json",
      () => last(writeFileSync(inFolder("config.json"), "{,}"), folder),
      /config\.json is not JSON/,
    ],
    [
      "a config.json of numbers",
      () => last(writeFileSync(inFolder("config.json"), "[1]"), folder),
      /does not hold a JSON object/,
    ],
  ];
  test.each(cases)("%s", async (_, make, message) => {
    await expect(openCheckpoint(make())).rejects.toThrow(message);
  });
});

test.runIf(process.platform === "linux")("a failed opening leaves no file open", async () => {
  const open = () => readdirSync("/proc/self/fd").length;
  writeGguf(inFolder("model-00001-of-00002.gguf"), { meta: { "split.count": 2, "split.no": 0 } });
  writeFileSync(inFolder("model-00002-of-00002.gguf"), "no");
  const before = open();
  for (const mmap of [true, false]) {
    await expect(openCheckpoint(inFolder("model-00001-of-00002.gguf"), { mmap })).rejects.toThrow();
  }
  expect(open()).toBe(before);
});
