// Owns: products with weights: linear, the fused gatedLinear, and lora (what an adapter adds at a linear's site).
import { defineOp, type HostTensor } from "../op.js";
import { type Activation, activationKinds, gatedActivation } from "./elementwise.js";

/**
 * y[t, r] = x[t] · w[r] for whole matrices: rows of w by fours of tokens, so that a row is read once for four of them.
 * Sums run in double over ascending k, so a value depends on its own token and row alone.
 */
export function matmul(x: Float32Array, w: Float32Array, y: Float32Array, n: number, m: number, k: number): void {
  let t = 0;
  for (; t + 4 <= n; t += 4) {
    const x0 = x.subarray(t * k, (t + 1) * k);
    const x1 = x.subarray((t + 1) * k, (t + 2) * k);
    const x2 = x.subarray((t + 2) * k, (t + 3) * k);
    const x3 = x.subarray((t + 3) * k, (t + 4) * k);
    for (let r = 0; r < m; r++) {
      const row = w.subarray(r * k, (r + 1) * k);
      let s0 = 0;
      let s1 = 0;
      let s2 = 0;
      let s3 = 0;
      for (let i = 0; i < k; i++) {
        const value = row[i];
        s0 += value * x0[i];
        s1 += value * x1[i];
        s2 += value * x2[i];
        s3 += value * x3[i];
      }
      y[t * m + r] = s0;
      y[(t + 1) * m + r] = s1;
      y[(t + 2) * m + r] = s2;
      y[(t + 3) * m + r] = s3;
    }
  }
  for (; t < n; t++) matvec(x.subarray(t * k, (t + 1) * k), w, y.subarray(t * m, (t + 1) * m), m, k);
}

/** One token: four rows at once, each summed in the order that matmul sums it. */
function matvec(x: Float32Array, w: Float32Array, y: Float32Array, m: number, k: number): void {
  let r = 0;
  for (; r + 4 <= m; r += 4) {
    const w0 = w.subarray(r * k, (r + 1) * k);
    const w1 = w.subarray((r + 1) * k, (r + 2) * k);
    const w2 = w.subarray((r + 2) * k, (r + 3) * k);
    const w3 = w.subarray((r + 3) * k, (r + 4) * k);
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let i = 0; i < k; i++) {
      const value = x[i];
      s0 += value * w0[i];
      s1 += value * w1[i];
      s2 += value * w2[i];
      s3 += value * w3[i];
    }
    y[r] = s0;
    y[r + 1] = s1;
    y[r + 2] = s2;
    y[r + 3] = s3;
  }
  for (; r < m; r++) {
    let sum = 0;
    for (let i = 0; i < k; i++) sum += x[i] * w[r * k + i];
    y[r] = sum;
  }
}

/** y = x · weightᵀ + bias. The weight's pieces may have different storage types (segments of rows). */
export const linear = defineOp({
  name: "linear",
  inputs: { x: "[n, k]", weight: "[m, k]", bias: "[m]?" },
  outputs: { y: "[n, m]" },
  params: {},
  cost: ({ n, k, m }, _params, weightBytes) => ({ flops: 2 * n * k * m, bytes: weightBytes + 4 * n * (k + m) }),
  reference({ x, weight, bias }, { y }) {
    const [n, k] = x.shape;
    const m = weight.shape[0];
    matmul(x.data as Float32Array, weight.data as Float32Array, y.data as Float32Array, n, m, k);
    if (!bias) return;
    for (let t = 0; t < n; t++) for (let r = 0; r < m; r++) y.data[t * m + r] += bias.data[r];
  },
});

type GatedLinearParams = { kind: Activation };

/** Made by passes: weight is the gate's m rows, then the up's m rows. y = f(x · gateᵀ) · (x · upᵀ). */
export const gatedLinear = defineOp<GatedLinearParams>({
  name: "gatedLinear",
  inputs: { x: "[n, k]", weight: "[2*m, k]", bias: "[2*m]?" },
  outputs: { y: "[n, m]" },
  params: { kind: activationKinds },
  cost: ({ n, k, m }, _params, weightBytes) => ({
    flops: 4 * n * k * m + 9 * n * m,
    bytes: weightBytes + 4 * n * (k + m),
  }),
  reference({ x, weight, bias }, { y }, { kind }, step) {
    const [n, m] = y.shape;
    const k = x.shape[1];
    const half = (whole: HostTensor, second: number): HostTensor => ({
      shape: [m, ...whole.shape.slice(1)],
      data: whole.data.subarray((second * whole.data.length) / 2, ((second + 1) * whole.data.length) / 2),
    });
    const parts = [0, 1].map((second) => {
      const part = { shape: [n, m], data: new Float32Array(n * m) };
      const inputs = { x: { shape: [n, k], data: x.data }, weight: half(weight, second) };
      linear.reference(bias ? { ...inputs, bias: half(bias, second) } : inputs, { y: part }, {}, step);
      return part;
    });
    gatedActivation.reference({ gate: parts[0], up: parts[1] }, { y }, { kind }, step);
  },
});

type LoraParams = { site: string; rowStart: number; colStart: number };

/**
 * z = y + scale · B (A x) for tokens of sequences that have an adapter with this site; z = y for the others.
 * site: the linear's path, the name of its output. A rank of a split plan takes B's rows from rowStart and A's columns from colStart on.
 */
export const lora = defineOp<LoraParams>({
  name: "lora",
  inputs: { x: "[n, k]", y: "[n, m]" },
  outputs: { z: "[n, m]" },
  params: { site: "string", rowStart: "i32", colStart: "i32" },
  cost: ({ n, m }) => ({ flops: 0, bytes: 8 * n * m }),
  reference({ x, y }, { z }, { site, rowStart, colStart }, step) {
    const k = x.shape[1];
    const m = y.shape[1];
    z.data.set(y.data);
    for (let s = 0; s < step.numSequences; s++) {
      const adapter = step.adapters[s] < 0 ? undefined : step.adapter(step.adapters[s], site);
      if (!adapter) continue;
      const [r, fullK] = adapter.a.shape;
      const low = new Float64Array(r);
      for (let t = step.tokenStart[s]; t < step.tokenStart[s + 1]; t++) {
        for (let j = 0; j < r; j++) {
          low[j] = 0;
          for (let i = 0; i < k; i++) low[j] += adapter.a.data[j * fullK + colStart + i] * x.data[t * k + i];
        }
        for (let o = 0; o < m; o++) {
          let sum = 0;
          for (let j = 0; j < r; j++) sum += adapter.b.data[(rowStart + o) * r + j] * low[j];
          z.data[t * m + o] += adapter.scale * sum;
        }
      }
    }
  },
});
