// Stand-in until text/ has its own.
export class StopMatcher {
  private held = "";
  constructor(
    private readonly stops: readonly string[],
    private readonly include: boolean,
  ) {}
  push(text: string): { text: string; stop?: string } {
    this.held += text;
    let best = -1;
    let found = "";
    for (const stop of this.stops) {
      const at = this.held.indexOf(stop);
      if (at >= 0 && (best < 0 || at < best)) {
        best = at;
        found = stop;
      }
    }
    if (best >= 0) return { text: this.held.slice(0, best + (this.include ? found.length : 0)), stop: found };
    let keep = 0;
    for (const stop of this.stops)
      for (let n = Math.min(stop.length - 1, this.held.length); n > keep; n--)
        if (this.held.endsWith(stop.slice(0, n))) {
          keep = n;
          break;
        }
    const out = this.held.slice(0, this.held.length - keep);
    this.held = this.held.slice(this.held.length - keep);
    return { text: out };
  }
  flush(): string {
    const rest = this.held;
    this.held = "";
    return rest;
  }
}
