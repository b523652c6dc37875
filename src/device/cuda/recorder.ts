// Owns: launches by name, made once: played one by one the first time, which also loads the kernels; a graph from then on
// where that is wanted. They name addresses: forget() when memory moves.
import type { Launch } from "./launch.js";
import { Sequence } from "./launcher.js";
import type { Cuda } from "./native.js";

interface Recorded {
  readonly sequence: Sequence;
  graph?: number;
  played: boolean;
}

export class Recorder {
  private readonly recorded = new Map<string, Recorded>();

  /** graphs: false: never. */
  constructor(
    private readonly cuda: Cuda,
    private readonly graphs: boolean,
  ) {}

  play(name: string, graph: boolean, make: () => readonly Launch[]): void {
    const { cuda } = this;
    let known = this.recorded.get(name);
    if (!known) {
      // A launch of nothing is no launch. The first one waits for all that was asked before: from then on kernels may read the
      // step's arrays before they wait for each other.
      const [head, ...rest] = make().filter(({ grid }) => grid.every((n) => n > 0));
      const launches = head ? [{ ...head, dependent: false }, ...rest] : [];
      known = { sequence: new Sequence(cuda, launches, true), played: false };
      this.recorded.set(name, known);
    }
    if (graph && this.graphs && known.played && known.graph === undefined) {
      const { sequence } = known;
      known.graph = cuda.capture(() => sequence.play());
    }
    if (known.graph !== undefined) cuda.launchGraph(known.graph);
    else known.sequence.play();
    known.played = true;
  }

  forget(): void {
    for (const { graph } of this.recorded.values()) if (graph !== undefined) this.cuda.destroyGraph(graph);
    this.recorded.clear();
  }
}
