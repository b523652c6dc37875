// Owns: how many tokens a step may bring, so that its time stays bounded: about 50 ms while others generate and 200 ms
// otherwise. Learns from the steps that were run; fast devices always get the most.
//
// A step costs the reading of the weights, however few its tokens, and then so much a token:
//
//   ms |               · large      The line through the average small step (generating) and the average large one
//      |         ·                  (reading prompts) gives both costs.
//      |   · small
//      +----------------- tokens

const whileGenerating = 50;
const otherwise = 200;
/** The least a step may bring: fewer would waste more in weights read than is gained in latency. Steps from here on are
 *  large ones, so that the smallest budget still teaches. */
const least = 16;
/** The first step's, on a device of which nothing is known. */
const first = 64;
/** How much the latest step counts. */
const rate = 0.3;

interface Average {
  tokens: number;
  ms: number;
}

export class StepBudget {
  private small: Average | undefined;
  private large: Average | undefined;

  /** fixed: exactly so many tokens a step, whatever the device does. */
  constructor(
    private readonly most: number,
    private readonly fixed?: number,
  ) {}

  tokens(othersGenerate: boolean): number {
    if (this.fixed !== undefined) return Math.min(this.fixed, this.most);
    const { small } = this;
    const target = othersGenerate ? whileGenerating : otherwise;
    const costs = this.costs();
    if (!costs) return Math.min(this.most, small ? Math.max(least, (target * small.tokens) / small.ms) | 0 : first);
    return Math.min(this.most, Math.max(least, Math.floor((target - costs.fixed) / costs.perToken)));
  }

  /** Of a step of `tokens` sequences that generate: how likely a guess has to be so that checking it pays. One token more
   *  has to bring as much for its time as the step does on the whole. */
  guessWorth(tokens: number): number {
    const costs = this.costs();
    if (!costs) return 0.5;
    return Math.min(1, (costs.perToken * tokens) / (costs.fixed + costs.perToken * tokens));
  }

  /** Milliseconds that computing so many tokens of a prompt takes; undefined until some have been. */
  promptMs(tokens: number): number | undefined {
    return this.large && (tokens * this.large.ms) / this.large.tokens;
  }

  /** Milliseconds that a step of so many tokens takes; undefined until a large step has been seen. */
  stepMs(tokens: number): number | undefined {
    const costs = this.costs();
    return costs && costs.fixed + costs.perToken * tokens;
  }

  /** Milliseconds; undefined until a large step has been seen. */
  private costs(): { fixed: number; perToken: number } | undefined {
    const { small, large } = this;
    if (!large) return undefined;
    let perToken = large.ms / large.tokens;
    let fixed = 0;
    if (small) {
      // at least a quarter of the average: measurements jitter, and a slope of nothing would mean an endless step
      perToken = Math.max(perToken / 4, (large.ms - small.ms) / (large.tokens - small.tokens));
      fixed = Math.max(0, large.ms - perToken * large.tokens);
    }
    return { fixed, perToken };
  }

  observe(tokens: number, ms: number): void {
    if (tokens >= least) this.large = averaged(this.large, tokens, ms);
    else this.small = averaged(this.small, tokens, ms);
  }
}

function averaged(before: Average | undefined, tokens: number, ms: number): Average {
  if (!before) return { tokens, ms };
  return { tokens: before.tokens + rate * (tokens - before.tokens), ms: before.ms + rate * (ms - before.ms) };
}
