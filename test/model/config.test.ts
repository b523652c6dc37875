// What is read from both kinds of file, that both give the same plan, and what is refused.
import { describe, expect, test } from "vitest";
import { FormatError } from "../../src/base/errors.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import type { Checkpoint, MetaValue, TensorInfo } from "../../src/formats/checkpoint.js";
import { modelConfig } from "../../src/model/config.js";
import { decoderPlan } from "../../src/model/decoder.js";
import type { Plan, Tensor } from "../../src/plan/plan.js";
import { validatePlan } from "../../src/plan/validate.js";
import { asGguf } from "../support/as-gguf.js";
import { limits } from "../support/batch.js";
import { goldenCases, openTiny } from "../support/golden.js";
import { generate } from "../support/tiny.js";

/** The checkpoint with another config. */
async function withConfig(name: string, change: Record<string, unknown>): Promise<Checkpoint> {
  const checkpoint = await openTiny(name);
  if (checkpoint.meta.kind !== "huggingface") throw new Error("not a Hugging Face folder");
  const { files } = checkpoint.meta;
  const meta = { kind: "huggingface", files: { ...files, config: { ...files.config, ...change } } } as const;
  return changed(checkpoint, { meta });
}

async function withMetadata(name: string, change: Record<string, MetaValue | undefined>): Promise<Checkpoint> {
  const checkpoint = asGguf(await openTiny(name));
  if (checkpoint.meta.kind !== "gguf") throw new Error("not a GGUF");
  const values = new Map(checkpoint.meta.values);
  for (const [key, value] of Object.entries(change)) {
    if (value === undefined) values.delete(key);
    else values.set(key, value);
  }
  return changed(checkpoint, { meta: { kind: "gguf", values } });
}

function changed(checkpoint: Checkpoint, change: Partial<Checkpoint>): Checkpoint {
  return {
    meta: checkpoint.meta,
    tensors: checkpoint.tensors,
    fileBytes: checkpoint.fileBytes,
    label: checkpoint.label,
    read: (tensor) => checkpoint.read(tensor),
    release: () => {},
    close: () => {},
    ...change,
  };
}

function planOf(checkpoint: Checkpoint): Plan {
  return decoderPlan(modelConfig(checkpoint), checkpoint.tensors);
}

/** Everything but what the checkpoint calls its tensors, and rope angles to f32. */
function shapeOf(plan: Plan): unknown {
  const tensor = (t: Tensor) => [t.role === "weight" ? "weight" : t.name, t.shape, t.dtype, t.role];
  return {
    caches: plan.caches,
    nodes: plan.nodes.map(({ op, inputs, outputs, params }) => ({
      op: op.name,
      inputs: Object.entries(inputs).map(([name, t]) => [name, tensor(t)]),
      outputs: Object.entries(outputs).map(([name, t]) => [name, tensor(t)]),
      params: { ...params, invFreq: (params.invFreq as number[])?.map((f) => f.toPrecision(6)) },
    })),
  };
}

const families = ["llama-mha", "llama-gqa-llama3rope", "llama-mqa", "mistral-swa", "qwen2", "gemma3", "qwen3-moe"];

describe("a GGUF and a folder of the same model", () => {
  test.each(families)("%s: the same plan and the same tokens", async (name) => {
    const folder = await openTiny(name);
    // the tiny gemma's divisor of queries is none that a GGUF can say
    const own = name === "gemma3" ? await withConfig(name, { query_pre_attn_scalar: 32 }) : folder;
    const gguf = asGguf(folder);
    const plans = [own, gguf].map(planOf);
    for (const plan of plans) validatePlan(plan);
    expect(shapeOf(plans[1])).toEqual(shapeOf(plans[0]));
    const answers: Awaited<ReturnType<typeof generate>>[] = [];
    for (const [i, source] of [own, gguf].entries()) {
      const program = await new ReferenceDevice().compile(plans[i], source, limits, { dump: true });
      answers.push(await generate(program, goldenCases(name)[1].prompt_ids, 6));
    }
    expect(answers[1].tokens).toEqual(answers[0].tokens);
    answers[1].logits.forEach((value, id) => {
      expect(Math.abs(value - answers[0].logits[id])).toBeLessThan(1e-4);
    });
  });
});

