// Owns: the figures of one answer: what `run` ends with, and what --json says.
import type { Speeds } from "../host/forecast.js";
import type { Delta } from "../session/types.js";

type Finish = Extract<Delta, { type: "finish" }>;

export interface Figures {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  /** Of the prompt's tokens that were computed, from the engine's first step with them to the first token of the answer. */
  readonly promptTokensPerSecond: number;
  /** Of the tokens after the first; null where there is none. */
  readonly generationTokensPerSecond: number | null;
  /** From the request to its first token. */
  readonly ttftMs: number;
}

/** Times are of performance.now(); `last` is when the last token came. */
export function figuresOf(finish: Finish, times: { start: number; first: number; last: number }): Figures {
  const { promptTokens, cachedTokens, generatedTokens, promptMs } = finish.timings;
  const ttftMs = times.first - times.start;
  const spanMs = times.last - times.first;
  return {
    promptTokens,
    cachedTokens,
    generatedTokens,
    promptTokensPerSecond: (1000 * (promptTokens - cachedTokens)) / (promptMs > 0 ? promptMs : ttftMs),
    generationTokensPerSecond: generatedTokens > 1 && spanMs > 0 ? (1000 * (generatedTokens - 1)) / spanMs : null,
    ttftMs,
  };
}

export function figuresLine(figures: Figures): string {
  const { promptTokens, cachedTokens, generatedTokens } = figures;
  const cached = cachedTokens > 0 ? ` (${cachedTokens} cached)` : "";
  const speed = figures.generationTokensPerSecond;
  return [
    `prompt ${promptTokens} tokens${cached}, ${figures.promptTokensPerSecond.toFixed(1)} tokens/s`,
    `generation ${generatedTokens} tokens${speed === null ? "" : `, ${speed.toFixed(1)} tokens/s`}`,
    `time to first token ${figures.ttftMs.toFixed(0)} ms`,
  ].join(" · ");
}

/** Everything, one figure a line. foretold: by `millrace plan`, where it was asked. */
export function figuresBlock(figures: Figures, loadMs: number, foretold?: Speeds): string {
  const { promptTokens, cachedTokens, generatedTokens, ttftMs } = figures;
  const speed = (value: number | null, expected: number | undefined) =>
    value === null
      ? "none"
      : `${value.toFixed(2)} tokens/s${expected === undefined ? "" : ` (${expected.toFixed(0)} foretold)`}`;
  const rows: [string, string][] = [
    ["load duration:", `${loadMs.toFixed(0)} ms`],
    ["time to first token:", `${ttftMs.toFixed(0)} ms`],
    ["prompt eval count:", `${promptTokens} tokens, ${cachedTokens} of them cached`],
    ["prompt eval rate:", speed(figures.promptTokensPerSecond, foretold?.prompt)],
    ["eval count:", `${generatedTokens} tokens`],
    ["eval rate:", speed(figures.generationTokensPerSecond, foretold?.generation)],
  ];
  return rows.map(([name, value]) => `${name.padEnd(22)}${value}`).join("\n");
}
