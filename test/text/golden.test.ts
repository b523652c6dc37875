import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { openCheckpoint } from "../../src/formats/open.js";
import { createTokenizer } from "../../src/text/text.js";
import type { Tokenizer } from "../../src/text/tokenizer.js";
import { gemma, smollm2 } from "../support/models.js";

interface TokenizerCase {
  readonly text: string;
  readonly ids: readonly number[];
  readonly add_special: boolean;
  readonly parse_special: boolean;
}

function cases(name: string): TokenizerCase[] {
  return JSON.parse(readFileSync(new URL(`../golden/${name}.json`, import.meta.url), "utf8")).tokenizer;
}

async function open(path: string): Promise<Tokenizer> {
  const checkpoint = await openCheckpoint(path);
  try {
    return createTokenizer(checkpoint.meta)!;
  } finally {
    checkpoint.close();
  }
}

function agree(tokenizer: Tokenizer, all: readonly TokenizerCase[]): void {
  expect(all.length).toBe(60);
  for (const c of all) {
    const ids = tokenizer.encode(c.text, { addSpecial: c.add_special, parseSpecial: c.parse_special });
    expect(Array.from(ids), JSON.stringify(c)).toEqual(c.ids);
    // SentencePiece writes spaces as U+2581 and so cannot tell the two apart.
    const text = tokenizer.tokenOf(ids[0] ?? 0).includes("▁") ? c.text.replaceAll("▁", " ") : c.text;
    if (!c.add_special) expect(tokenizer.decode(ids), JSON.stringify(c)).toBe(text);
  }
}

describe("SmolLM2", () => {
  test("cuts the golden texts as llama.cpp and Hugging Face do, and decodes them back", async () => {
    agree(await open(smollm2()), cases("smollm2-135m-instruct-q4_1"));
  });

  test("knows its special tokens", async () => {
    const tokenizer = await open(smollm2());
    expect(tokenizer.vocabSize).toBe(49152);
    expect(tokenizer.idOf("<|im_end|>")).toBe(2);
    expect(tokenizer.tokenOf(28)).toBe(",");
    expect(tokenizer.isControl(2)).toBe(true);
    expect(tokenizer.isControl(28)).toBe(false);
    expect(tokenizer.eosIds).toContain(2);
    expect(tokenizer.eosIds).toContain(0);
    expect(tokenizer.addBos).toBe(false);
  });
});

describe.skipIf(gemma() === undefined)("Gemma 3", () => {
  // Two of these texts are cut differently by Hugging Face: a literal </s>, which llama.cpp takes for a control token
  // (so that it stays text) and the others for a user-defined one, and a literal U+2581, which the others read as a space.
  // The golden ids are llama.cpp's, and so are ours.
  test("cuts the golden texts as llama.cpp does, and decodes them back", async () => {
    agree(await open(gemma()!), cases("gemma-3-270m-q4_k_m"));
  });

  test("knows its special tokens", async () => {
    const tokenizer = await open(gemma()!);
    expect(tokenizer.vocabSize).toBe(262144);
    expect(tokenizer.bosId).toBe(2);
    expect(tokenizer.addBos).toBe(true);
    expect(tokenizer.tokenOf(tokenizer.encode(" the")[0])).toBe("▁the");
    expect(tokenizer.idOf("<end_of_turn>")).toBe(106);
    expect(tokenizer.eosIds).toEqual(expect.arrayContaining([1, 106]));
  });
});