describe("both forms of rope settings in config.json", () => {
  test("llama 3 scaling", async () => {
    const four = planOf(await openTiny("llama-gqa-llama3rope"));
    const rope_parameters = {
      rope_theta: 500000,
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 128,
    };
    const five = { rope_parameters, rope_theta: undefined, rope_scaling: undefined };
    expect(shapeOf(planOf(await withConfig("llama-gqa-llama3rope", five)))).toEqual(shapeOf(four));
  });

  test("two bases, and layer_types instead of a pattern", async () => {
    const four = planOf(await openTiny("gemma3"));
    const rope_parameters = {
      full_attention: { rope_type: "linear", factor: 8, rope_theta: 1e6 },
      sliding_attention: { rope_type: "default", rope_theta: 1e4 },
    };
    const [local, full] = ["sliding_attention", "full_attention"];
    const five = {
      ...{ rope_parameters, rope_theta: undefined, rope_scaling: undefined, rope_local_base_freq: undefined },
      ...{ layer_types: [local, local, full, local], sliding_window_pattern: undefined },
    };
    expect(shapeOf(planOf(await withConfig("gemma3", five)))).toEqual(shapeOf(four));
  });
});

describe("windows", () => {
  const windows = (checkpoint: Checkpoint) => modelConfig(checkpoint).layers.map(({ window }) => window ?? 0);

  test("mistral: every layer, or none", async () => {
    expect(windows(await openTiny("mistral-swa"))).toEqual([8, 8, 8]);
    expect(windows(await withConfig("mistral-swa", { sliding_window: null }))).toEqual([0, 0, 0]);
  });

  test("qwen2: from max_window_layers on, if switched on", async () => {
    const on = { use_sliding_window: true, sliding_window: 16, max_window_layers: 1, layer_types: undefined };
    expect(windows(await withConfig("qwen2", on))).toEqual([0, 16, 16]);
    expect(windows(await withConfig("qwen2", { ...on, use_sliding_window: false }))).toEqual([0, 0, 0]);
  });

  test("gemma3: the rope's base and the queries' divisor where config.json does not say are transformers'", async () => {
    const gone = { rope_theta: undefined, rope_parameters: undefined, rope_scaling: undefined, layer_types: undefined };
    const config = modelConfig(await withConfig("gemma3", { ...gone, query_pre_attn_scalar: undefined }));
    expect(config.attentionScale).toBe(256 ** -0.5);
    const { invFreq } = config.layers.find(({ window }) => window === undefined)!.rope;
    expect(invFreq[1]).toBeCloseTo(1_000_000 ** (-1 / invFreq.length), 12);
  });

  test("gemma3: five local, then a global one, where the file does not say", async () => {
    const fields = { num_hidden_layers: 7, sliding_window_pattern: undefined };
    expect(windows(await withConfig("gemma3", fields))).toEqual([8, 8, 8, 8, 8, 0, 8]);
    const gguf = { "gemma3.block_count": 7, "gemma3.attention.sliding_window_pattern": undefined };
    expect(windows(await withMetadata("gemma3", gguf))).toEqual([8, 8, 8, 8, 8, 0, 8]);
  });
});

test.each([
  [
    "an unknown type, with the known ones",
    "llama-mha",
    { model_type: "mystery" },
    /"mystery" is not supported; known: llama, mistral/,
  ],
  [
    "an unknown rope scaling",
    "llama-mha",
    { rope_scaling: { rope_type: "yarn", factor: 4 } },
    /"yarn" is not supported; known: default, linear/,
  ],
  [
    "quantised weights of unknown layout",
    "llama-mha",
    { quantization_config: { quant_method: "gptq" } },
    /quantization_config/,
  ],
  ["experts in a dense family", "llama-mha", { num_local_experts: 8 }, /num_local_experts = 8 is not supported/],
  ["dense layers among experts", "qwen3-moe", { mlp_only_layers: [1] }, /mlp_only_layers = \[1\]/],
  ["shared experts", "qwen3-moe", { shared_expert_intermediate_size: 32 }, /shared_expert_intermediate_size = 32/],
  [
    "more experts a token than there are",
    "qwen3-moe",
    { num_experts_per_tok: 9 },
    /experts a token must be a whole number from 1 to 8/,
  ],
  ["a window in a family without", "llama-mha", { sliding_window: 128 }, /sliding_window is not supported for llama/],
  ["part of a head turned", "llama-mha", { partial_rotary_factor: 0.5 }, /partial_rotary_factor = 0.5/],
  ["capped logits", "qwen2", { final_logit_softcapping: 30 }, /final_logit_softcapping = 30/],
  ["another activation", "llama-mha", { hidden_act: "mish" }, /activation "mish" is not supported; known: silu/],
  [
    "a layer of another kind",
    "qwen2",
    { layer_types: ["full_attention", "linear_attention", "full_attention"] },
    /linear_attention/,
  ],
  ["attention biases where there are none", "mistral-swa", { attention_bias: true }, /attention_bias = true/],
  ["no layers", "llama-mha", { num_hidden_layers: 0 }, /number of layers must be a whole number from 1/],
  ["absurdly many layers", "llama-mha", { num_hidden_layers: 1e9 }, /number of layers must be/],
  ["negative heads", "llama-mha", { num_attention_heads: -4 }, /num_attention_heads must be/],
  ["heads that cannot share", "llama-mha", { num_key_value_heads: 3 }, /4 attention heads cannot share 3/],
  [
    "a head that is a fraction",
    "llama-mha",
    { num_attention_heads: 5, head_dim: undefined },
    /head dimension must be a whole number/,
  ],
  ["an odd head", "llama-mha", { head_dim: 15 }, /15 dimensions of a head cannot be turned/],
  ["a huge head", "llama-mha", { head_dim: 2 ** 30 }, /head dimension must be/],
  [
    "a head that does not fit the tensors",
    "llama-mha",
    { head_dim: 32 },
    /q_proj\.weight is \[64, 64\], the model's configuration wants \[128, 64\]/,
  ],
  ["text for a number", "llama-mha", { hidden_size: "64" }, /hidden_size should be a number, it is "64"/],
  [
    "a missing number",
    "llama-mha",
    { intermediate_size: undefined },
    /intermediate_size should be a number, it is missing/,
  ],
  ["a rope base of nothing", "llama-mha", { rope_theta: 0 }, /rope base must be positive/],
  ["a smaller vocabulary", "llama-mha", { vocab_size: 100 }, /embed_tokens\.weight is \[320, 64\]/],
] as const)("config.json is refused: %s", async (_what, name, change, message) => {
  const checkpoint = await withConfig(name, change);
  expect(() => planOf(checkpoint)).toThrow(FormatError);
  expect(() => planOf(checkpoint)).toThrow(message);
});

