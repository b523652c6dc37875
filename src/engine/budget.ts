// Owns: how many tokens a step may bring, so that its time stays bounded: about 50 ms while others generate and 200 ms
// otherwise. Learns from the steps that were run; fast devices always get the most.

const whileGenerating = 50;
const otherwise = 200;
/** Fewer tokens a step than this would waste more in weights read than it gains in latency. */
const least = 16;
/** Steps of fewer tokens tell more about reading weights than about tokens. */
const worthMeasuring = 8;

export class StepBudget {
  /** Milliseconds; undefined until measured. */
  private perToken: number | undefined;

  /** fixed: exactly so many tokens a step, whatever the device does. */
  constructor(
    private readonly most: number,
    private readonly fixed?: number,
  ) {}

  tokens(othersGenerate: boolean): number {
    if (this.fixed !== undefined) return Math.min(this.fixed, this.most);
    if (this.perToken === undefined) return Math.min(this.most, 128);
    const wanted = Math.floor((othersGenerate ? whileGenerating : otherwise) / this.perToken);
    return Math.min(this.most, Math.max(least, wanted));
  }

  observe(tokens: number, ms: number): void {
    if (tokens < Math.min(worthMeasuring, this.most)) return;
    const now = ms / tokens;
    this.perToken = this.perToken === undefined ? now : this.perToken + 0.3 * (now - this.perToken);
  }
}
