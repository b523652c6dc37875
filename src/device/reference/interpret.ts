// Owns: running the nodes of a plan, one after the other, by the ops' own references. Several ranks of a split plan run in
// lockstep, node by node: so an allReduce finds what the other ranks hand in.
import { InternalError } from "../../base/errors.js";
import type { AdapterWeights, CacheAccess, HostTensor, RankGroup, Sampled, StepContext } from "../../plan/op.js";
import type { Dim, Node, Plan, Tensor } from "../../plan/plan.js";
import type { Batch } from "../batch.js";
import type { AdapterSource } from "../device.js";
import type { Pages } from "./pages.js";

/** One rank: its plan, its weights by tensor id (empty while asleep), its pages. */
export interface Rank {
  readonly plan: Plan;
  readonly weights: Map<number, HostTensor>;
  readonly pages: Pages;
  /** Ids of the activations that nobody reads after node i. */
  readonly lastUses: readonly (readonly number[])[];
}

export function lastUses(plan: Plan): number[][] {
  const last = new Map<number, number>();
  plan.nodes.forEach((node, i) => {
    for (const tensor of [...Object.values(node.inputs), ...Object.values(node.outputs)]) {
      if (tensor.role === "activation") last.set(tensor.id, i);
    }
  });
  const uses: number[][] = plan.nodes.map(() => []);
  for (const [id, node] of last) uses[node].push(id);
  return uses;
}

export function sizeOf(dim: Dim, sizes: { tokens: number; sequences: number; rows: number }): number {
  return typeof dim === "number" ? dim : sizes[dim];
}

/** What a step brings from the program. */
export interface StepParts {
  readonly batch: Batch;
  /** batch.tokens with every −1 − slot resolved. */
  readonly tokens: Int32Array;
  readonly adapters: Int32Array;
  readonly loaded: ReadonlyMap<number, AdapterSource>;
  readonly pageTokens: number;
  /** Keep activations after their last use. */
  readonly keep: boolean;
  sample(row: number, logits: Float32Array): Sampled;
  /** Called before the first sample node: resolves when masks are there. */
  ready(): Promise<void>;
}

export type Values = (HostTensor | undefined)[];

/** Runs the step on all ranks; gives each rank's tensors by id. */
export async function interpret(ranks: readonly Rank[], step: StepParts): Promise<Values[]> {
  const values = ranks.map((rank) => inputsOf(rank, step));
  const nodes = ranks[0].plan.nodes.length;
  for (let i = 0; i < nodes; i++) {
    if (ranks[0].plan.nodes[i].op.name === "sample") await step.ready();
    ranks.forEach((rank, r) => {
      const node = rank.plan.nodes[i];
      const inputs = mapTensors(node.inputs, (tensor) => given(values[r], rank, tensor));
      const outputs = mapTensors(node.outputs, (tensor) => (values[r][tensor.id] = allocate(tensor, step)));
      const others = ranks.map((other, q) => values[q][other.plan.nodes[i].inputs.x?.id ?? 0]);
      node.op.reference(inputs, outputs, node.params, new Context(rank, r, node, step, others));
    });
    // What the last node gives is what the plan is for.
    if (step.keep || i === nodes - 1) continue;
    ranks.forEach((rank, r) => {
      for (const id of rank.lastUses[i]) values[r][id] = undefined;
    });
  }
  return values;
}

function inputsOf(rank: Rank, { batch, tokens }: StepParts): Values {
  const positions = new Int32Array(tokens.length);
  for (let s = 0; s < batch.slots.length; s++) {
    const start = batch.tokenStart[s];
    for (let t = start; t < batch.tokenStart[s + 1]; t++) positions[t] = batch.kvStart[s] + t - start;
  }
  const data = { tokenIds: tokens, positions, sampleRows: batch.rows };
  const values: Values = [];
  for (const tensor of rank.plan.tensors) {
    if (tensor.input) values[tensor.id] = { shape: [data[tensor.input].length], data: data[tensor.input] };
  }
  return values;
}

function mapTensors<T>(record: Readonly<Record<string, Tensor>>, f: (tensor: Tensor) => T): Record<string, T> {
  return Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, f(tensor)]));
}

const cacheStandIn: HostTensor = { shape: [], data: new Float32Array(0) };

function given(values: Values, rank: Rank, tensor: Tensor): HostTensor {
  if (tensor.role === "cache") return cacheStandIn;
  const value = tensor.role === "weight" ? rank.weights.get(tensor.id) : values[tensor.id];
  if (!value) throw new InternalError(`${tensor.name} is read before it is there`);
  return value;
}

function allocate(tensor: Tensor, { batch }: StepParts): HostTensor {
  const sizes = { tokens: batch.tokens.length, sequences: batch.slots.length, rows: batch.rows.length };
  const shape = tensor.shape.map((dim) => sizeOf(dim, sizes));
  const length = shape.reduce((a, b) => a * b, 1);
  return { shape, data: tensor.dtype === "i32" ? new Int32Array(length) : new Float32Array(length) };
}

/** What one node of one rank sees of the step. */
class Context implements StepContext {
  readonly numTokens: number;
  readonly numSequences: number;
  readonly tokenStart: Int32Array;
  readonly kvStart: Int32Array;
  readonly adapters: Int32Array;
  readonly group: RankGroup;

  constructor(
    private readonly of: Rank,
    rank: number,
    private readonly node: Node,
    private readonly step: StepParts,
    handedIn: readonly (HostTensor | undefined)[],
  ) {
    this.numTokens = step.tokens.length;
    this.numSequences = step.batch.slots.length;
    this.tokenStart = step.batch.tokenStart;
    this.kvStart = step.batch.kvStart;
    this.adapters = step.adapters;
    this.group = { rank, size: handedIn.length, allReduce: (data) => sumRanks(handedIn, data) };
  }

  adapter(slot: number, site: string): AdapterWeights | undefined {
    const source = this.step.loaded.get(slot);
    const factors = source?.sites.get(site);
    return source && factors && { ...factors, scale: source.scale };
  }

  sample(row: number, logits: Float32Array): Sampled {
    return this.step.sample(row, logits);
  }

  cache(input: string): CacheAccess {
    const { pages, plan } = this.of;
    const index = this.node.inputs[input]?.cache;
    if (index === undefined) throw new InternalError(`${this.node.op.name} has no cache called ${input}`);
    const table = this.step.batch.pages[plan.caches[index].group];
    const at = (sequence: number, position: number): [index: number, page: number, within: number] => {
      const page = Math.floor(position / this.step.pageTokens) - table.first[sequence];
      if (page < 0 || page >= table.start[sequence + 1] - table.start[sequence]) {
        throw new InternalError(`position ${position} of sequence ${sequence} is in none of its pages`);
      }
      return [index, table.ids[table.start[sequence] + page], position % this.step.pageTokens];
    };
    return {
      write: (sequence, position, k, v) => pages.store(...at(sequence, position), k, v),
      readK: (sequence, position) => pages.rows(...at(sequence, position)).k,
      readV: (sequence, position) => pages.rows(...at(sequence, position)).v,
      state: (sequence) => {
        const state = pages.state(index, table.ids[table.start[sequence]]);
        return this.kvStart[sequence] === 0 ? state.fill(0) : state;
      },
    };
  }
}

function sumRanks(handedIn: readonly (HostTensor | undefined)[], data: Float32Array): void {
  data.fill(0);
  for (const tensor of handedIn) {
    if (!tensor) throw new InternalError("a rank hands nothing in to the exchange");
    for (let i = 0; i < data.length; i++) data[i] += tensor.data[i];
  }
}
