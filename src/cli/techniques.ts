// Owns: what `bench techniques` measures: each technique beside the way it replaces, on real runs of this machine. Models
// are of random weights; both sides of a row run the same engine with the same work. docs/TECHNIQUES.md explains the rows.
import { EngineClient } from "../engine/client.js";
import type { GenerateRequest } from "../engine/types.js";
import type { Quantisation } from "../formats/quant/recipe.js";
import { workerCarrier } from "../host/worker.js";
import { shapes } from "../model/shapes.js";
import { median, randomIds, randomRequest, type Timed, timeRequest } from "./measure.js";
import { attentionRows } from "./techniques-attention.js";

export interface TechniqueRow {
  readonly technique: string;
  /** "with" is what millrace does. */
  readonly variant: string;
  readonly what: string;
  readonly value: number;
  readonly unit: string;
  /** What the variant holds in memory for it. */
  readonly bytes?: number;
}

export interface TechniqueOptions {
  readonly device: string;
  readonly threads?: number;
}

type Json = Readonly<Record<string, unknown>>;

interface Settings {
  readonly config?: Json;
  readonly quantisation?: Quantisation;
  readonly contextLength: number;
  readonly maxSequences?: number;
  readonly stepTokens?: number;
}

const small = shapes["smollm2-135m"];

export class Techniques {
  /** config: of the models, where it does not matter which. */
  constructor(
    private readonly options: TechniqueOptions,
    private readonly config: Json = small,
  ) {}

  readonly all: readonly (readonly [name: string, measure: () => Promise<TechniqueRow[]>])[] = [
    ["KV cache", () => this.kvCache()],
    ["flash attention", () => attentionRows(this.options)],
    ["attention heads", () => this.heads()],
    ["continuous batching", () => this.batching()],
    ["prefix cache", () => this.prefixCache()],
    ["chunked prefill", () => this.chunkedPrefill()],
    ["quantised weights", () => this.weights()],
  ];

  private async withModel<T>(settings: Settings, body: (engine: EngineClient) => Promise<T>): Promise<T> {
    const { config = this.config, quantisation = "q8_0", ...limits } = settings;
    const random = { config, quantisation, seed: 1, name: "random" };
    const spec = { path: "random", random, lookup: false, maxSequences: 1, ...this.options, ...limits };
    const engine = await EngineClient.open({ carrier: workerCarrier, spec });
    try {
      await timeRequest(engine, randomRequest(engine, 32, 8));
      return await body(engine);
    } finally {
      await engine.close();
    }
  }

  /** Answers of 24 tokens: with the cache each reads one token, without it the whole text again. */
  private kvCache(): Promise<TechniqueRow[]> {
    const generate = 24;
    return this.withModel({ contextLength: 512 }, async (engine) => {
      const rows: TechniqueRow[] = [];
      for (const prompt of [64, 256]) {
        const kept = await timeRequest(engine, randomRequest(engine, prompt, generate + 1));
        const start = performance.now();
        for (let i = 1; i <= generate; i++) await timeRequest(engine, randomRequest(engine, prompt + i, 1));
        const what = `ms a token after ${prompt}`;
        const row = { technique: "KV cache", what, unit: "ms" };
        const bytes = (await bytesPerToken(engine)) * (prompt + generate);
        rows.push(
          { ...row, variant: "with", value: (kept.last - kept.first) / generate, bytes },
          { ...row, variant: "recomputing", value: (performance.now() - start) / generate, bytes: 0 },
        );
      }
      return rows;
    });
  }

  /** The same model with a key/value head for each query head, for four of them, for all. */
  private async heads(): Promise<TechniqueRow[]> {
    const context = 2048;
    const config = {
      ...small,
      hidden_size: 1024,
      intermediate_size: 2816,
      num_hidden_layers: 8,
      num_attention_heads: 16,
    };
    const kinds = [
      ["MHA, 16 heads", 16],
      ["GQA, 4 heads", 4],
      ["MQA, 1 head", 1],
    ] as const;
    const rows: TechniqueRow[] = [];
    for (const [variant, heads] of kinds) {
      const own = { ...config, num_key_value_heads: heads };
      rows.push(
        await this.withModel({ config: own, contextLength: context + 64 }, async (engine) => {
          const run = await timeRequest(engine, randomRequest(engine, context, 49));
          const value = 48_000 / (run.last - run.first);
          const what = `tokens/s after ${context}; bytes of KV a token`;
          return {
            technique: "attention heads",
            variant,
            what,
            value,
            unit: "tokens/s",
            bytes: await bytesPerToken(engine),
          };
        }),
      );
    }
    return rows;
  }

