// Owns: a small quantised model as a WeightSource in memory, compiled on the cpu device, and runs of it that cut the same
// tokens in different ways.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CpuDevice } from "../../src/device/cpu/device.js";
import type { Limits, Program } from "../../src/device/device.js";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { openCheckpoint } from "../../src/formats/open.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { batchOf, limits as plainLimits, updates } from "../support/batch.js";
import { seededRandom } from "../support/random.js";
import { type TinyLlama, writeTinyLlamaGguf } from "../support/tiny-llama.js";

export const limits: Limits = {
  ...plainLimits,
  maxTokens: 512,
  maxRows: 512,
  contextLength: 1024,
  kvDtype: "f16",
  maxPages: 1024,
};

export interface OpenTiny {
  readonly program: Program;
  readonly checkpoint: Checkpoint;
}

/** The file itself is gone; what is mapped of it stays until the checkpoint is closed. */
export async function openTinyModel(model: TinyLlama, own: Partial<Limits> = {}): Promise<OpenTiny> {
  const folder = mkdtempSync(join(tmpdir(), "millrace-cpu-"));
  try {
    const path = join(folder, "tiny.gguf");
    writeTinyLlamaGguf(path, model);
    const checkpoint = await openCheckpoint(path);
    const plan = decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
    return { program: await new CpuDevice().compile(plan, checkpoint, { ...limits, ...own }), checkpoint };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export async function compileTiny(model: TinyLlama, own: Partial<Limits> = {}): Promise<Program> {
  const { program, checkpoint } = await openTinyModel(model, own);
  checkpoint.close();
  return program;
}

export function randomTokens(count: number, vocabSize: number, seed: number): number[] {
  const random = seededRandom(seed);
  return Array.from({ length: count }, () => random.below(vocabSize));
}

export const pageRange = (first: number, tokens: number): number[] =>
  Array.from({ length: Math.ceil(tokens / 16) }, (_, i) => first + i);

/** Logprob of each next token of each text, all texts in every step, `chunk` tokens of each a step. */
export async function score(
  program: Program,
  texts: readonly (readonly number[])[],
  chunk: number,
): Promise<Float32Array[]> {
  const most = Math.max(...texts.map((text) => text.length));
  const perText = Math.ceil(most / 16);
  const logprobs = texts.map((text) => new Float32Array(text.length - 1));
  for (let at = 0; at < most - 1; at += chunk) {
    const live = texts.map((text, s) => ({ text, s })).filter(({ text }) => at < text.length - 1);
    const parts = live.map(({ text, s }) => {
      const tokens = text.slice(at, Math.min(at + chunk, text.length - 1));
      const targets = tokens.map((_, i) => text[at + i + 1]);
      const pages = program.caches.map(() => pageRange(s * perText, text.length));
      return { slot: s, tokens, kvStart: at, pages, rows: tokens.map((_, i) => i), targets };
    });
    const settings = at === 0 ? live.map(({ s }) => [s, {}] as const) : [];
    const result = await program.run(batchOf(parts, { updates: updates(settings) })).result;
    let row = 0;
    for (const [i, { s }] of live.entries()) {
      for (let j = 0; j < parts[i].tokens.length; j++) logprobs[s][at + j] = result.logprobs[row++];
    }
  }
  return logprobs;
}
