// Owns: what goes through the KV cache: cacheWrite, attention, and the fused qkvRopeCache.
import { defineOp, type HostTensor, type StepContext } from "../op.js";
import { rmsNorm } from "./norm.js";
import { type RopeParams, rope } from "./rope.js";

type CacheWriteParams = { numKvHeads: number; headDim: number; vHeadDim: number };

/** Stores k and v of the step's tokens at their positions. Comes before the attention that reads them. */
export const cacheWrite = defineOp<CacheWriteParams>({
  name: "cacheWrite",
  inputs: { k: "[n, numKvHeads*headDim]", v: "[n, numKvHeads*vHeadDim]", cache: "paged" },
  outputs: {},
  params: { numKvHeads: "i32", headDim: "i32", vHeadDim: "i32" },
  cost: ({ n, kvBytes }, { numKvHeads, headDim, vHeadDim }) => ({
    flops: 0,
    bytes: n * numKvHeads * (headDim + vHeadDim) * (4 + kvBytes),
  }),
  reference({ k, v }, _outputs, _params, step) {
    const cache = step.cache("cache");
    for (let s = 0; s < step.numSequences; s++) {
      for (let t = step.tokenStart[s]; t < step.tokenStart[s + 1]; t++) {
        const position = step.kvStart[s] + t - step.tokenStart[s];
        cache.write(s, position, row(k, t), row(v, t));
      }
    }
  },
});

export type AttentionParams = {
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  vHeadDim: number;
  scale: number;
  /** A token sees itself and window − 1 before it. */
  window?: number;
  /** Scores become softcap · tanh(score / softcap), before the mask. */
  softcap?: number;
  /** false: a token also sees the tokens of its own sequence that come after it in this step. */
  causal: boolean;
};

/**
 * Head h reads key/value head floor(h / (numHeads / numKvHeads)). sinks: one score a head that takes part in the softmax
 * and has no value.
 */
export const attention = defineOp<AttentionParams>({
  name: "attention",
  inputs: { q: "[n, numHeads*headDim]", cache: "paged", sinks: "[numHeads]?" },
  outputs: { y: "[n, numHeads*vHeadDim]" },
  params: {
    numHeads: "i32",
    numKvHeads: "i32",
    headDim: "i32",
    vHeadDim: "i32",
    scale: "f32",
    window: "i32?",
    softcap: "f32?",
    causal: "bool",
  },
  cost({ n, sequences, context, kvBytes }, { numHeads, numKvHeads, headDim, vHeadDim, window, causal }) {
    // the mean number of keys that one of a sequence's last n/sequences positions sees
    const perSequence = n / Math.max(1, sequences);
    const mean = causal ? Math.max(1, context - (perSequence - 1) / 2) : context;
    const seen = Math.min(mean, window ?? Number.POSITIVE_INFINITY);
    const read = Math.min(context, window === undefined ? Number.POSITIVE_INFINITY : window + perSequence - 1);
    return {
      flops: 2 * n * numHeads * seen * (headDim + vHeadDim),
      bytes: sequences * read * numKvHeads * (headDim + vHeadDim) * kvBytes + 4 * n * numHeads * (headDim + vHeadDim),
    };
  },
  reference({ q, sinks }, { y }, params, step) {
    for (let s = 0; s < step.numSequences; s++) attendSequence(s, q, sinks, y, params, step);
  },
});

/** All queries of one sequence: for each key in reach one pass over its heads for scores, one for values. */
function attendSequence(
  s: number,
  q: HostTensor,
  sinks: HostTensor | undefined,
  y: HostTensor,
  params: AttentionParams,
  step: StepContext,
): void {
  const { numHeads, numKvHeads, headDim, vHeadDim, scale, window, softcap, causal } = params;
  const cache = step.cache("cache");
  const perKv = numHeads / numKvHeads;
  const newest = step.kvStart[s] + step.tokenStart[s + 1] - step.tokenStart[s] - 1;
  for (let t = step.tokenStart[s]; t < step.tokenStart[s + 1]; t++) {
    const position = step.kvStart[s] + t - step.tokenStart[s];
    const last = causal ? position : newest;
    const first = window === undefined ? 0 : Math.max(0, position - window + 1);
    const count = last - first + 1;
    const scores = new Float64Array(numHeads * count);
    for (let j = 0; j < count; j++) {
      const key = cache.readK(s, first + j);
      for (let h = 0; h < numHeads; h++) {
        const qAt = (t * numHeads + h) * headDim;
        const kAt = Math.floor(h / perKv) * headDim;
        let dot = 0;
        for (let i = 0; i < headDim; i++) dot += q.data[qAt + i] * key[kAt + i];
        dot *= scale;
        scores[h * count + j] = softcap === undefined ? dot : softcap * Math.tanh(dot / softcap);
      }
    }
    for (let h = 0; h < numHeads; h++) softmax(scores.subarray(h * count, (h + 1) * count), sinks?.data[h]);
    const out = new Float64Array(numHeads * vHeadDim);
    for (let j = 0; j < count; j++) {
      const value = cache.readV(s, first + j);
      for (let h = 0; h < numHeads; h++) {
        const weight = scores[h * count + j];
        const vAt = Math.floor(h / perKv) * vHeadDim;
        for (let i = 0; i < vHeadDim; i++) out[h * vHeadDim + i] += weight * value[vAt + i];
      }
    }
    y.data.set(out, t * numHeads * vHeadDim);
  }
}