  /** 24 requests of different lengths, 8 at once: a place is taken as soon as it is free, or when all 8 are done. */
  private batching(): Promise<TechniqueRow[]> {
    const places = 8;
    const lengths = Array.from({ length: 24 }, (_, i) => ({
      prompt: 16 + ((i * 37) % 64),
      answer: 8 + ((i * 53) % 88),
    }));
    const tokens = lengths.reduce((sum, { answer }) => sum + answer, 0);
    return this.withModel({ contextLength: 512, maxSequences: places }, async (engine) => {
      const requests = () => lengths.map(({ prompt, answer }) => randomRequest(engine, prompt, answer));
      const together = (list: readonly GenerateRequest[]) => Promise.all(list.map((one) => timeRequest(engine, one)));
      const timed = async (body: (list: GenerateRequest[]) => Promise<unknown>) => {
        const list = requests();
        const start = performance.now();
        await body(list);
        return (1000 * tokens) / (performance.now() - start);
      };
      const row = {
        technique: "continuous batching",
        what: `tokens/s of ${lengths.length} requests`,
        unit: "tokens/s",
      };
      const continuous = await timed(together);
      const fixed = await timed(async (list) => {
        for (let i = 0; i < list.length; i += places) await together(list.slice(i, i + places));
      });
      return [
        { ...row, variant: "with", value: continuous },
        { ...row, variant: "batch after batch", value: fixed },
      ];
    });
  }

  /** Requests that begin with the same 512 tokens. */
  private prefixCache(): Promise<TechniqueRow[]> {
    return this.withModel({ contextLength: 1024, maxSequences: 2 }, async (engine) => {
      const shared = randomIds(engine, 512);
      const first = async (salt?: string) => {
        const times: number[] = [];
        for (let i = 0; i < 6; i++) {
          const request = randomRequest(engine, 16, 1);
          const promptIds = Int32Array.of(...shared, ...request.promptIds);
          const run = await timeRequest(engine, { ...request, promptIds, cacheSalt: salt ?? request.id });
          if (i > 0) times.push(run.first - run.start);
        }
        return median(times);
      };
      const row = { technique: "prefix cache", what: "time to first token, 512 of 528 tokens shared", unit: "ms" };
      const bytes = (await bytesPerToken(engine)) * shared.length;
      return [
        { ...row, variant: "with", value: await first("shared"), bytes },
        { ...row, variant: "without", value: await first(), bytes: 0 },
      ];
    });
  }

  /** Somebody generates while a prompt of 2,048 comes in: the longest wait between two of his tokens. */
  private async chunkedPrefill(): Promise<TechniqueRow[]> {
    const prompt = 2048;
    const longestPause = (stepTokens: number | undefined) =>
      this.withModel({ contextLength: prompt + 256, maxSequences: 2, stepTokens }, async (engine) => {
        // The step's cost is learnt from a first one.
        await timeRequest(engine, randomRequest(engine, 600, 2));
        const stream = timeRequest(engine, randomRequest(engine, 16, 160));
        await new Promise((resolve) => setTimeout(resolve, 100));
        const read = timeRequest(engine, randomRequest(engine, prompt, 1));
        return [pause(await stream), (await read).first - (await read).start] as const;
      });
    const rows: TechniqueRow[] = [];
    for (const [variant, stepTokens] of [
      ["with", undefined],
      ["without", prompt + 16],
    ] as const) {
      const [wait, ttft] = await longestPause(stepTokens);
      const row = { technique: "chunked prefill", variant, unit: "ms" };
      rows.push({ ...row, what: "longest pause of a stream", value: wait });
      rows.push({ ...row, what: `time to first token of the ${prompt}`, value: ttft });
    }
    return rows;
  }

  private async weights(): Promise<TechniqueRow[]> {
    const rows: TechniqueRow[] = [];
    for (const [variant, quantisation] of [
      ["16 bits (BF16)", "bf16"],
      ["8 bits (Q8_0)", "q8_0"],
      ["4 bits (Q4_K_M)", "q4_k_m"],
    ] as const) {
      rows.push(
        await this.withModel({ quantisation, contextLength: 256 }, async (engine) => {
          const run = await timeRequest(engine, randomRequest(engine, 16, 65));
          const value = 64_000 / (run.last - run.first);
          const what = "generated tokens/s; bytes of weights";
          return {
            technique: "quantised weights",
            variant,
            what,
            value,
            unit: "tokens/s",
            bytes: engine.limits.memory.weights,
          };
        }),
      );
    }
    return rows;
  }
}

/** As the page pool was allocated. */
async function bytesPerToken(engine: EngineClient): Promise<number> {
  const { pages } = await engine.stats();
  const tokensAPage = 16;
  return engine.limits.memory.cache / (pages[0].total * tokensAPage);
}

function pause({ tokens }: Timed): number {
  let longest = 0;
  for (let i = 1; i < tokens.length; i++) longest = Math.max(longest, tokens[i] - tokens[i - 1]);
  return longest;
}