test.each([
  [
    "an unknown architecture",
    "llama-mha",
    { "general.architecture": "mystery" },
    /"mystery" is not supported; known: llama, qwen2/,
  ],
  ["none at all", "llama-mha", { "general.architecture": undefined }, /architecture undefined is not supported/],
  [
    "an unknown rope scaling",
    "llama-mha",
    { "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4 },
    /"yarn" is not supported/,
  ],
  ["an unknown setting of attention", "llama-mha", { "llama.attention.clamp_kqv": 8 }, /llama.attention.clamp_kqv = 8/],
  ["experts", "llama-mha", { "llama.expert_count": 8 }, /llama.expert_count = 8 is not supported/],
  ["part of a head turned", "llama-mha", { "llama.rope.dimension_count": 8 }, /rope.dimension_count/],
  [
    "layers of different widths",
    "llama-mha",
    { "llama.feed_forward_length": Int32Array.of(160, 96, 160) },
    /differs from layer to layer/,
  ],
  [
    "a missing size",
    "llama-mha",
    { "llama.embedding_length": undefined },
    /llama.embedding_length should be a number, it is missing/,
  ],
  ["no layers", "llama-mha", { "llama.block_count": 0 }, /number of layers must be/],
  ["one layer fewer than there are tensors", "llama-mha", { "llama.block_count": 2 }, /does not use: blk\.2\./],
  ["one layer more", "llama-mha", { "llama.block_count": 4 }, /no tensor blk\.3\./],
] as const)("GGUF metadata is refused: %s", async (_what, name, change, message) => {
  const checkpoint = await withMetadata(name, change as Record<string, MetaValue | undefined>);
  expect(() => planOf(checkpoint)).toThrow(FormatError);
  expect(() => planOf(checkpoint)).toThrow(message);
});

describe("tensors", () => {
  const edit = async (change: (tensors: Map<string, TensorInfo>) => void) => {
    const checkpoint = await openTiny("llama-mha");
    const tensors = new Map(checkpoint.tensors);
    change(tensors);
    return changed(checkpoint, { tensors });
  };

  test("a missing one is named", async () => {
    const checkpoint = await edit((tensors) => tensors.delete("model.layers.1.mlp.up_proj.weight"));
    expect(() => planOf(checkpoint)).toThrow("the file has no tensor model.layers.1.mlp.up_proj.weight");
  });

  test("unused ones are named, computed tables are not missed", async () => {
    const info = { name: "x", type: "F32", shape: [4], bytes: 16 } as const;
    const table = await edit((tensors) => tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", info));
    expect(() => planOf(table)).not.toThrow();
    const extra = await edit((tensors) => tensors.set("model.layers.0.self_attn.q_norm.weight", info));
    expect(() => planOf(extra)).toThrow(/does not use: model\.layers\.0\.self_attn\.q_norm\.weight/);
  });

  test("an output matrix that is tied to the embedding is not read twice", async () => {
    const folder = await withConfig("llama-mha", { tie_word_embeddings: true });
    const plan = planOf(folder);
    expect(plan.tensors.some(({ name }) => name === "lm_head.weight")).toBe(false);
    expect(plan.nodes.at(-2)?.inputs.weight).toBe(plan.nodes[0].inputs.weight);
  });
});
