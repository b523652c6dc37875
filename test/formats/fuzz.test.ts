// Damaged and hostile files: whatever the bytes, a parser returns a header that fits the file or throws a FormatError,
// at once and without taking memory that the file does not back.
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FormatError } from "../../src/base/errors.js";
import { parseGguf } from "../../src/formats/gguf.js";
import { HeaderIncomplete } from "../../src/formats/header.js";
import { parseSafetensors } from "../../src/formats/safetensors.js";
import { ggufBytes, type MetaInput, randomWeights } from "../support/gguf-writer.js";
import { seededRandom } from "../support/random.js";
import { rawSafetensors, safetensorsBytes } from "../support/safetensors-writer.js";

type Mutation =
  | { kind: "flip"; at: number; bit: number }
  | { kind: "byte"; at: number; value: number }
  | { kind: "u32"; at: number; value: number }
  | { kind: "u64"; at: number; value: bigint }
  | { kind: "cut"; at: number }
  | { kind: "remove"; at: number; count: number }
  | { kind: "repeat"; at: number; count: number };

const edges = [0n, 1n, 2n, 31n, 255n, 2n ** 16n, 2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n - 1n];
const wide = fc.oneof(
  fc.constantFrom(
    ...edges,
    2n ** 53n,
    2n ** 61n,
    2n ** 62n,
    2n ** 63n - 1n,
    2n ** 63n,
    2n ** 64n - 32n,
    2n ** 64n - 1n,
  ),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
);
// Most of what matters lies at the beginning.
const place = fc.oneof(fc.nat(), fc.nat(40), fc.nat(400));
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.record({ kind: fc.constant("flip" as const), at: place, bit: fc.nat(7) }),
  fc.record({ kind: fc.constant("byte" as const), at: place, value: fc.nat(255) }),
  fc.record({ kind: fc.constant("u32" as const), at: place, value: wide.map((value) => Number(value & 0xffffffffn)) }),
  fc.record({ kind: fc.constant("u64" as const), at: place, value: wide }),
  fc.record({ kind: fc.constant("cut" as const), at: place }),
  fc.record({ kind: fc.constant("remove" as const), at: place, count: fc.integer({ min: 1, max: 16 }) }),
  fc.record({ kind: fc.constant("repeat" as const), at: place, count: fc.integer({ min: 1, max: 64 }) }),
);

