// Owns: rotary position embedding. Every scaling of it (linear, llama3, longrope...) is resolved by model/ into invFreq and
// magnitude: devices see only numbers.
// Source: Su et al., "RoFormer", arXiv 2104.09864.
import { defineOp } from "../op.js";

export type RopeParams = {
  numHeads: number;
  headDim: number;
  /** The first rotaryDim values of a head turn, the rest pass; even. */
  rotaryDim: number;
  /** [rotaryDim / 2] radians a position. */
  invFreq: readonly number[];
  /** Multiplies sin and cos (yarn, longrope); 1 otherwise. */
  magnitude: number;
  /** Pairs (0, 1), (2, 3)... instead of (0, r/2), (1, r/2 + 1)... */
  interleaved: boolean;
};

/** Pair i of every head turns by position · invFreq[i]. The angle is computed in double, sin and cos are rounded to f32. */
export const rope = defineOp<RopeParams>({
  name: "rope",
  inputs: { x: "[n, numHeads*headDim]", positions: "i32[n]" },
  outputs: { y: "[n, numHeads*headDim]" },
  params: {
    numHeads: "i32",
    headDim: "i32",
    rotaryDim: "i32",
    invFreq: "f32[]",
    magnitude: "f32",
    interleaved: "bool",
  },
  cost: ({ n }, { numHeads, headDim, rotaryDim }) => ({
    flops: 3 * n * numHeads * rotaryDim,
    bytes: 8 * n * numHeads * headDim,
  }),
  reference({ x, positions }, { y }, { numHeads, headDim, rotaryDim, invFreq, magnitude, interleaved }) {
    y.data.set(x.data);
    const half = rotaryDim / 2;
    const [step, gap] = interleaved ? [2, 1] : [1, half];
    for (let t = 0; t < x.shape[0]; t++) {
      for (let i = 0; i < half; i++) {
        const angle = positions.data[t] * invFreq[i];
        const cos = Math.fround(Math.cos(angle) * magnitude);
        const sin = Math.fround(Math.sin(angle) * magnitude);
        for (let h = 0; h < numHeads; h++) {
          const at = (t * numHeads + h) * headDim + i * step;
          const a = x.data[at];
          const b = x.data[at + gap];
          y.data[at] = a * cos - b * sin;
          y.data[at + gap] = b * cos + a * sin;
        }
      }
    }
  },
});
