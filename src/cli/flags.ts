// Owns: flags that several commands share, with their checks: which device and how much of it, and how tokens are drawn.

import { type Command, InvalidArgumentError, Option } from "commander";
import { parseDuration } from "../base/duration.js";
import type { KvDType } from "../device/device.js";
import { deviceNames, isDeviceName } from "../device/open.js";
import type { SamplingParams } from "../engine/types.js";
import type { SamplingDefaults } from "../session/defaults.js";
import { randomSeed, seedBits } from "../session/sampling.js";

const largest = 2 ** 31 - 1;

/** Throws what commander prints as a wrong command line. */
export function wholeNumber(least: number, most = largest): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && Number.isInteger(value) && value >= least && value <= most) return value;
    const range = most === largest ? `of at least ${least}` : `from ${least} to ${most}`;
    throw new InvalidArgumentError(`It must be a whole number ${range}.`);
  };
}

export function numberIn(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a number from ${least} to ${most}.`);
  };
}

const units: Readonly<Record<string, number>> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** 1000000, 512M, 1.5G; units of 1024. */
export function byteCount(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?$/i.exec(text.trim()) ?? [];
  const bytes = Math.floor(Number(number) * units[unit?.toUpperCase()]);
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new InvalidArgumentError('It must be a number of bytes such as "0", "512M" or "20G".');
}

/** For options that may be given several times. */
export function collect(text: string, before: readonly string[] = []): string[] {
  return [...before, text];
}

/** Milliseconds; Infinity: for ever. */
export function duration(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined)
    throw new InvalidArgumentError('It must be a duration such as "5m", "1h30m" or "-1" (for ever).');
  return ms;
}

export interface DeviceFlags {
  /** A name that openDevice takes. */
  readonly device: string;
  readonly threads?: number;
  /** Tokens. */
  readonly ctx?: number;
  readonly kvDtype?: KvDType;
  readonly deterministic?: boolean;
  /** false: guess nothing. */
  readonly lookup?: boolean;
  readonly draft?: string;
}

function deviceFlag(text: string): string {
  if (isDeviceName(text)) return text;
  throw new InvalidArgumentError(`It must be one of ${deviceNames.join(", ")}, or cuda:1 for a second GPU.`);
}

export function addDeviceFlags(command: Command): Command {
  return command
    .option(
      "--device <name>",
      "cpu: native kernels; cuda or cuda:1: an NVIDIA GPU; reference: plain TypeScript, slow; auto: the CPU",
      deviceFlag,
      "auto",
    )
    .option("--threads <n>", "compute threads (default: the processor's cores)", wholeNumber(1, 1024))
    .option("--ctx <tokens>", "context length (default: the model's, or what fits in memory)", wholeNumber(1))
    .addOption(
      new Option(
        "--kv-dtype <type>",
        "number format of the KV cache (default: f16); q8: 8 bits, half the memory, not on a GPU",
      ).choices(["f16", "bf16", "f32", "q8"]),
    )
    .option(
      "--deterministic",
      "the same request gives the same bits whatever runs beside it (on a CPU only those with AMX need telling)",
    );
}

/** For commands that answer people; what measures the engine guesses nothing unless asked. */
export function addGuessFlags(command: Command): Command {
  return command
    .option("--no-lookup", "guess no tokens: by default they are guessed from the text, and several checked in a step")
    .option("--draft <model>", "a smaller model with the same vocabulary that guesses; the answers are the same");
}

export interface SamplingFlags extends Partial<SamplingDefaults> {
  readonly seed?: bigint;
}

function seedOf(text: string): bigint {
  if (!/^-?\d{1,20}$/.test(text)) throw new InvalidArgumentError("It must be a whole number.");
  return seedBits(BigInt(text));
}

export function addSamplingFlags(command: Command): Command {
  return command
    .option(
      "--temperature <t>",
      "0: always the most likely token (these: by default what the model's files say)",
      numberIn(0, 100),
    )
    .option("--top-k <n>", "draw from the n most likely tokens; 0: no limit", wholeNumber(0))
    .option("--top-p <p>", "draw from the most likely tokens that make up p", numberIn(1e-9, 1))
    .option("--min-p <p>", "drop tokens less likely than p times the best", numberIn(0, 1))
    .option("--repetition-penalty <f>", "divides what has come before; 1: off", numberIn(1e-3, 100))
    .option("--frequency-penalty <f>", "subtracts, by count", numberIn(-2, 2))
    .option("--presence-penalty <f>", "subtracts, once", numberIn(-2, 2))
    .option("--seed <n>", "the same seed draws the same answer (default: a fresh one)", seedOf);
}

/** defaults: what the model wants where no flag says otherwise. */
export function samplingOf(flags: SamplingFlags, defaults: SamplingDefaults): SamplingParams {
  const { temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty } = flags;
  return {
    temperature: temperature ?? defaults.temperature,
    topK: topK ?? defaults.topK,
    topP: topP ?? defaults.topP,
    minP: minP ?? defaults.minP,
    repetitionPenalty: repetitionPenalty ?? defaults.repetitionPenalty,
    frequencyPenalty: frequencyPenalty ?? defaults.frequencyPenalty,
    presencePenalty: presencePenalty ?? defaults.presencePenalty,
    seed: flags.seed ?? randomSeed(),
    logitBias: [],
  };
}
