// Owns: the oracle of the conformance suite: a plan run by the ops' references over dense caches, one array a sequence.
// It knows no pages, no queue and no slots: what devices do with those, it checks.
import type { Batch } from "../../src/device/batch.js";
import type { KvDType, WeightSource } from "../../src/device/device.js";
import { roundKv } from "../../src/device/kv.js";
import { materialise } from "../../src/device/reference/weights.js";
import type { CacheAccess, HostTensor, StepContext } from "../../src/plan/op.js";
import type { Node, Plan } from "../../src/plan/plan.js";

interface Memory {
  readonly k: Float32Array[];
  readonly v: Float32Array[];
  state?: Float32Array;
}

export class Oracle {
  private readonly memory = new Map<string, Memory>();

  constructor(
    private readonly plan: Plan,
    private readonly weights: WeightSource,
    private readonly kvDtype: KvDType = "f32",
  ) {}

  /** Runs a step and gives the named tensors. Sequences are told apart by their slots. */
  run(batch: Batch): ReadonlyMap<string, HostTensor> {
    const values = new Map<string, HostTensor>();
    for (const tensor of this.plan.tensors) {
      if (tensor.role === "weight") {
        values.set(tensor.name, { shape: tensor.shape as number[], data: materialise(tensor, this.weights) });
      }
      if (tensor.input) values.set(tensor.name, input(tensor.input, batch));
    }
    const sizes = { tokens: batch.tokens.length, sequences: batch.slots.length, rows: batch.rows.length };
    for (const node of this.plan.nodes) {
      const inputs: Record<string, HostTensor> = {};
      for (const [name, tensor] of Object.entries(node.inputs)) {
        if (tensor.role !== "cache") inputs[name] = values.get(tensor.name)!;
      }
      const outputs: Record<string, HostTensor> = {};
      for (const [name, tensor] of Object.entries(node.outputs)) {
        const shape = tensor.shape.map((dim) => (typeof dim === "number" ? dim : sizes[dim]));
        const length = shape.reduce((a, b) => a * b, 1);
        outputs[name] = { shape, data: tensor.dtype === "i32" ? new Int32Array(length) : new Float32Array(length) };
        values.set(tensor.name, outputs[name]);
      }
      node.op.reference(inputs, outputs, node.params, this.context(node, batch));
    }
    return values;
  }

  private context(node: Node, batch: Batch): StepContext {
    return {
      numTokens: batch.tokens.length,
      numSequences: batch.slots.length,
      tokenStart: batch.tokenStart,
      kvStart: batch.kvStart,
      adapters: new Int32Array(batch.slots.length).fill(-1),
      cache: (name) => this.access(node, name, batch),
      adapter: () => undefined,
      sample: () => ({ token: 0, logprob: 0, rank: 0 }),
      group: { rank: 0, size: 1, allReduce: () => {} },
    };
  }

  private access(node: Node, input: string, batch: Batch): CacheAccess {
    const index = node.inputs[input].cache!;
    const cache = this.plan.caches[index];
    const of = (sequence: number): Memory => {
      const key = `${index}:${batch.slots[sequence]}`;
      let memory = this.memory.get(key);
      if (!memory) this.memory.set(key, (memory = { k: [], v: [] }));
      return memory;
    };
    return {
      write: (sequence, position, k, v) => {
        const heads = cache.kind === "paged" ? cache.numKvHeads : 1;
        const rounded = (row: Float32Array) => {
          const copy = row.slice();
          roundKv(this.kvDtype, copy, copy.length / heads);
          return copy;
        };
        of(sequence).k[position] = rounded(k);
        of(sequence).v[position] = rounded(v);
      },
      readK: (sequence, position) => of(sequence).k[position],
      readV: (sequence, position) => of(sequence).v[position],
      state: (sequence) => {
        const length = cache.kind === "state" ? cache.shape.reduce((a, b) => a * b, 1) : 0;
        if (batch.kvStart[sequence] === 0) of(sequence).state = new Float32Array(length);
        return of(sequence).state!;
      },
    };
  }
}

function input(name: "tokenIds" | "positions" | "sampleRows", batch: Batch): HostTensor {
  if (name === "tokenIds") return { shape: [batch.tokens.length], data: batch.tokens };
  if (name === "sampleRows") return { shape: [batch.rows.length], data: batch.rows };
  const positions = new Int32Array(batch.tokens.length);
  for (let s = 0; s < batch.slots.length; s++) {
    for (let t = batch.tokenStart[s]; t < batch.tokenStart[s + 1]; t++) {
      positions[t] = batch.kvStart[s] + t - batch.tokenStart[s];
    }
  }
  return { shape: [batch.tokens.length], data: positions };
}
