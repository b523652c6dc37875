// Owns: learning that a step is done without blocking: its last kernel writes the step's number into pinned memory, which is
// read between the event loop's turns. The stream is asked now and then whether something failed.
import type { Cuda, HostMemory } from "./native.js";
import { CudaError } from "./native.js";

interface Awaited {
  readonly ring: number;
  readonly number: number;
  readonly done: (error?: unknown) => void;
  readonly since: number;
}

/** A step that takes longer has hung: milliseconds. */
const deadline = 120_000;
/** How often the stream is asked for failures: milliseconds. */
const askEvery = 20;

export class Completion {
  private readonly flags: Int32Array<ArrayBuffer>;
  private readonly awaited: Awaited[] = [];
  private polling = false;
  private asked = 0;

  constructor(
    private readonly cuda: Cuda,
    flags: HostMemory,
  ) {
    const { buffer, byteOffset, byteLength } = flags.bytes;
    this.flags = new Int32Array(buffer as ArrayBuffer, byteOffset, byteLength / 4);
  }

  /** done is called once the flag of the ring's entry says `number`, in the order of the calls. */
  add(ring: number, number: number, done: (error?: unknown) => void): void {
    this.awaited.push({ ring, number, done, since: performance.now() });
    if (this.polling) return;
    this.polling = true;
    setImmediate(this.poll);
  }

  close(): void {
    for (const { done } of this.awaited.splice(0)) done(new CudaError("the program was closed", 0));
  }

  private readonly poll = (): void => {
    let next = this.awaited[0];
    while (next && Atomics.load(this.flags, next.ring * 16) === next.number) {
      this.awaited.shift();
      next.done();
      next = this.awaited[0];
    }
    if (next) this.ask(next);
    if (this.awaited.length > 0) setImmediate(this.poll);
    else this.polling = false;
  };

  private ask(oldest: Awaited): void {
    const now = performance.now();
    if (now - this.asked < askEvery) return;
    this.asked = now;
    try {
      const idle = this.cuda.idle();
      const missed = idle && Atomics.load(this.flags, oldest.ring * 16) !== oldest.number;
      if (missed) throw new CudaError("a step ended without a result", 0);
      if (now - oldest.since > deadline) throw new CudaError("a step did not answer within its time", 0);
    } catch (error) {
      // Whatever it was: nothing that still runs there can be waited for.
      this.cuda.failed = true;
      for (const { done } of this.awaited.splice(0)) done(error);
    }
  }
}
