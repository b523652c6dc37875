// Owns: mixtures of experts: route (which experts a token goes to, with what weight) and moe (their MLPs, weighted).
import { defineOp, type HostTensor } from "../op.js";
import { type Activation, activationKinds, activations } from "./elementwise.js";
import { matmul } from "./linear.js";

type RouteParams = { topK: number; score: "softmax" | "sigmoid"; normalize: boolean; scale: number };

/**
 * s = softmax or sigmoid of the logits. The topK experts with the largest s + bias (the smaller id of equals), best first;
 * weights are their s, divided by their sum if normalize (which is softmax after the choice), times scale.
 */
export const route = defineOp<RouteParams>({
  name: "route",
  inputs: { logits: "[n, e]", bias: "[e]?" },
  outputs: { experts: "i32[n, topK]", weights: "[n, topK]" },
  params: { topK: "i32", score: "softmax|sigmoid", normalize: "bool", scale: "f32" },
  cost: ({ n, e }, { topK }) => ({ flops: 5 * n * e, bytes: 4 * n * (e + 2 * topK) }),
  reference({ logits, bias }, { experts, weights }, { topK, score, normalize, scale }) {
    const [n, e] = logits.shape;
    for (let t = 0; t < n; t++) {
      const row = logits.data.subarray(t * e, (t + 1) * e);
      const scores = score === "softmax" ? softmaxOf(row) : Float64Array.from(row, (x) => 1 / (1 + Math.exp(-x)));
      const rank = (id: number) => scores[id] + (bias ? bias.data[id] : 0);
      const chosen = Array.from(scores.keys()).sort((a, b) => rank(b) - rank(a) || a - b);
      let sum = 0;
      for (let j = 0; j < topK; j++) sum += scores[chosen[j]];
      for (let j = 0; j < topK; j++) {
        experts.data[t * topK + j] = chosen[j];
        weights.data[t * topK + j] = (scale * scores[chosen[j]]) / (normalize ? sum : 1);
      }
    }
  },
});

function softmaxOf(row: ArrayLike<number>): Float64Array {
  const scores = Float64Array.from(row);
  const max = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp(scores[i] - max);
  return scores.map((value) => value / sum);
}

type MoeParams = { numExperts: number; kind: Activation };

/**
 * y[t] = Σ over the token's experts of weight · down · (f(gate · x) · (up · x)). Weights are stacked by experts: expert j
 * has rows [j·m, (j+1)·m) of gate and up and rows [j·k, (j+1)·k) of down.
 */
export const moe = defineOp<MoeParams>({
  name: "moe",
  inputs: {
    x: "[n, k]",
    experts: "i32[n, t]",
    weights: "[n, t]",
    gate: "[numExperts*m, k]",
    up: "[numExperts*m, k]",
    down: "[numExperts*k, m]",
  },
  outputs: { y: "[n, k]" },
  params: { numExperts: "i32", kind: activationKinds },
  // each expert's weights are read once for all its tokens; how many experts n tokens meet is a guess from above
  cost: ({ n, k, m, t }, { numExperts }, weightBytes) => ({
    flops: 6 * n * t * m * k,
    bytes: (weightBytes * Math.min(numExperts, n * t)) / numExperts + 8 * n * k,
  }),
  reference({ x, experts, weights, gate, up, down }, { y }, { numExperts, kind }) {
    const [n, k] = x.shape;
    const used = experts.shape[1];
    const m = down.shape[1];
    const hidden = [new Float32Array(m), new Float32Array(m)];
    const out = new Float32Array(k);
    const rows = (w: HostTensor, expert: number) => {
      const size = w.data.length / numExperts;
      return w.data.subarray(expert * size, (expert + 1) * size) as Float32Array;
    };
    for (let t = 0; t < n; t++) {
      const token = x.data.subarray(t * k, (t + 1) * k) as Float32Array;
      const sum = new Float64Array(k);
      for (let j = 0; j < used; j++) {
        const expert = experts.data[t * used + j];
        matmul(token, rows(gate, expert), hidden[0], 1, m, k);
        matmul(token, rows(up, expert), hidden[1], 1, m, k);
        for (let i = 0; i < m; i++) hidden[0][i] = activations[kind](hidden[0][i]) * hidden[1][i];
        matmul(hidden[0], rows(down, expert), out, 1, k, m);
        for (let i = 0; i < k; i++) sum[i] += weights.data[t * used + j] * out[i];
      }
      y.data.set(sum, t * k);
    }
  },
});
