// Owns: looking rows up: embed (ids → rows of a table, also learned positions) and gatherRows (tokens → sampled rows).
import { defineOp } from "../op.js";

type EmbedParams = { scale: number };

/** y[t] = scale · weight[ids[t]] */
export const embed = defineOp<EmbedParams>({
  name: "embed",
  inputs: { ids: "i32[n]", weight: "[v, d]" },
  outputs: { y: "[n, d]" },
  params: { scale: "f32" },
  cost: ({ n, d, v }, _params, weightBytes) => ({ flops: n * d, bytes: (n * weightBytes) / v + 4 * n * d }),
  reference({ ids, weight }, { y }, { scale }) {
    const d = y.shape[1];
    for (let t = 0; t < y.shape[0]; t++) {
      const from = ids.data[t] * d;
      for (let i = 0; i < d; i++) y.data[t * d + i] = scale * weight.data[from + i];
    }
  },
});

/** y[r] = x[rows[r]] */
export const gatherRows = defineOp({
  name: "gatherRows",
  inputs: { x: "[n, d]", rows: "i32[r]" },
  outputs: { y: "[r, d]" },
  params: {},
  cost: ({ r, d }) => ({ flops: 0, bytes: 8 * r * d }),
  reference({ x, rows }, { y }) {
    const d = y.shape[1];
    for (let r = 0; r < y.shape[0]; r++) {
      for (let i = 0; i < d; i++) y.data[r * d + i] = x.data[rows.data[r] * d + i];
    }
  },
});
