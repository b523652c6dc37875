import { describe, expect, test } from "vitest";
import { parseGguf } from "../../src/formats/gguf.js";
import { HeaderIncomplete } from "../../src/formats/header.js";
import { ByteWriter, type GgufInput, ggmlTypeNumbers, ggufBytes, type MetaInput } from "../support/gguf-writer.js";

const zeros = (count: number) => new Uint8Array(count);
const vector = (name: string, size = 8) => ({ name, type: "F32" as const, shape: [size], data: zeros(4 * size) });
const valuesOf = (meta: GgufInput["meta"]) => parseGguf(ggufBytes({ meta })).values;

/** A file with one tensor whose fields are free. */
function oneTensor(o: {
  dims?: (number | bigint)[];
  type?: number;
  offset?: number | bigint;
  data?: number;
}): Uint8Array {
  const { dims = [32, 4], type = 0, offset = 0, data = 512 } = o;
  const w = new ByteWriter();
  w.raw(new TextEncoder().encode("GGUF"));
  w.number("u32", 3);
  w.number("u64", 1);
  w.number("u64", 0);
  w.string("t");
  w.number("u32", dims.length);
  for (const dim of dims) w.number("u64", dim);
  w.number("u32", type);
  w.number("u64", offset);
  w.pad(32);
  return w.raw(zeros(data)).finish();
}

