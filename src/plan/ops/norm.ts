// Owns: normalisation of rows: rmsNorm (whole rows, or each head of a row), layerNorm, and the fused addNorm.
import { defineOp, type HostTensor } from "../op.js";
import { add } from "./elementwise.js";

type RmsParams = { eps: number; groups: number };

/** Each group of d values by itself: y = x / sqrt(mean(x²) + eps) · weight. groups > 1: one norm a head, weight shared. */
export const rmsNorm = defineOp<RmsParams>({
  name: "rmsNorm",
  inputs: { x: "[n, groups*d]", weight: "[d]" },
  outputs: { y: "[n, groups*d]" },
  params: { eps: "f32", groups: "i32" },
  cost: ({ n, d }, { groups }, weightBytes) => ({ flops: 4 * n * groups * d, bytes: 8 * n * groups * d + weightBytes }),
  reference({ x, weight }, { y }, { eps }) {
    const d = weight.shape[0];
    for (let at = 0; at < x.data.length; at += d) {
      let sum = 0;
      for (let i = 0; i < d; i++) sum += x.data[at + i] * x.data[at + i];
      const scale = 1 / Math.sqrt(sum / d + eps);
      for (let i = 0; i < d; i++) y.data[at + i] = x.data[at + i] * scale * weight.data[i];
    }
  },
});

type LayerNormParams = { eps: number };

/** y = (x − mean) / sqrt(variance + eps) · weight + bias */
export const layerNorm = defineOp<LayerNormParams>({
  name: "layerNorm",
  inputs: { x: "[n, d]", weight: "[d]", bias: "[d]?" },
  outputs: { y: "[n, d]" },
  params: { eps: "f32" },
  cost: ({ n, d }, _params, weightBytes) => ({ flops: 7 * n * d, bytes: 8 * n * d + weightBytes }),
  reference({ x, weight, bias }, { y }, { eps }) {
    const [n, d] = x.shape;
    for (let t = 0; t < n; t++) {
      const row = x.data.subarray(t * d, (t + 1) * d);
      let mean = 0;
      for (let i = 0; i < d; i++) mean += row[i];
      mean /= d;
      let variance = 0;
      for (let i = 0; i < d; i++) variance += (row[i] - mean) ** 2;
      const scale = 1 / Math.sqrt(variance / d + eps);
      for (let i = 0; i < d; i++) {
        y.data[t * d + i] = (row[i] - mean) * scale * weight.data[i] + (bias ? bias.data[i] : 0);
      }
    }
  },
});

type AddNormParams = { alpha: number; beta: number; eps: number };

/** Made by passes: sum = alpha · a + beta · b, and y = rmsNorm(sum). */
export const addNorm = defineOp<AddNormParams>({
  name: "addNorm",
  inputs: { a: "[n, d]", b: "[n, d]", weight: "[d]" },
  outputs: { sum: "[n, d]", y: "[n, d]" },
  params: { alpha: "f32", beta: "f32", eps: "f32" },
  cost: ({ n, d }, _params, weightBytes) => ({ flops: 7 * n * d, bytes: 16 * n * d + weightBytes }),
  reference({ a, b, weight }, { sum, y }, { alpha, beta, eps }, step) {
    add.reference({ a, b }, { y: sum }, { alpha, beta }, step);
    rmsNorm.reference({ x: sum as HostTensor, weight }, { y }, { eps, groups: 1 }, step);
  },
});
