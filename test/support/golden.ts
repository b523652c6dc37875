// Owns: the tiny checkpoints with their golden answers, which Hugging Face transformers computed in f32.
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Checkpoint } from "../../src/formats/checkpoint.js";
import { openCheckpoint } from "../../src/formats/open.js";

const folder = fileURLToPath(new URL("../golden/tiny/", import.meta.url));

export interface GoldenCase {
  readonly prompt_ids: readonly number[];
  readonly last_logits: readonly number[];
  readonly greedy_ids: readonly number[];
  readonly min_margin: number;
  readonly steps: readonly { readonly top5: readonly (readonly [id: number, logprob: number])[] }[];
}

export const goldenNames = readdirSync(folder);

export function tinyFolder(name: string): string {
  return `${folder}${name}`;
}

export function openTiny(name: string): Promise<Checkpoint> {
  return openCheckpoint(tinyFolder(name));
}

export function goldenCases(name: string): readonly GoldenCase[] {
  return JSON.parse(readFileSync(`${folder}${name}/golden.json`, "utf8")).cases;
}
