// Owns: the forward pass of a decoder: one function, top to bottom. Names are Hugging Face's; shapes stand where they
// change. A family differs by its row in families.ts.
import { PlanBuilder } from "../plan/build.js";
import {
  add,
  attention,
  cacheWrite,
  embed,
  gatedActivation,
  gatherRows,
  linear,
  logits,
  moe,
  rmsNorm,
  rope,
  route,
  sample,
} from "../plan/ops/index.js";
import type { Plan, Tensor } from "../plan/plan.js";
import type { ExpertsConfig, ModelConfig } from "./config.js";
import { type TensorLookup, Weights } from "./weights.js";

/** tensors: of the checkpoint that the config was read from. Throws FormatError for missing, misshapen and unused ones. */
export function decoderPlan(config: ModelConfig, tensors: TensorLookup): Plan {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, normEps: eps, biases, family } = config;
  const b = new PlanBuilder(config.vocabSize);
  const w = new Weights(b, tensors, config);
  const positions = b.input("positions");
  const heads = { numKvHeads, headDim, vHeadDim: headDim };

  const norm = (module: string, layer: number | undefined, x: Tensor) =>
    b.apply(rmsNorm, at(layer, module), { x, weight: w.norm(module, layer, hiddenSize) }, { eps, groups: 1 });
  const project = (module: string, layer: number, x: Tensor, from: number, to: number, hasBias: boolean) => {
    const weight = w.matrix(module, layer, to, from);
    const bias = hasBias ? w.bias(module, layer, to) : undefined;
    return b.apply(linear, at(layer, module), { x, weight, bias }, {});
  };
  const headNorm = (module: string, layer: number, x: Tensor, groups: number) => {
    if (!family.qkNorm) return x;
    return b.apply(rmsNorm, at(layer, module), { x, weight: w.norm(module, layer, headDim) }, { eps, groups });
  };
  const residual = (name: string, layer: number, a: Tensor, x: Tensor) =>
    b.apply(add, at(layer, name), { a, b: x }, { alpha: 1, beta: 1 });

  /** [tokens, hidden] → [tokens, hidden] */
  const mlp = (i: number, m: Tensor) => {
    const gate = project("mlp.gate_proj", i, m, hiddenSize, intermediateSize, biases.mlp); // [tokens, intermediate]
    const up = project("mlp.up_proj", i, m, hiddenSize, intermediateSize, biases.mlp);
    const active = b.apply(gatedActivation, at(i, "mlp.act"), { gate, up }, { kind: config.activation });
    return project("mlp.down_proj", i, active, intermediateSize, hiddenSize, biases.mlp);
  };
  const experts = (i: number, x: Tensor, { count, used, intermediateSize: width, normalize }: ExpertsConfig) => {
    const scores = project("mlp.gate", i, x, hiddenSize, count, false); // [tokens, experts]
    const how = { topK: used, score: "softmax", normalize, scale: 1 } as const;
    const routed = b.node(route, at(i, "mlp.route"), { logits: scores }, how); // [tokens, used]
    const gate = w.experts("gate_proj", i, count, width, hiddenSize);
    const up = w.experts("up_proj", i, count, width, hiddenSize);
    const down = w.experts("down_proj", i, count, hiddenSize, width);
    const inputs = { x, experts: routed.experts, weights: routed.weights, gate, up, down };
    return b.apply(moe, at(i, "mlp.experts"), inputs, { numExperts: count, kind: config.activation });
  };

  const table = w.matrix("embed_tokens", undefined, config.vocabSize, hiddenSize);
  let x = b.apply(embed, "embed_tokens", { ids: b.input("tokenIds"), weight: table }, { scale: config.embedScale }); // [tokens, hidden]
  for (const [i, layer] of config.layers.entries()) {
    const turn = { ...layer.rope, rotaryDim: 2 * layer.rope.invFreq.length, headDim };
    const cache = b.cache(at(i, "self_attn.cache"), { kind: "paged", window: layer.window, ...heads });

    const h = norm("input_layernorm", i, x);
    let q = project("self_attn.q_proj", i, h, hiddenSize, numHeads * headDim, biases.q); // [tokens, heads × headDim]
    let k = project("self_attn.k_proj", i, h, hiddenSize, numKvHeads * headDim, biases.k); // [tokens, kvHeads × headDim]
    const v = project("self_attn.v_proj", i, h, hiddenSize, numKvHeads * headDim, biases.v);
    q = headNorm("self_attn.q_norm", i, q, numHeads);
    k = headNorm("self_attn.k_norm", i, k, numKvHeads);
    q = b.apply(rope, at(i, "self_attn.q_rope"), { x: q, positions }, { ...turn, numHeads });
    k = b.apply(rope, at(i, "self_attn.k_rope"), { x: k, positions }, { ...turn, numHeads: numKvHeads });
    b.node(cacheWrite, at(i, "self_attn.cache_write"), { k, v, cache }, heads);
    const seen = { scale: config.attentionScale, window: layer.window, causal: true };
    const mixed = b.apply(attention, at(i, "self_attn.attention"), { q, cache }, { numHeads, ...heads, ...seen });
    let o = project("self_attn.o_proj", i, mixed, numHeads * headDim, hiddenSize, biases.o); // [tokens, hidden]
    if (family.postNorms) o = norm("post_attention_layernorm", i, o);
    x = residual("attention_residual", i, x, o);

    const m = norm(family.postNorms ? "pre_feedforward_layernorm" : "post_attention_layernorm", i, x);
    let down = config.experts ? experts(i, m, config.experts) : mlp(i, m); // [tokens, hidden]
    if (family.postNorms) down = norm("post_feedforward_layernorm", i, down);
    x = residual("mlp_residual", i, x, down);
  }
  x = b.apply(gatherRows, "sampled_rows", { x, rows: b.input("sampleRows") }, {}); // [rows, hidden]
  x = norm("norm", undefined, x);
  const head = config.tiedEmbeddings ? table : w.matrix("lm_head", undefined, config.vocabSize, hiddenSize);
  const scores = b.apply(logits, "logits", { x, weight: head }, { scale: config.logitsScale }); // [rows, vocabulary]
  b.node(sample, "sample", { logits: scores }, {});
  w.finish();
  return b.finish();
}

function at(layer: number | undefined, module: string): string {
  return layer === undefined ? module : `layers.${layer}.${module}`;
}
