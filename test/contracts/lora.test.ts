// An adapter in a slot computes what weights with the adapter added in compute; sequences without it do not change.
import { expect, test } from "vitest";
import type { AdapterSource } from "../../src/device/device.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import { materialise } from "../../src/device/reference/weights.js";
import { assemble } from "../../src/plan/build.js";
import { adapterSites, withAdapters } from "../../src/plan/passes/lora.js";
import type { Plan } from "../../src/plan/plan.js";
import { batchOf, limits, PageKeeper, updates } from "../support/batch.js";
import { expectClose } from "../support/bounds.js";
import { describeDevices } from "../support/devices.js";
import { goldenCases } from "../support/golden.js";
import { seededRandom } from "../support/random.js";
import { compileTiny, generate, type Tiny } from "../support/tiny.js";
import { MemoryWeights } from "../support/weights.js";

type Answer = Awaited<ReturnType<typeof generate>>;

const rank = 4;
const prompt = goldenCases("llama-mha")[1].prompt_ids;

function adapterFor(plan: Plan): AdapterSource {
  const random = seededRandom(5);
  const factor = (rows: number, cols: number) => ({
    shape: [rows, cols],
    data: Float32Array.from({ length: rows * cols }, () => 0.1 * random.normal()),
  });
  const sites = [...adapterSites(plan)].map(([site, [out, into]]) => {
    return [site, { a: factor(rank, into), b: factor(out, rank) }] as const;
  });
  return { sites: new Map(sites), scale: 0.5 };
}

/** The checkpoint with W + scale · B A in place of each W that the adapter changes. */
function merged({ checkpoint, plan }: Tiny, adapter: AdapterSource): MemoryWeights {
  const weights = new MemoryWeights();
  for (const node of plan.nodes) {
    for (const tensor of Object.values(node.inputs)) {
      if (tensor.role !== "weight" || weights.tensors.has(tensor.name)) continue;
      const values = materialise(tensor, checkpoint);
      const factors = node.op.name === "linear" ? adapter.sites.get(node.outputs.y.name) : undefined;
      const [rows, cols] = tensor.shape as number[];
      for (let o = 0; factors && o < rows; o++) {
        for (let i = 0; i < cols; i++) {
          let sum = 0;
          for (let j = 0; j < rank; j++) sum += factors.b.data[o * rank + j] * factors.a.data[j * cols + i];
          values[o * cols + i] += adapter.scale * sum;
        }
      }
      weights.floats(tensor.name, tensor.shape as number[], values);
    }
  }
  return weights;
}

/** The plan with F32 recipes, for merged weights. */
function inFloats(plan: Plan): Plan {
  const nodes = plan.nodes.map((node) => ({
    ...node,
    inputs: Object.fromEntries(Object.entries(node.inputs).map(([name, t]) => [name, t.from ? floatTensor(t) : t])),
  }));
  return assemble({ ...plan, nodes });
}

function floatTensor(tensor: Plan["tensors"][number]): Plan["tensors"][number] {
  const [rows, cols = 1] = tensor.shape as number[];
  return { ...tensor, from: [{ name: tensor.name, type: "F32", shape: [rows, cols] }] };
}

await describeDevices("adapters", (device, _arithmetic, kept) => {
  /** Where values are kept in fewer bits than the truth's, near it is all they can be. */
  const same = (answer: Answer, truth: Answer) => {
    const shape = [1, truth.logits.length];
    const bound = kept > 0 ? 3 * kept : 2e-5;
    expectClose({ shape, data: answer.logits }, { shape, data: truth.logits }, bound, "logits");
    if (kept === 0) expect(answer.tokens).toEqual(truth.tokens);
  };

  test("an adapter in a slot equals merged weights", async () => {
    const tiny = await compileTiny(device, "llama-mha", {}, withAdapters);
    const adapter = adapterFor(tiny.plan);
    await tiny.program.loadAdapter(1, adapter);
    const adapted = await generate(tiny.program, prompt, 8, { adapter: 1 });
    const plain = await compileTiny(device, "llama-mha");
    const mergedProgram = await new ReferenceDevice().compile(inFloats(tiny.plan), merged(tiny, adapter), limits, {
      dump: true,
    });
    const truth = await generate(mergedProgram, prompt, 8);
    same(adapted, truth);
    const base = await generate(plain.program, prompt, 8);
    expect(base.tokens).not.toEqual(adapted.tokens);
    same(await generate(tiny.program, prompt, 8), base);
  });

  test("an adapter and what its slot was told outlive sleep", async () => {
    const { program, plan } = await compileTiny(device, "llama-mha", {}, withAdapters);
    await program.loadAdapter(1, adapterFor(plan));
    const before = await generate(program, prompt, 1, { adapter: 1 });
    await program.sleep();
    await program.wake();
    const pages = new PageKeeper(program).take(prompt.length);
    await program.run(batchOf([{ slot: 0, tokens: prompt, kvStart: 0, pages }])).result;
    expect((await program.dump("logits")).data).toEqual(before.logits);
    await program.close();
  });

  test("sequences with and without the adapter in one step do not touch each other", async () => {
    const { program, plan } = await compileTiny(device, "llama-mha", {}, withAdapters);
    await program.loadAdapter(0, adapterFor(plan));
    const alone = [await generate(program, prompt, 1), await generate(program, prompt, 1, { adapter: 0 })];
    const keeper = new PageKeeper(program);
    const parts = [0, 1].map((slot) => ({ slot, tokens: prompt, kvStart: 0, pages: keeper.take(prompt.length) }));
    await program.run(
      batchOf(parts, {
        updates: updates([
          [0, {}],
          [1, { adapter: 0 }],
        ]),
      }),
    ).result;
    const both = (await program.dump("logits")).data;
    expect(both.slice(0, program.vocabSize)).toEqual(alone[0].logits);
    expect(both.slice(program.vocabSize)).toEqual(alone[1].logits);
  });

  test("a freed slot, an unknown site and another model's adapter are errors", async () => {
    const { program, plan } = await compileTiny(device, "llama-mha", {}, withAdapters);
    await program.loadAdapter(0, adapterFor(plan));
    await program.loadAdapter(0, null);
    await expect(generate(program, prompt, 1, { adapter: 0 })).rejects.toThrow(/adapter slot 0 is empty/);
    const one = { shape: [1, 1], data: new Float32Array(1) };
    const load = (site: string) => program.loadAdapter(0, { sites: new Map([[site, { a: one, b: one }]]), scale: 1 });
    expect(() => load("layers.0.nowhere")).toThrow(/layers\.0\.nowhere, which is not a linear layer/);
    expect(() => load("layers.0.self_attn.q_proj")).toThrow(/is \[64, 64\] here, the adapter's is \[1, 1\]/);
  });
});