describe("metadata", () => {
  test("has every kind of value", () => {
    const values = valuesOf({
      u8: { type: "u8", value: 200 },
      i8: { type: "i8", value: -100 },
      u16: { type: "u16", value: 60000 },
      i16: { type: "i16", value: -30000 },
      u32: { type: "u32", value: 4000000000 },
      i32: { type: "i32", value: -2000000000 },
      f32: { type: "f32", value: 0.5 },
      f64: { type: "f64", value: 0.1 },
      yes: true,
      no: false,
      text: "grüße, 世界 😀",
      empty: "",
      small: { type: "u64", value: 2n ** 53n - 1n },
      large: { type: "u64", value: 2n ** 64n - 1n },
      negative: { type: "i64", value: -5n },
      lowest: { type: "i64", value: -(2n ** 63n) },
    });
    expect(Object.fromEntries(values)).toEqual({
      u8: 200,
      i8: -100,
      u16: 60000,
      i16: -30000,
      u32: 4000000000,
      i32: -2000000000,
      f32: 0.5,
      f64: 0.1,
      yes: true,
      no: false,
      text: "grüße, 世界 😀",
      empty: "",
      small: Number.MAX_SAFE_INTEGER,
      large: 2n ** 64n - 1n,
      negative: -5,
      lowest: -(2n ** 63n),
    });
  });

  test("has typed arrays, and arrays in arrays", () => {
    const bytes = ggufBytes({
      meta: {
        u8: Uint8Array.of(1, 255),
        i8: Int8Array.of(-1, 5),
        u16: Uint16Array.of(65535),
        i16: Int16Array.of(-2),
        u32: Uint32Array.of(1, 2 ** 32 - 1),
        i32: Int32Array.of(-7, 7),
        f32: Float32Array.of(1.5, -2.5),
        f64: Float64Array.of(0.1),
        none: new Float32Array(0),
        flags: { type: "array", of: "bool", items: [true, false].map((value) => ({ type: "bool", value })) },
        wide: { type: "array", of: "u64", items: [{ type: "u64", value: 2n ** 60n }] },
        nested: {
          type: "array",
          of: "array",
          items: [
            { type: "array", of: "string", items: [{ type: "string", value: "a" }] },
            { type: "array", of: "u32", items: [] },
          ],
        },
      },
    });
    const shifted = new Uint8Array(bytes.length + 3); // the file's bytes may lie anywhere
    shifted.set(bytes, 3);
    expect(Object.fromEntries(parseGguf(shifted.subarray(3)).values)).toEqual({
      u8: Uint8Array.of(1, 255),
      i8: Int8Array.of(-1, 5),
      u16: Uint16Array.of(65535),
      i16: Int16Array.of(-2),
      u32: Uint32Array.of(1, 2 ** 32 - 1),
      i32: Int32Array.of(-7, 7),
      f32: Float32Array.of(1.5, -2.5),
      f64: Float64Array.of(0.1),
      none: new Float32Array(0),
      flags: [true, false],
      wide: [2n ** 60n],
      nested: [["a"], new Uint32Array(0)],
    });
  });

  test("arrays of strings keep each string apart, whatever characters it has", () => {
    const strings = ["", "a", "ä", "", "世界", "😀😀", "\uFEFFmark", "\0", "▁the", "z"];
    expect(valuesOf({ strings }).get("strings")).toEqual(strings);
  });

  test("a string that is not UTF-8 becomes replacement characters and leaves its neighbours alone", () => {
    const raw = (...bytes: number[]) => ({ type: "string" as const, value: Uint8Array.from(bytes) });
    const cases: [ReturnType<typeof raw>[], string[]][] = [
      // A character cut in two: joined it would be whole again.
      [
        [raw(0xc3), raw(0xa4), raw(0x61)],
        ["\uFFFD", "\uFFFD", "a"],
      ],
      [
        [raw(0x61), raw(0xff), raw(0xc3, 0xa4)],
        ["a", "\uFFFD", "ä"],
      ],
    ];
    for (const [items, strings] of cases) {
      expect(valuesOf({ a: { type: "array", of: "string", items } }).get("a")).toEqual(strings);
    }
    expect(valuesOf({ a: raw(0x61, 0xff) }).get("a")).toBe("a\uFFFD");
  });

  test("behaves like a map", () => {
    const values = valuesOf({ a: 1, b: ["x", "y"] });
    expect(values.size).toBe(2);
    expect([...values.keys()]).toEqual(["a", "b"]);
    expect([...values.values()]).toEqual([1, ["x", "y"]]);
    expect(values.has("b")).toBe(true);
    expect(values.get("c")).toBeUndefined();
    const seen: unknown[] = [];
    values.forEach((value, key, map) => {
      seen.push(key, value, map === values);
    });
    expect(seen).toEqual(["a", 1, true, "b", ["x", "y"], true]);
    expect(values.get("b")).toBe(values.get("b"));
  });

  test("an array of strings that was not looked at cannot be read once the bytes are gone", () => {
    const { values, forgetBytes } = parseGguf(ggufBytes({ meta: { a: ["x"], b: ["y"], c: 3 } }));
    expect(values.get("a")).toEqual(["x"]);
    forgetBytes();
    expect(values.get("a")).toEqual(["x"]);
    expect(values.get("c")).toBe(3);
    expect(() => values.get("b")).toThrow(/closed before "b"/);
  });

  test("262,144 strings are read well within a second", () => {
    const strings = Array.from({ length: 262144 }, (_, i) => `▁tok${i}`);
    const bytes = ggufBytes({ meta: { strings } });
    const start = performance.now();
    const read = parseGguf(bytes).values.get("strings") as string[];
    expect(performance.now() - start).toBeLessThan(1000); // about 50 ms on an idle core
    expect(read.length).toBe(262144);
    expect(read[262143]).toBe("▁tok262143");
  });
});

