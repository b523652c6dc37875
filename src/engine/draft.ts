// Owns: a draft model: a small model of the same vocabulary whose guesses the large one checks, several in a step. It is an
// engine of its own that is asked to go on with each text, and whose prefix cache holds what it has read already. How many
// guesses are worth while follows from how often they were right and what both models' steps take; none, where it does not
// pay. The engine checks every guess by drawing at its position: answers stay what they are without.
// Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023 (arXiv 2211.17192).
import type { Limits, Program } from "../device/device.js";
import type { Hope } from "./hope.js";
import { Engine, type EngineOptions } from "./loop.js";
import type { SamplingParams } from "./types.js";

/** Most guesses of one step. */
const mostGuesses = 8;
const greedy: SamplingParams = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: [],
  seed: 0n,
};

/** Where steps have not been measured yet. */
const firstGuesses = 4;
/** How much the latest measurement counts. */
const rate = 0.2;

export interface Continued {
  readonly tokens: Int32Array;
  readonly length: number;
  readonly most: number;
  readonly hope: Hope;
}

/** Milliseconds that a step of the large model takes with so many tokens; undefined: not known yet. */
export type StepMs = (tokens: number) => number | undefined;

export class DraftModel {
  private readonly engine: Engine;
  private readonly said = new Map<string, number[]>();
  private requests = 0;
  /** Milliseconds of a step of the draft model, over the sequences of a call. */
  private stepMs: number | undefined;

  constructor(
    program: Program,
    private readonly limits: Limits,
    private readonly options: Pick<EngineOptions, "now" | "pause">,
  ) {
    this.engine = new Engine(program, limits, {
      ...options,
      output: {
        start: () => {},
        token: (id, _index, token) => this.said.get(id)?.push(token),
        finish: () => {},
        flush: () => {},
      },
    });
  }

  /** Guesses for each text, in order; none where they would not pay. Resolves when all are there. */
  async propose(texts: readonly Continued[], stepMs: StepMs): Promise<Int32Array[]> {
    const { now } = this.options;
    const asked = texts.map((text) => this.ask(text, this.paying(text, texts.length, stepMs)));
    const longest = Math.max(...asked.map(({ count }) => count));
    if (longest > 0) {
      const from = now();
      while (await this.engine.step()) await this.options.pause();
      const each = (now() - from) / longest;
      this.stepMs = this.stepMs === undefined ? each : this.stepMs + rate * (each - this.stepMs);
    }
    return asked.map(({ id }) => {
      const ids = this.said.get(id) ?? [];
      this.said.delete(id);
      return Int32Array.from(ids);
    });
  }

  /** A text that the draft model has no room for gets no guesses. */
  private ask({ tokens, length }: Continued, count: number): { id: string; count: number } {
    const id = String(this.requests++);
    if (count <= 0 || length + count > this.limits.contextLength) return { id, count: 0 };
    this.said.set(id, []);
    this.engine.submit({
      id,
      promptIds: tokens.slice(0, length),
      n: 1,
      sampling: greedy,
      maxTokens: count,
      minTokens: 0,
      stopIds: [],
      priority: 0,
    });
    return { id, count };
  }

  /** The number that brings most tokens a second; 0 where none brings more than a step without. */
  private paying({ most, hope }: Continued, sequences: number, stepMs: StepMs): number {
    const alone = stepMs(sequences);
    const limit = Math.min(most, mostGuesses);
    if (alone === undefined || this.stepMs === undefined) return Math.min(limit, firstGuesses);
    let best = 0;
    let bestRate = 1 / alone;
    for (let count = 1; count <= limit; count++) {
      const ms = stepMs(sequences * (count + 1))! + count * this.stepMs;
      const perMs = hope.expected(count) / ms;
      if (perMs > bestRate) [best, bestRate] = [count, perMs];
    }
    if (best === 0) hope.recover();
    return best;
  }

  /** When nothing is being asked. */
  close(): void {
    this.engine.close();
  }
}