function mutate(original: Uint8Array, mutations: readonly Mutation[]): Uint8Array {
  let bytes: Uint8Array = original.slice();
  for (const m of mutations) {
    if (bytes.length < 8) break;
    const at = m.at % (bytes.length - 7);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    if (m.kind === "flip") bytes[at] ^= 1 << m.bit;
    else if (m.kind === "byte") bytes[at] = m.value;
    else if (m.kind === "u32") view.setUint32(at, m.value, true);
    else if (m.kind === "u64") view.setBigUint64(at, m.value, true);
    else if (m.kind === "cut") bytes = bytes.slice(0, at);
    else if (m.kind === "remove") bytes = join(bytes.subarray(0, at), bytes.subarray(at + m.count));
    else bytes = join(bytes.subarray(0, at + m.count), bytes.subarray(at));
  }
  return bytes;
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

interface Parsed {
  readonly tensors: readonly { readonly name: string; readonly bytes: number; readonly offset: number }[];
}

/** "read" or "refused"; anything else that comes out of the parser fails the test. Plain ifs: this runs 40,000 times. */
function outcome(parse: (bytes: Uint8Array, fileBytes?: number) => Parsed, bytes: Uint8Array): "read" | "refused" {
  const start = performance.now();
  let tensors: Parsed["tensors"] | undefined;
  try {
    tensors = parse(bytes).tensors;
  } catch (error) {
    if (!(error instanceof FormatError) || error instanceof HeaderIncomplete) throw error;
    if (error.message.length > 1000) throw new Error(`a message of ${error.message.length} characters`);
  }
  const took = performance.now() - start; // some microseconds, unless the machine stands still
  if (took > 2000) throw new Error(`took ${took} ms`);
  if (tensors === undefined) return "refused";
  if (new Set(tensors.map(({ name }) => name)).size !== tensors.length) throw new Error("a name is there twice");
  const inside = tensors.every(({ offset, bytes: size }) => offset >= 0 && size >= 0 && offset + size <= bytes.length);
  if (!inside) throw new Error("a tensor lies outside the file");
  const sorted = [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  const apart = sorted.every((tensor, i) => i === 0 || sorted[i - 1].offset + sorted[i - 1].bytes <= tensor.offset);
  if (!apart) throw new Error("two tensors overlap");
  return "read";
}

function parseGgufWhole(bytes: Uint8Array, fileBytes?: number): Parsed {
  const header = parseGguf(bytes, fileBytes);
  for (const [key, value] of header.values) if (value === undefined) throw new Error(`${key} has no value`); // decodes all
  return header;
}

const random = seededRandom(7);
const nested: MetaInput = {
  type: "array",
  of: "array",
  items: [{ type: "array", of: "string", items: [{ type: "string", value: "deep" }] }],
};
const gguf = ggufBytes({
  alignment: 32,
  meta: {
    "general.architecture": "llama",
    "general.name": "fuzz, ünïcode",
    context: 2048,
    flag: true,
    big: { type: "u64", value: 2n ** 60n },
    small: { type: "i8", value: -1 },
    tokens: ["<s>", "</s>", "▁the", "", "😀"],
    scores: Float32Array.of(0, -1, -2.5),
    flags: { type: "array", of: "bool", items: [{ type: "bool", value: true }] },
    wide: { type: "array", of: "i64", items: [{ type: "i64", value: -1n }] },
    nested,
  },
  tensors: (["F32", "Q4_0", "Q6_K", "BF16"] as const).map((type, i) => ({
    name: `blk.${i}.weight`,
    type,
    shape: [2, 256],
    data: randomWeights(type, 512, random),
  })),
});
const safetensors = safetensorsBytes(
  ["F32", "F16", "BF16"].map((dtype, i) => ({
    name: `layers.${i}.weight`,
    dtype,
    shape: [4, 8],
    data: new Uint8Array(dtype === "F32" ? 128 : 64),
  })),
  { format: "pt" },
);

let residentBefore = 0;
beforeAll(() => {
  residentBefore = process.resourceUsage().maxRSS;
});
afterAll(() => {
  const grown = (process.resourceUsage().maxRSS - residentBefore) / 1024;
  expect(grown, "MiB that this process grew by at its largest").toBeLessThan(300);
});

describe.each([
  ["GGUF", gguf, parseGgufWhole],
  ["safetensors", safetensors, parseSafetensors],
] as const)("%s", (_, valid, parse) => {
  test("the file itself is read", () => {
    expect(outcome(parse, valid)).toBe("read");
  });

  test("a file cut anywhere is refused", () => {
    for (let length = 0; length < valid.length; length++) {
      expect(outcome(parse, valid.subarray(0, length))).toBe("refused");
    }
  });

  test("every single flipped bit of the header", () => {
    let refused = 0;
    const bytes = valid.slice();
    for (let at = 0; at < Math.min(valid.length, 1200); at++) {
      for (let bit = 0; bit < 8; bit++) {
        bytes[at] ^= 1 << bit;
        if (outcome(parse, bytes) === "refused") refused++;
        bytes[at] ^= 1 << bit;
      }
    }
    expect(refused).toBeGreaterThan(500);
  });

  test("a huge number anywhere", () => {
    for (let at = 0; at + 8 <= Math.min(valid.length, 1200); at++) {
      for (const value of [...edges, 2n ** 62n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 32n]) {
        outcome(parse, mutate(valid, [{ kind: "u64", at, value }]));
      }
    }
  });

  test("several kinds of damage at once", () => {
    fc.assert(
      fc.property(fc.array(mutation, { minLength: 1, maxLength: 6 }), (mutations) => {
        outcome(parse, mutate(valid, mutations));
      }),
      { numRuns: 3000, seed: 1 },
    );
  });

  test("bytes of no meaning", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (tail, keepStart) => {
        outcome(parse, keepStart ? join(valid.subarray(0, 24), tail) : tail);
      }),
      { numRuns: 2000, seed: 2 },
    );
  });

  test("a prefix of a damaged file is refused or asks for more of it", () => {
    fc.assert(
      fc.property(fc.array(mutation, { maxLength: 3 }), fc.nat(), fc.boolean(), (mutations, cut, known) => {
        const bytes = mutate(valid, mutations);
        const length = cut % (bytes.length + 1);
        const fileBytes = known ? 2 ** 40 : Number.POSITIVE_INFINITY;
        try {
          parse(bytes.subarray(0, length), fileBytes);
        } catch (error) {
          expect(error).toBeInstanceOf(FormatError);
          if (error instanceof HeaderIncomplete) expect(error.needed).toBeGreaterThan(length);
        }
      }),
      { numRuns: 2000, seed: 3 },
    );
  });
});

test("safetensors headers of any JSON", () => {
  const field = fc.oneof(
    fc.jsonValue(),
    fc.constantFrom("F32", "F16", "I64"),
    fc.array(fc.integer(), { maxLength: 3 }),
  );
  const entry = fc.oneof(
    fc.jsonValue(),
    fc.record({ dtype: field, shape: field, data_offsets: field }, { requiredKeys: [] }),
  );
  fc.assert(
    fc.property(fc.dictionary(fc.string(), entry), fc.nat(64), (header, data) => {
      outcome(parseSafetensors, rawSafetensors(JSON.stringify(header), [new Uint8Array(data)]));
    }),
    { numRuns: 1500, seed: 4 },
  );
  const brackets = "[".repeat(200_000);
  expect(outcome(parseSafetensors, rawSafetensors(`{"a":${brackets}`))).toBe("refused");
});
