// Owns: layers that remember a state instead of keys and values.
import { defineOp } from "../op.js";
import { activations } from "./elementwise.js";

type CausalConvParams = { kernel: number; activation: "none" | "silu" };

/**
 * Depthwise short convolution over time: y[t, c] = f(bias[c] + Σ_j weight[c, j] · x[t − kernel + 1 + j, c]).
 * The state holds the last kernel − 1 inputs of each channel, oldest first: [c, kernel − 1].
 */
export const causalConv = defineOp<CausalConvParams>({
  name: "causalConv",
  inputs: { x: "[n, c]", weight: "[c, kernel]", bias: "[c]?", cache: "state" },
  outputs: { y: "[n, c]" },
  params: { kernel: "i32", activation: "none|silu" },
  cost: ({ n, c, sequences }, { kernel }, weightBytes) => ({
    flops: 2 * n * c * kernel,
    bytes: 8 * n * c + weightBytes + 8 * sequences * c * (kernel - 1),
  }),
  reference({ x, weight, bias }, { y }, { kernel, activation }, step) {
    const channels = x.shape[1];
    const past = kernel - 1;
    const cache = step.cache("cache");
    for (let s = 0; s < step.numSequences; s++) {
      const state = cache.state(s);
      for (let t = step.tokenStart[s]; t < step.tokenStart[s + 1]; t++) {
        for (let c = 0; c < channels; c++) {
          const input = x.data[t * channels + c];
          let sum = bias ? bias.data[c] : 0;
          for (let j = 0; j < past; j++) sum += weight.data[c * kernel + j] * state[c * past + j];
          sum += weight.data[c * kernel + past] * input;
          y.data[t * channels + c] = activation === "silu" ? activations.silu(sum) : sum;
          for (let j = 0; j + 1 < past; j++) state[c * past + j] = state[c * past + j + 1];
          if (past > 0) state[c * past + past - 1] = input;
        }
      }
    }
  },
});
