// Fusion changes the list of nodes and nothing that is computed.
import { describe, expect, test } from "vitest";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import { PlanBuilder } from "../../src/plan/build.js";
import { add, embed, gatedActivation, linear, rmsNorm } from "../../src/plan/ops/index.js";
import { fuse } from "../../src/plan/passes/fuse.js";
import { withAdapters } from "../../src/plan/passes/lora.js";
import type { Plan, Tensor } from "../../src/plan/plan.js";
import { validatePlan } from "../../src/plan/validate.js";
import { limits } from "../support/batch.js";
import { goldenCases, openTiny } from "../support/golden.js";
import { generate } from "../support/tiny.js";

const everything = new ReferenceDevice().info.ops;

async function tinyPlan(name: string): Promise<Plan> {
  const checkpoint = await openTiny(name);
  return decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
}

const opsOf = (plan: Plan) => plan.nodes.map((node) => node.op.name);
const count = (plan: Plan, op: string) => opsOf(plan).filter((name) => name === op).length;

describe("a fused plan", () => {
  test.each(["llama-mha", "llama-mqa", "qwen2", "gemma3"])("%s: the same logits to the bit", async (name) => {
    const checkpoint = await openTiny(name);
    const plain = await tinyPlan(name);
    const prompt = goldenCases(name)[1].prompt_ids;
    const answers: Awaited<ReturnType<typeof generate>>[] = [];
    for (const plan of [plain, fuse(plain, everything)]) {
      validatePlan(plan);
      const program = await new ReferenceDevice().compile(plan, checkpoint, limits, { dump: true });
      answers.push(await generate(program, prompt, 4));
    }
    expect(answers[1]).toEqual(answers[0]);
  });

  test("of a llama layer has seven nodes", async () => {
    const plan = fuse(await tinyPlan("llama-mha"), everything);
    const layer = ["linear", "qkvRopeCache", "attention", "linear", "addNorm", "gatedLinear", "linear"];
    expect(opsOf(plan)).toEqual([
      ...["embed", "rmsNorm", ...layer],
      ...["addNorm", ...layer],
      ...["addNorm", ...layer],
      ...["add", "gatherRows", "rmsNorm", "logits", "sample"],
    ]);
    const qkv = plan.nodes[2].inputs;
    expect(qkv.weight.shape).toEqual([192, 64]);
    expect(qkv.weight.from?.map((piece) => piece.name.split(".").at(-2))).toEqual(["q_proj", "k_proj", "v_proj"]);
    expect(plan.nodes[2].outputs.y.name).toBe("layers.0.self_attn.qkv_proj");
  });

  test("has only what the device takes", async () => {
    const plain = await tinyPlan("gemma3");
    expect(opsOf(fuse(plain, new Set()))).toEqual(opsOf(plain));
    const some = fuse(plain, new Set(["gatedLinear"]));
    expect([count(some, "gatedLinear"), count(some, "addNorm"), count(some, "qkvRopeCache")]).toEqual([4, 0, 0]);
  });

  test("leaves linears alone that an adapter may change", async () => {
    const plan = fuse(withAdapters(await tinyPlan("llama-mha")), everything);
    validatePlan(plan);
    expect([count(plan, "gatedLinear"), count(plan, "qkvRopeCache")]).toEqual([0, 0]);
    expect(count(plan, "lora")).toBe(count(plan, "linear"));
  });
});

describe("patterns that do not fit stay", () => {
  const build = (recipe: (b: PlanBuilder, x: Tensor, weight: (name: string, n: number) => Tensor) => void) => {
    const b = new PlanBuilder(8);
    const weight = (name: string, n: number) => {
      const piece = { name, type: "F32", shape: [n, n === 4 ? 1 : 4] } as const;
      return b.weight(name, n === 4 ? [4] : [n, 4], [piece]);
    };
    const x = b.apply(embed, "x", { ids: b.input("tokenIds"), weight: weight("table", 8) }, { scale: 1 });
    recipe(b, x, weight);
    return b.finish();
  };

  test("a sum that is read before its norm", () => {
    const plan = build((b, x, weight) => {
      const sum = b.apply(add, "sum", { a: x, b: x }, { alpha: 1, beta: 1 });
      b.apply(add, "early", { a: sum, b: x }, { alpha: 1, beta: 1 });
      b.apply(rmsNorm, "y", { x: sum, weight: weight("norm", 4) }, { eps: 1e-5, groups: 1 });
    });
    expect(opsOf(fuse(plan, everything))).toEqual(["embed", "add", "add", "rmsNorm"]);
  });

  test("a gate that someone else reads, and gate and up of different inputs", () => {
    const read = build((b, x, weight) => {
      const gate = b.apply(linear, "gate", { x, weight: weight("g", 12) }, {});
      const up = b.apply(linear, "up", { x, weight: weight("u", 12) }, {});
      b.apply(gatedActivation, "act", { gate, up }, { kind: "silu" });
      b.apply(add, "other", { a: gate, b: up }, { alpha: 1, beta: 1 });
    });
    expect(opsOf(fuse(read, everything))).toEqual(opsOf(read));
    const different = build((b, x, weight) => {
      const z = b.apply(add, "z", { a: x, b: x }, { alpha: 1, beta: 1 });
      const gate = b.apply(linear, "gate", { x, weight: weight("g", 12) }, {});
      const up = b.apply(linear, "up", { x: z, weight: weight("u", 12) }, {});
      b.apply(gatedActivation, "act", { gate, up }, { kind: "silu" });
    });
    expect(opsOf(fuse(different, everything))).toEqual(opsOf(different));
  });
});