describe("tensors", () => {
  test("are named with shapes outermost first and offsets from the start of the file", () => {
    const data = Uint8Array.from({ length: 6 * 18 }, (_, i) => i);
    const bytes = ggufBytes({
      meta: { "general.architecture": "x" },
      tensors: [vector("a", 3), { name: "b", type: "Q4_0", shape: [3, 2, 32], data }, vector("c")],
    });
    const { tensors, alignment, dataStart, version } = parseGguf(bytes);
    expect({ version, alignment, rest: dataStart % 32 }).toEqual({ version: 3, alignment: 32, rest: 0 });
    expect(tensors).toEqual([
      { name: "a", type: "F32", shape: [3], bytes: 12, offset: dataStart },
      { name: "b", type: "Q4_0", shape: [3, 2, 32], bytes: 108, offset: dataStart + 32 },
      { name: "c", type: "F32", shape: [8], bytes: 32, offset: dataStart + 160 },
    ]);
    expect(bytes.subarray(tensors[1].offset, tensors[1].offset + 108)).toEqual(data);
  });

  test("version 2 and other alignments are read", () => {
    const input = { meta: {}, tensors: [vector("a"), vector("b", 3), vector("c")] };
    expect(parseGguf(ggufBytes({ ...input, version: 2 })).version).toBe(2);
    const { tensors, alignment } = parseGguf(ggufBytes({ ...input, alignment: 4096 }));
    expect(alignment).toBe(4096);
    expect(tensors.map(({ offset }) => offset)).toEqual([4096, 8192, 12288]);
  });

  test("a file with only a vocabulary ends after its metadata", () => {
    const { tensors, values } = parseGguf(ggufBytes({ meta: { "tokenizer.ggml.tokens": ["a", "b"] } }));
    expect(tensors).toEqual([]);
    expect(values.get("tokenizer.ggml.tokens")).toEqual(["a", "b"]);
  });

  test("the header can be read from the file's beginning alone", () => {
    const bytes = ggufBytes({ meta: { words: ["aa", "bb"], n: 3 }, tensors: [vector("a"), vector("b")] });
    const whole = parseGguf(bytes);
    let asked = 0;
    for (let length = 0; length < whole.dataStart - 32; length++) {
      try {
        parseGguf(bytes.subarray(0, length), bytes.length);
      } catch (error) {
        expect(error).toBeInstanceOf(HeaderIncomplete);
        expect((error as HeaderIncomplete).needed).toBeGreaterThan(length);
        expect((error as HeaderIncomplete).needed).toBeLessThanOrEqual(whole.dataStart);
        asked++;
      }
    }
    expect(asked).toBe(whole.dataStart - 32);
    for (const fileBytes of [bytes.length, Number.POSITIVE_INFINITY]) {
      expect(parseGguf(bytes.subarray(0, whole.dataStart), fileBytes).tensors).toEqual(whole.tensors);
    }
  });
});

