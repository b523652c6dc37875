// An engine on the null device, stepped by hand, its events collected by choice.
import type { Limits, PageGroup } from "../../src/device/device.js";
import { type Fault, NullProgram } from "../../src/device/null/program.js";
import { DraftModel } from "../../src/engine/draft.js";
import { type ConstraintFactory, Engine, type EngineOptions, type FinishEvent } from "../../src/engine/loop.js";
import type { PageStore, Tier } from "../../src/engine/spill.js";
import type { GenerateRequest, SamplingParams, TokenLogprobs } from "../../src/engine/types.js";
import { plainSampling } from "../../src/session/sampling.js";

export const pageTokens = 4;
export const vocabSize = 97;

export interface WorldOptions {
  stepTokens?: number;
  depth?: number;
  pages?: number;
  windowPages?: number;
  window?: number;
  states?: number;
  maxSequences?: number;
  slots?: number;
  maxRows?: number;
  contextLength?: number;
  prefixCache?: boolean;
  drafter?: EngineOptions["drafter"];
  /** Of a draft model's pages; it draws as the model does. Undefined: there is none. */
  draftPages?: number;
  store?: EngineOptions["store"];
  fault?: Fault;
  beforeResult?: () => Promise<void>;
}

/** Pages below the device, in memory. */
export class TestStore implements PageStore {
  readonly asked: (readonly string[])[] = [];
  takes = true;
  tier: Tier = "disk";
  /** false: what is asked for is no longer there. */
  keeps = true;
  /** It answers when this does. */
  gate: Promise<unknown> = Promise.resolve();

  constructor(readonly pages = new Map<string, Uint8Array>()) {}

  get stats() {
    const held = { pages: this.pages.size, bytes: 0 };
    return { memory: held, disk: held, damaged: 0 };
  }

  find(key: string): Tier | undefined {
    return this.pages.has(key) ? this.tier : undefined;
  }

  put(key: string, bytes: Uint8Array): void {
    this.pages.set(key, bytes.slice());
  }

  async get(keys: readonly string[], _patienceMs?: number) {
    this.asked.push(keys);
    await this.gate;
    if (!this.keeps) for (const key of keys) this.pages.delete(key);
    return keys.map((key) => this.pages.get(key)?.slice());
  }
}

export interface Choice {
  tokens: number[];
  logprobs: (TokenLogprobs | undefined)[];
  finishes: FinishEvent[];
}

export interface Outcome {
  starts: { cachedTokens: number; promptLogprobs: readonly (TokenLogprobs | null)[] | undefined }[];
  choices: Choice[];
}

export class World {
  readonly outcomes = new Map<string, Outcome>();
  readonly program: NullProgram;
  readonly engine: Engine;
  readonly limits: Limits;
  clock = 0;

  constructor(o: WorldOptions = {}) {
    const slots = o.slots ?? o.maxSequences ?? 8;
    this.limits = {
      maxTokens: 512,
      maxRows: o.maxRows ?? 16,
      maxSequences: o.maxSequences ?? 8,
      slots,
      contextLength: o.contextLength ?? 128,
      memoryBytes: 2 ** 20,
      kvDtype: "f32",
      threads: 1,
      depth: o.depth ?? 1,
      deterministic: true,
      adapterSlots: 1,
      maxPages: 0,
    };
    const groups: PageGroup[] = [
      { kind: "paged", pageTokens, pageBytes: 16, numPages: o.pages ?? 256 },
      { kind: "paged", pageTokens, pageBytes: 16, numPages: o.windowPages ?? 256, window: o.window ?? 10 },
    ];
    if (o.states) groups.push({ kind: "state", pageTokens: 0, pageBytes: 8, numPages: o.states });
    const { limits } = this;
    this.program = new NullProgram({ groups, vocabSize, limits, fault: o.fault, beforeResult: o.beforeResult });
    this.engine = new Engine(this.program, limits, {
      stepTokens: o.stepTokens ?? 512,
      prefixCache: o.prefixCache,
      drafter: o.drafter,
      draft: o.draftPages === undefined ? undefined : this.draftModel(o.draftPages, o.window ?? 10),
      store: o.store,
      pause: async () => {},
      now: () => this.clock++,
      output: {
        start: (id, cachedTokens, promptLogprobs) => {
          this.of(id).starts.push({ cachedTokens, promptLogprobs: promptLogprobs?.slice() });
        },
        token: (id, index, token, logprobs) => {
          const choice = this.of(id).choices[index];
          choice.tokens.push(token);
          choice.logprobs.push(logprobs);
        },
        finish: (id, event) => this.of(id).choices[event.index].finishes.push(event),
        flush: () => {},
      },
    });
  }

  private draftModel(numPages: number, window: number): DraftModel {
    const { limits } = this;
    const groups: PageGroup[] = [undefined, window].map((window) => {
      return { kind: "paged", pageTokens, pageBytes: 16, numPages, window };
    });
    const program = new NullProgram({ groups, vocabSize, limits });
    // As quick as can be: what it guesses always pays.
    return new DraftModel(program, limits, { pause: async () => {}, now: () => this.clock });
  }

  submit(request: GenerateRequest, constraint?: ConstraintFactory): void {
    const choices = Array.from({ length: request.n }, () => ({ tokens: [], logprobs: [], finishes: [] }));
    this.outcomes.set(request.id, { starts: [], choices });
    this.engine.submit(request, constraint);
  }

  /** Steps until nothing is left, proving the invariants after each. */
  async finish(): Promise<void> {
    for (let i = 0; ; i++) {
      const worked = await this.engine.step();
      this.engine.check();
      const { running, waiting } = this.engine.stats();
      if (!worked && running + waiting === 0) return;
      // All wait for pages: those who bring them get a turn.
      if (!worked && waiting > 0) await new Promise((resolve) => setImmediate(resolve));
      if (i > 100_000) throw new Error(`stuck with ${running} running and ${waiting} waiting`);
    }
  }

  of(id: string): Outcome {
    return this.outcomes.get(id)!;
  }

  tokens(id: string, index = 0): number[] {
    return this.of(id).choices[index].tokens;
  }

  reason(id: string, index = 0): string {
    return this.of(id)
      .choices[index].finishes.map(({ reason }) => reason)
      .join();
  }
}

export const greedy: SamplingParams = { ...plainSampling, temperature: 0, seed: 0n };

export function request(id: string, promptIds: Iterable<number>, rest: Partial<GenerateRequest> = {}): GenerateRequest {
  return {
    id,
    promptIds: Int32Array.from(promptIds),
    n: 1,
    sampling: greedy,
    maxTokens: 8,
    minTokens: 0,
    stopIds: [],
    priority: 0,
    ...rest,
  };
}

/** count ids that depend on seed alone. */
export function ids(count: number, seed = 1): number[] {
  let x = seed * 2654435761;
  return Array.from({ length: count }, () => {
    x = (Math.imul(x ^ (x >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    return (x >>> 0) % vocabSize;
  });
}
