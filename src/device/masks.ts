// Owns: Step.setMasks as every backend keeps it: masks of the right size, given once.
import { check } from "../base/errors.js";
import type { Batch } from "./batch.js";

export interface AwaitedMasks {
  /** The bits, once they are there. */
  readonly given: Promise<Uint32Array>;
  /** Step.setMasks. Throws InternalError on bits of another size, or a second time. */
  readonly set: (bits: Uint32Array) => void;
}

/** onSet is called at once with the bits: for a backend that does not wait on promises. */
export function awaitMasks(batch: Batch, vocabSize: number, onSet?: (bits: Uint32Array) => void): AwaitedMasks {
  const words = batch.maskedRows.length * Math.ceil(vocabSize / 32);
  let resolve: (bits: Uint32Array) => void = () => {};
  const given = new Promise<Uint32Array>((done) => {
    resolve = done;
  });
  let done = false;
  const set = (bits: Uint32Array) => {
    check(words > 0 && bits.length === words, `masks take ${words} words, there are ${bits.length}`);
    check(!done, "the step has its masks already");
    done = true;
    resolve(bits);
    onSet?.(bits);
  };
  return { given, set };
}