describe("what is refused, with the reason", () => {
  const header = (
    version: number,
    tensors: number | bigint,
    values: number | bigint,
    rest: (w: ByteWriter) => void,
  ) => {
    const w = new ByteWriter();
    w.raw(new TextEncoder().encode("GGUF"));
    w.number("u32", version);
    w.number("u64", tensors);
    w.number("u64", values);
    rest(w);
    return w.finish();
  };
  const nothing = () => {};
  const meta = (value: MetaInput) => ggufBytes({ meta: { key: value } });
  const nest = (depth: number): MetaInput =>
    depth === 0
      ? { type: "array", of: "u8", items: [] }
      : { type: "array", of: "array", items: [nest(depth - 1) as never] };
  const cases: [string, () => Uint8Array, RegExp][] = [
    ["an empty file", () => zeros(0), /ends at byte 0, within the magic number/],
    ["another format", () => zeros(64), /does not begin with "GGUF"/],
    ["version 1", () => header(1, 0, 0, nothing), /version 1; versions 2 and 3/],
    ["version 4", () => header(4, 0, 0, nothing), /version 4; versions 2 and 3/],
    ["big-endian", () => header(0x03000000, 0, 0, nothing), /big-endian/],
    ["an absurd number of tensors", () => header(3, 2n ** 62n, 0, nothing), /number of tensors: an absurd number/],
    ["more tensors than fit", () => header(3, 1000, 0, nothing), /1000 tensors cannot be in the 8 bytes/],
    ["more values than fit", () => header(3, 0, 2 ** 40, nothing), /metadata values cannot be/],
    ["a key without end", () => header(3, 0, 1, (w) => w.number("u64", 2n ** 63n).raw(zeros(64))), /absurd/],
    ["an empty key", () => ggufBytes({ meta: { "": 1 } }), /has 0 bytes/],
    [
      "a key that is not UTF-8",
      () => header(3, 0, 1, (w) => w.string(Uint8Array.of(0xff)).raw(zeros(32))),
      /not UTF-8/,
    ],
    [
      "a key twice",
      () =>
        ggufBytes({
          meta: [
            ["k", 1],
            ["k", 2],
          ],
        }),
      /"k" is there twice/,
    ],
    [
      "an unknown kind of value",
      () => header(3, 0, 1, (w) => w.string("k").number("u32", 13).raw(zeros(9))),
      /type 13/,
    ],
    ["a truth value of 2", () => meta({ type: "bool", value: 2 }), /truth value of 2/],
    [
      "an array longer than the file",
      () =>
        header(3, 0, 1, (w) =>
          w
            .string("k")
            .number("u32", 9)
            .number("u32", 4)
            .number("u64", 2 ** 33),
        ),
      /8589934592 elements in the value of "k" cannot be/,
    ],
    [
      "an array of strings that ends early",
      () =>
        header(3, 0, 1, (w) =>
          w.string("k").number("u32", 9).number("u32", 8).number("u64", 2).string("x").number("u64", 9),
        ),
      /9 bytes in a string in the value of "k" cannot be in the 0 bytes/,
    ],
    ["arrays nested too deep", () => meta(nest(5)), /nested more than 4 deep/],
    ["an alignment of 0", () => ggufBytes({ meta: {}, alignment: 0 }), /alignment is 0/],
    ["an alignment of 48", () => ggufBytes({ meta: {}, alignment: 48 }), /alignment is 48; it must be a power of two/],
    ["an alignment in words", () => ggufBytes({ meta: { "general.alignment": "32" } }), /must be a power of two/],
    ["a tensor twice", () => ggufBytes({ meta: {}, tensors: [vector("t"), vector("t")] }), /tensor "t" is there twice/],
    ["five dimensions", () => oneTensor({ dims: [1, 1, 1, 1, 1] }), /5 dimensions/],
    ["a dimension of 0", () => oneTensor({ dims: [32, 0] }), /dimension 1 is 0/],
    ["an overflowing size", () => oneTensor({ dims: [2n ** 40n, 2n ** 40n] }), /absurd size/],
    ["a dimension of 2^63", () => oneTensor({ dims: [2n ** 63n] }), /absurd/],
    [
      "a type of a later day",
      () => oneTensor({ type: 39 }),
      /tensor "t" has type 39 \(MXFP4\); types that can be read: F32/,
    ],
    ["an unknown type", () => oneTensor({ type: 1000 }), /type 1000 \(unknown\)/],
    [
      "rows that are not whole blocks",
      () => oneTensor({ type: ggmlTypeNumbers.Q4_K, dims: [32, 8] }),
      /rows of 32 values are not whole Q4_K blocks of 256/,
    ],
    ["an unaligned offset", () => oneTensor({ offset: 8 }), /offset 8 is not a multiple of 32/],
    ["an offset outside", () => oneTensor({ offset: 2 ** 40 }), /truncated or corrupt/],
    ["an absurd offset", () => oneTensor({ offset: 2n ** 64n - 32n }), /absurd/],
    ["a tensor cut short", () => oneTensor({ data: 511 }), /ends at byte 608, but the file has 607/],
  ];
  test.each(cases)("%s", (_, make, message) => {
    expect(() => parseGguf(make())).toThrow(
      expect.objectContaining({ name: "FormatError", message: expect.stringMatching(message) }),
    );
  });

  test("tensors that overlap", () => {
    const bytes = ggufBytes({ meta: {}, tensors: [vector("first", 16), vector("other", 16)] });
    const at = Buffer.from(bytes).indexOf("other") + 5 + 4 + 8 + 4;
    new DataView(bytes.buffer).setBigUint64(at, 32n, true);
    expect(() => parseGguf(bytes)).toThrow(/tensors "first" and "other" overlap/);
  });
});
