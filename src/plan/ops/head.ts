// Owns: the way out of the model: logits over the vocabulary, and sample.
import { defineOp } from "../op.js";
import { matmul } from "./linear.js";

type LogitsParams = { scale: number; softcap?: number };

/** logits = scale · x · weightᵀ + bias, then softcap · tanh(logits / softcap). Full logits leave a device only through dump. */
export const logits = defineOp<LogitsParams>({
  name: "logits",
  inputs: { x: "[r, k]", weight: "[v, k]", bias: "[v]?" },
  outputs: { y: "[r, v]" },
  params: { scale: "f32", softcap: "f32?" },
  cost: ({ r, k, v }, _params, weightBytes) => ({ flops: 2 * r * k * v, bytes: weightBytes + 4 * r * (k + v) }),
  reference({ x, weight, bias }, { y }, { scale, softcap }) {
    const [r, v] = y.shape;
    matmul(x.data as Float32Array, weight.data as Float32Array, y.data as Float32Array, r, v, x.shape[1]);
    for (let i = 0; i < y.data.length; i++) {
      const value = scale * y.data[i] + (bias ? bias.data[i % v] : 0);
      y.data[i] = softcap === undefined ? value : softcap * Math.tanh(value / softcap);
    }
  },
});

/** Draws each row's token by its slot's parameters, or scores the target that the batch gives. device/reference/sample.ts
 *  is the algorithm. */
export const sample = defineOp({
  name: "sample",
  inputs: { logits: "[r, v]" },
  outputs: { token: "i32[r]", logprob: "[r]", rank: "i32[r]" },
  params: {},
  cost: ({ r, v }) => ({ flops: 4 * r * v, bytes: 4 * r * v }),
  reference({ logits }, { token, logprob, rank }, _params, step) {
    const [r, v] = logits.shape;
    for (let row = 0; row < r; row++) {
      const drawn = step.sample(row, logits.data.subarray(row * v, (row + 1) * v) as Float32Array);
      token.data[row] = drawn.token;
      logprob.data[row] = drawn.logprob;
      rank.data[row] = drawn.rank;
    }
  },
});
