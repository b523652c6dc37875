// Owns: exchange between the ranks of a split plan.
import { defineOp } from "../op.js";

/** y = Σ over ranks of x, in rank order, the same bits on every rank. */
export const allReduce = defineOp({
  name: "allReduce",
  inputs: { x: "[n, d]" },
  outputs: { y: "[n, d]" },
  params: {},
  cost: ({ n, d }) => ({ flops: n * d, bytes: 8 * n * d }),
  reference({ x }, { y }, _params, step) {
    y.data.set(x.data);
    step.group.allReduce(y.data as Float32Array);
  },
});
