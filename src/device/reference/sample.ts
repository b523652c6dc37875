// Owns: the specification of sampling, executable: how a token follows from a row of logits and the parameters of its slot.
// Every device makes the same decisions from the same logits. Numbers marked f64 are doubles; a, l are f32.
//
//   l[i]     the model's logit; NaN counts as −Infinity, +Infinity as the largest finite f32
//   report   m = max l; Z = Σ exp(l[i] − m) in f64, i ascending; logprob(i) = l[i] − m − ln Z;
//            rank(i) = how many ids have a larger l, or the same l and a smaller id.
//            Where every l is −Infinity all logprobs are −Infinity. A target is only reported: nothing below happens.
//   1 bias        a[i] = f32(l[i] + bias) for the ids listed, in the list's order; l[i] for the others; a, here and below,
//                 is bounded as l is
//   2 mask        a[i] = −Infinity where the mask's bit is 0
//   3 penalties   for ids that occurred (prompt or output; count = times in the output), in f64, rounded to f32 once:
//                 r = a > 0 ? a / repetition : a · repetition;  a = r − frequency · count − (count > 0 ? presence : 0)
//   4 nothing left: if every a is −Infinity, the token is the smallest id of those with the largest l
//   5 greedy (temperature 0): the smallest id of those with the largest a
//   6 candidates  ids with a > −Infinity, ordered by a descending, then id ascending; best = the first one's a
//     top_k > 0   the first top_k of them
//     weight      w[i] = exp((a[i] − best) / temperature) in f64
//     top_p < 1   total = Σ w over candidates by ascending id; the shortest prefix (in order) whose running sum, in order,
//                 reaches top_p · total; at least one
//     min_p > 0   those with w[i] ≥ min_p
//   7 draw        u = drawUniform(seed, position); S = Σ w by ascending id; the first id, ascending, whose running sum of w
//                 is over u · S; the largest id left where rounding finds none
//
// Only top_p needs an order, so a device that has no top_k and top_p sorts nothing.
import { drawUniform } from "../../base/philox.js";

export interface SlotSampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetition: number;
  readonly frequency: number;
  readonly presence: number;
  readonly seedLow: number;
  readonly seedHigh: number;
}

/** Times each id occurred. Present where penalties are. */
export interface TokenCounts {
  readonly prompt: ReadonlySet<number>;
  readonly output: ReadonlyMap<number, number>;
}

export interface RowRequest {
  readonly slot: SlotSampling;
  readonly counts?: TokenCounts;
  /** Position of the token that is drawn. */
  readonly position: number;
  readonly biasIds: Int32Array;
  readonly biasValues: Float32Array;
  /** One bit an id, 1 allows. */
  readonly mask?: Uint32Array;
  /** −1: draw. */
  readonly target: number;
  readonly topLogprobs: number;
}

export interface RowResult {
  readonly token: number;
  readonly logprob: number;
  readonly rank: number;
  /** Best first; −1 and −Infinity where the vocabulary ends. */
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
}

const largest = 3.4028234663852886e38;

export function sampleRow(logits: Float32Array, request: RowRequest): RowResult {
  const l = logits.map(bounded);
  const token = request.target >= 0 ? request.target : draw(l, request);
  const best = argmax(l);
  const m = l[best];
  let z = 0;
  if (m > Number.NEGATIVE_INFINITY) for (let i = 0; i < l.length; i++) z += Math.exp(l[i] - m);
  const logZ = Math.log(z);
  const logprob = (id: number) => (l[id] === Number.NEGATIVE_INFINITY ? Number.NEGATIVE_INFINITY : l[id] - m - logZ);
  const topIds = new Int32Array(request.topLogprobs).fill(-1);
  if (request.topLogprobs > 0) topIds.set(ordered(l).slice(0, request.topLogprobs));
  const topLogprobs = Float32Array.from(topIds, (id) => (id < 0 ? Number.NEGATIVE_INFINITY : logprob(id)));
  return { token, logprob: logprob(token), rank: rankOf(l, token), topIds, topLogprobs };
}

function bounded(value: number): number {
  return Number.isNaN(value) ? Number.NEGATIVE_INFINITY : Math.min(value, largest);
}

/** Smallest id of those with the largest value. */
function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

function rankOf(l: Float32Array, id: number): number {
  let rank = 0;
  for (let i = 0; i < l.length; i++) if (l[i] > l[id] || (l[i] === l[id] && i < id)) rank++;
  return rank;
}

/** Ids with a value over −Infinity, by value descending, then id ascending. */
function ordered(values: Float32Array): Int32Array {
  const ids: number[] = [];
  for (let i = 0; i < values.length; i++) if (values[i] > Number.NEGATIVE_INFINITY) ids.push(i);
  return Int32Array.from(ids).sort((x, y) => values[y] - values[x] || x - y);
}

function draw(l: Float32Array, request: RowRequest): number {
  const { slot } = request;
  const a = adjusted(l, request);
  const first = argmax(a);
  const best = a[first];
  if (best === Number.NEGATIVE_INFINITY) return argmax(l);
  if (slot.temperature === 0) return first;
  const weight = (id: number) => Math.exp((a[id] - best) / slot.temperature);
  const kept = candidates(a, slot, weight);
  let sum = 0;
  for (const id of kept) sum += weight(id);
  const bar = drawUniform(slot.seedLow, slot.seedHigh, request.position) * sum;
  let running = 0;
  for (const id of kept) {
    running += weight(id);
    if (running > bar) return id;
  }
  return kept[kept.length - 1];
}

/** Steps 1 to 3. */
function adjusted(l: Float32Array, { slot, counts, biasIds, biasValues, mask }: RowRequest): Float32Array {
  const a = l.slice();
  for (let j = 0; j < biasIds.length; j++) a[biasIds[j]] = bounded(a[biasIds[j]] + biasValues[j]);
  if (mask) {
    for (let i = 0; i < a.length; i++) if (!((mask[i >>> 5] >>> (i & 31)) & 1)) a[i] = Number.NEGATIVE_INFINITY;
  }
  if (!counts) return a;
  for (const id of new Set([...counts.prompt, ...counts.output.keys()])) {
    const count = counts.output.get(id) ?? 0;
    const repeated = a[id] > 0 ? a[id] / slot.repetition : a[id] * slot.repetition;
    a[id] = bounded(repeated - slot.frequency * count - (count > 0 ? slot.presence : 0));
  }
  return a;
}

/** Step 6: what may be drawn, by ascending id. */
function candidates(a: Float32Array, slot: SlotSampling, weight: (id: number) => number): Int32Array {
  let order = ordered(a);
  if (slot.topK > 0) order = order.slice(0, slot.topK);
  if (slot.topP < 1) {
    let total = 0;
    for (const id of order.slice().sort()) total += weight(id);
    let running = 0;
    let length = 0;
    while (length < order.length && (length === 0 || running < slot.topP * total)) running += weight(order[length++]);
    order = order.slice(0, length);
  }
  return order.filter((id) => weight(id) >= slot.minP).sort();
}