const largest = 3.4028234663852886e38;

/**
 * In place. A sink's share is dropped. A score that is NaN counts as −Infinity, +Infinity as the largest finite f32; where
 * no score is above −Infinity all weights are 0.
 */
function softmax(scores: Float64Array, sink: number | undefined): void {
  for (let j = 0; j < scores.length; j++) {
    scores[j] = Number.isNaN(scores[j]) ? Number.NEGATIVE_INFINITY : Math.min(scores[j], largest);
  }
  let max = Number.NEGATIVE_INFINITY;
  for (const score of scores) max = Math.max(max, score);
  if (max === Number.NEGATIVE_INFINITY) {
    scores.fill(0);
    return;
  }
  if (sink !== undefined) max = Math.max(max, sink);
  let sum = sink === undefined ? 0 : Math.exp(sink - max);
  for (let j = 0; j < scores.length; j++) sum += scores[j] = Math.exp(scores[j] - max);
  for (let j = 0; j < scores.length; j++) scores[j] /= sum;
}

type QkvRopeCacheParams = RopeParams & CacheWriteParams & { normEps: number };

/**
 * Made by passes. qkv: a token's row is its q heads, its k heads, its v heads. Norms each q and k head where norms are
 * given, turns q and k, stores k and v; gives q.
 */
export const qkvRopeCache = defineOp<QkvRopeCacheParams>({
  name: "qkvRopeCache",
  inputs: {
    qkv: "[n, numHeads*headDim + numKvHeads*headDim + numKvHeads*vHeadDim]",
    positions: "i32[n]",
    qNorm: "[headDim]?",
    kNorm: "[headDim]?",
    cache: "paged",
  },
  outputs: { q: "[n, numHeads*headDim]" },
  params: { ...rope.params, ...cacheWrite.params, normEps: "f32" },
  cost: ({ n, kvBytes }, { numHeads, numKvHeads, headDim, vHeadDim, rotaryDim }) => ({
    flops: 3 * n * (numHeads + numKvHeads) * rotaryDim,
    bytes: n * (8 * numHeads * headDim + numKvHeads * (headDim + vHeadDim) * (4 + kvBytes)),
  }),
  reference({ qkv, positions, qNorm, kNorm }, { q }, params, step) {
    const { numHeads, numKvHeads, headDim, vHeadDim, normEps: eps } = params;
    const [n, width] = qkv.shape;
    const columns = (start: number, count: number): HostTensor<Float32Array> => {
      const part = { shape: [n, count], data: new Float32Array(n * count) };
      for (let t = 0; t < n; t++) {
        for (let i = 0; i < count; i++) part.data[t * count + i] = qkv.data[t * width + start + i];
      }
      return part;
    };
    const rawQ = columns(0, numHeads * headDim);
    const rawK = columns(numHeads * headDim, numKvHeads * headDim);
    const v = columns((numHeads + numKvHeads) * headDim, numKvHeads * vHeadDim);
    const k = { shape: rawK.shape, data: new Float32Array(rawK.data.length) };
    if (qNorm) rmsNorm.reference({ x: rawQ, weight: qNorm }, { y: rawQ }, { eps, groups: numHeads }, step);
    if (kNorm) rmsNorm.reference({ x: rawK, weight: kNorm }, { y: rawK }, { eps, groups: numKvHeads }, step);
    rope.reference({ x: rawQ, positions }, { y: q }, params, step);
    rope.reference({ x: rawK, positions }, { y: k }, { ...params, numHeads: numKvHeads }, step);
    cacheWrite.reference({ k, v }, {}, params, step);
  },
});

function row(x: HostTensor, t: number): Float32Array {
  const width = x.shape[1];
  return x.data.subarray(t * width, (t + 1) * width) as Float32Array;
}
