import { describe, expect, test } from "vitest";
import { HeaderIncomplete } from "../../src/formats/header.js";
import { parseSafetensors, parseShardIndex } from "../../src/formats/safetensors.js";
import { rawSafetensors, safetensorsBytes } from "../support/safetensors-writer.js";

const f32 = (name: string, ...shape: number[]) => ({
  name,
  dtype: "F32",
  shape,
  data: new Uint8Array(4 * shape.reduce((a, b) => a * b, 1)),
});

test("tensors have their types, shapes and places, whatever order the header lists them in", () => {
  const bytes = safetensorsBytes(
    [
      f32("late", 2, 3),
      { name: "half", dtype: "F16", shape: [5], data: new Uint8Array(10) },
      { name: "brain", dtype: "BF16", shape: [1, 3], data: new Uint8Array(6) },
      f32("scalar"),
      f32("empty", 0, 7),
    ],
    { format: "pt" },
  );
  const { tensors, dataStart, metadata } = parseSafetensors(bytes);
  expect(metadata).toEqual(new Map([["format", "pt"]]));
  expect(tensors).toEqual([
    { name: "late", type: "F32", shape: [2, 3], bytes: 24, offset: dataStart },
    { name: "half", type: "F16", shape: [5], bytes: 10, offset: dataStart + 24 },
    { name: "brain", type: "BF16", shape: [1, 3], bytes: 6, offset: dataStart + 34 },
    { name: "scalar", type: "F32", shape: [], bytes: 4, offset: dataStart + 40 },
    { name: "empty", type: "F32", shape: [0, 7], bytes: 0, offset: dataStart + 44 },
  ]);
  const swapped = rawSafetensors(
    `{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   `,
    [new Uint8Array(8)],
  );
  expect(parseSafetensors(swapped).tensors.map(({ name }) => name)).toEqual(["b", "a"]);
});

test("the header can be read from the file's beginning alone", () => {
  const bytes = safetensorsBytes([f32("a", 100)]);
  const { dataStart, tensors } = parseSafetensors(bytes);
  for (let length = 0; length < dataStart; length++) {
    const needed = length < 8 ? 8 : dataStart;
    expect(() => parseSafetensors(bytes.subarray(0, length), bytes.length)).toThrow(
      expect.objectContaining({ constructor: HeaderIncomplete, needed }),
    );
  }
  for (const fileBytes of [bytes.length, Number.POSITIVE_INFINITY]) {
    expect(parseSafetensors(bytes.subarray(0, dataStart), fileBytes).tensors).toEqual(tensors);
  }
});

describe("what is refused, with the reason", () => {
  const entry = (text: string, data = 4) => rawSafetensors(`{"t":${text}}`, [new Uint8Array(data)]);
  const described = (fields: Record<string, unknown>, data = 4) =>
    entry(JSON.stringify({ dtype: "F32", shape: [1], data_offsets: [0, 4], ...fields }), data);
  const cases: [string, () => Uint8Array, RegExp][] = [
    ["an empty file", () => new Uint8Array(0), /it has 0 bytes/],
    [
      "a header of 2^63 bytes",
      () => rawSafetensors("{}", [], 2n ** 63n),
      /header would have 9223372036854776000 bytes/,
    ],
    ["a header of 100 MB and one", () => rawSafetensors("{}", [], 100_000_001n), /at most 100000000/],
    ["a header longer than the file", () => rawSafetensors("{}", [], 3n), /the header has 3 bytes, but the file ends/],
    ["a header that is not JSON", () => rawSafetensors("{"), /not JSON/],
    ["a header that is not UTF-8", () => rawSafetensors("{}", [], 1n).fill(0xff, 8), /not JSON/],
    ["a header that is an array", () => rawSafetensors("[]"), /not a JSON object/],
    ["metadata that are not text", () => rawSafetensors('{"__metadata__":{"a":1}}'), /"a" is not a string/],
    ["a tensor that is null", () => entry("null"), /"t" has no description/],
    [
      "an unreadable dtype",
      () => described({ dtype: "F8_E4M3" }),
      /"t" has dtype "F8_E4M3"; dtypes that can be read: F32, F16, BF16/,
    ],
    ["no dtype", () => described({ dtype: undefined }), /has dtype nothing/],
    ["a negative dimension", () => described({ shape: [-1] }), /no proper shape: \[-1\]/],
    ["a fractional dimension", () => described({ shape: [0.5] }), /no proper shape/],
    ["an overflowing shape", () => described({ shape: [2 ** 40, 2 ** 40] }), /takes .* bytes, but has 4/],
    ["one offset", () => described({ data_offsets: [0] }), /no proper data_offsets/],
    ["offsets the wrong way round", () => described({ data_offsets: [4, 0] }), /no proper data_offsets/],
    ["offsets that do not fit the shape", () => described({ data_offsets: [0, 8] }, 8), /takes 4 bytes, but has 8/],
    ["offsets outside the file", () => described({}, 3), /the tensors end at byte \d+, but the file has/],
    ["a hole", () => described({ data_offsets: [4, 8] }, 8), /a hole of 4 bytes before tensor "t"/],
    ["bytes of nobody", () => described({}, 5), /the last 1 bytes of the file belong to no tensor/],
    [
      "an overlap",
      () => safetensorsBytes([f32("a", 2), { ...f32("b", 1), dataOffsets: [4, 8] }]).slice(0, -4),
      /tensor "b" overlaps/,
    ],
  ];
  test.each(cases)("%s", (_, make, message) => {
    expect(() => parseSafetensors(make())).toThrow(
      expect.objectContaining({ name: "FormatError", message: expect.stringMatching(message) }),
    );
  });

  test("a long name is cut in messages", () => {
    const bytes = safetensorsBytes([{ ...f32("x".repeat(10000), 1), dtype: "I64" }]);
    expect(() => parseSafetensors(bytes)).toThrow(
      expect.objectContaining({ message: expect.stringMatching(/^.{1,200}$/) }),
    );
  });
});

describe("the index of shards", () => {
  test("names each tensor's file", () => {
    const map = { b: "model-2.safetensors", a: "model-1.safetensors", c: "model-2.safetensors" };
    const { files, weightMap } = parseShardIndex({ metadata: { total_size: 1 }, weight_map: map });
    expect(files).toEqual(["model-1.safetensors", "model-2.safetensors"]);
    expect(Object.fromEntries(weightMap)).toEqual(map);
  });

  test.each([
    [{}, /no weight_map/],
    [{ weight_map: [] }, /no weight_map/],
    [{ weight_map: {} }, /empty/],
    [{ weight_map: { a: 1 } }, /puts "a" in 1/],
    [{ weight_map: { a: "../secret.safetensors" } }, /not a .safetensors file here/],
    [{ weight_map: { a: "pytorch_model.bin" } }, /not a .safetensors file here/],
  ])("refuses %j", (index, message) => {
    expect(() => parseShardIndex(index)).toThrow(message);
  });
});
