// Owns: what is done to each value by itself: add, activation, gatedActivation; and the activation functions.
import { defineOp } from "../op.js";

export type Activation = "silu" | "gelu" | "geluTanh" | "relu" | "relu2";
export const activationKinds = "silu|gelu|geluTanh|relu|relu2";

/** Error function to double precision: exp(−x²) · 2x/√π · Σ (2x²)^n / (1·3·5…(2n+1)), whose terms are all positive. */
export function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** silu: x·σ(x). gelu: x·Φ(x). geluTanh: its tanh form (GPT-2, Gemma). relu2: max(x, 0)². */
export const activations: Record<Activation, (x: number) => number> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  geluTanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
};

type AddParams = { alpha: number; beta: number };

/** y = alpha · a + beta · b */
export const add = defineOp<AddParams>({
  name: "add",
  inputs: { a: "[n, d]", b: "[n, d]" },
  outputs: { y: "[n, d]" },
  params: { alpha: "f32", beta: "f32" },
  cost: ({ n, d }) => ({ flops: 3 * n * d, bytes: 12 * n * d }),
  reference({ a, b }, { y }, { alpha, beta }) {
    for (let i = 0; i < y.data.length; i++) y.data[i] = alpha * a.data[i] + beta * b.data[i];
  },
});

type ActivationParams = { kind: Activation };

/** y = f(x) */
export const activation = defineOp<ActivationParams>({
  name: "activation",
  inputs: { x: "[n, d]" },
  outputs: { y: "[n, d]" },
  params: { kind: activationKinds },
  cost: ({ n, d }) => ({ flops: 8 * n * d, bytes: 8 * n * d }),
  reference({ x }, { y }, { kind }) {
    const f = activations[kind];
    for (let i = 0; i < y.data.length; i++) y.data[i] = f(x.data[i]);
  },
});

/** y = f(gate) · up */
export const gatedActivation = defineOp<ActivationParams>({
  name: "gatedActivation",
  inputs: { gate: "[n, d]", up: "[n, d]" },
  outputs: { y: "[n, d]" },
  params: { kind: activationKinds },
  cost: ({ n, d }) => ({ flops: 9 * n * d, bytes: 12 * n * d }),
  reference({ gate, up }, { y }, { kind }) {
    const f = activations[kind];
    for (let i = 0; i < y.data.length; i++) y.data[i] = f(gate.data[i]) * up.data[i];
  },
});
