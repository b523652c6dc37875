import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { openCheckpoint } from "../../src/formats/open.js";
import { encodeChat, type TemplateMessage } from "../../src/text/chat.js";
import { createTextModel, requireTemplate } from "../../src/text/text.js";
import { gemma, smollm2 } from "../support/models.js";

interface ChatCase {
  readonly messages: readonly TemplateMessage[];
  readonly tools?: readonly Record<string, unknown>[];
  readonly add_generation_prompt: boolean;
  readonly text: string;
  readonly ids: readonly number[];
}

const path = new URL("../golden/smollm2-135m-instruct-q4_1.json", import.meta.url);
const cases: readonly ChatCase[] = JSON.parse(readFileSync(path, "utf8")).chat;

async function load(file: string) {
  const checkpoint = await openCheckpoint(file);
  try {
    return createTextModel(checkpoint.meta);
  } finally {
    checkpoint.close();
  }
}

describe("SmolLM2's chat template", async () => {
  const model = await load(smollm2());
  const tokenizer = model.tokenizer!;
  const template = requireTemplate(model);
  const render = (c: ChatCase) =>
    template.render({ messages: c.messages, tools: c.tools, addGenerationPrompt: c.add_generation_prompt });

  test("gives the golden texts, and ids where the whole text is parsed", () => {
    expect(cases.length).toBe(8);
    for (const c of cases) {
      expect(render(c).text).toBe(c.text);
      expect(Array.from(tokenizer.encode(c.text, { parseSpecial: true }))).toEqual(c.ids);
    }
  });

  test("gives the golden ids for every conversation in which no special token is spelled", () => {
    const plain = cases.filter((c) => !JSON.stringify(c.messages).includes("<|im_"));
    expect(plain.length).toBe(7);
    for (const c of plain) expect(Array.from(encodeChat(tokenizer, render(c)))).toEqual(c.ids);
  });

  test("keeps a special token that the user spells as text, where Hugging Face makes it the token", () => {
    const [c] = cases.filter((c) => JSON.stringify(c.messages).includes("<|im_end|>"));
    const ids = Array.from(encodeChat(tokenizer, render(c)));
    const [before, after] = c.text.split("Explain what <|im_end|>");
    const expected = [
      ...tokenizer.encode(before, { parseSpecial: true }),
      ...tokenizer.encode(`Explain what <|im_end|>${after.split("<|im_end|>")[0]}`),
      ...tokenizer.encode(after.slice(after.indexOf("<|im_end|>")), { parseSpecial: true }),
    ];
    expect(ids).toEqual(expected);
    expect(tokenizer.decode(ids)).toBe(c.text);
    expect(ids.filter((id) => id === 2).length).toBe(c.ids.filter((id) => id === 2).length - 1);
  });
});

describe.skipIf(gemma() === undefined)("Gemma 3's base model", () => {
  test("has no chat template, and says so", async () => {
    const model = await load(gemma()!);
    expect(model.template).toBeUndefined();
    expect(() => requireTemplate(model)).toThrow(/no chat template.*plain prompt/);
  });
});
