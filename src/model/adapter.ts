// Owns: reading LoRA adapters: PEFT's tensors and llama.cpp's GGUF ones → factors by the sites of a plan. Refuses what
// would change the model in another way than y + scale · B (A x).
// Source: PEFT's LoraConfig; llama.cpp's convert_lora_to_gguf.py.
import { FormatError } from "../base/errors.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { dequantize } from "../formats/quant/dequantize.js";
import type { HostTensor } from "../plan/op.js";
import type { ModelConfig } from "./config.js";
import { moduleOfGguf } from "./weights.js";

/** What a device loads (AdapterSource). */
export interface LoraAdapter {
  /** By the linear's path in the plan. a: [rank, in], b: [out, rank]. */
  readonly sites: ReadonlyMap<string, { a: HostTensor<Float32Array>; b: HostTensor<Float32Array> }>;
  readonly scale: number;
}

interface Naming {
  /** The site and factor that a tensor is. Throws FormatError for what is none. */
  readonly site: (tensor: string) => { site: string; factor: "a" | "b" };
  /** Of a site with this rank. */
  readonly scale: (rank: number) => number;
}

/** config: of the model that the adapter is for. Scales are in the factors. Throws FormatError. */
export function loraAdapter(checkpoint: Checkpoint, config: ModelConfig): LoraAdapter {
  const naming = checkpoint.meta.kind === "gguf" ? ggufNaming(checkpoint, config) : peftNaming(checkpoint);
  const halves = new Map<string, { a?: HostTensor<Float32Array>; b?: HostTensor<Float32Array> }>();
  for (const name of checkpoint.tensors.keys()) {
    const { site, factor } = naming.site(name);
    const pair = halves.get(site) ?? {};
    pair[factor] = read(checkpoint, name);
    halves.set(site, pair);
  }
  const sites = new Map<string, { a: HostTensor<Float32Array>; b: HostTensor<Float32Array> }>();
  for (const [site, { a, b }] of halves) {
    if (!a || !b) throw new FormatError(`the adapter has only one of the two factors of ${site}`);
    const rank = a.shape[0];
    if (b.shape[1] !== rank)
      throw new FormatError(`the adapter's factors of ${site} are of rank ${rank} and ${b.shape[1]}`);
    const scale = naming.scale(rank);
    const ordered = checkpoint.meta.kind === "gguf" ? unpermuted(b, site, config) : b;
    sites.set(site, { a, b: { shape: b.shape, data: ordered.data.map((value) => scale * value) } });
  }
  if (sites.size === 0) throw new FormatError("the adapter has no tensors");
  return { sites, scale: 1 };
}

function read(checkpoint: Checkpoint, name: string): HostTensor<Float32Array> {
  const { type, shape } = checkpoint.tensors.get(name)!;
  if (shape.length !== 2) throw new FormatError(`the adapter's ${name} is no matrix`);
  const data = new Float32Array(shape[0] * shape[1]);
  dequantize(type, checkpoint.read(name), data);
  return { shape: [...shape], data };
}

function peftNaming({ meta }: Checkpoint): Naming {
  const config = (meta.kind === "huggingface" ? meta.files.config : {}) as Record<string, unknown>;
  if (config.peft_type !== "LORA") {
    throw new FormatError(`the adapter is of type ${JSON.stringify(config.peft_type)}; LORA can be used`);
  }
  // Each of these changes the model in another way; what they are is harmless.
  const neutral: Record<string, unknown> = {
    use_dora: false,
    bias: "none",
    modules_to_save: null,
    fan_in_fan_out: false,
    trainable_token_indices: null,
  };
  for (const [key, harmless] of Object.entries(neutral)) {
    const value = config[key] ?? harmless;
    const empty = Array.isArray(value) && value.length === 0;
    if (value !== harmless && !empty)
      throw new FormatError(`adapter_config.json: ${key} = ${JSON.stringify(value)} is not supported`);
  }
  if (Object.keys((config.alpha_pattern as object | undefined) ?? {}).length > 0) {
    throw new FormatError("adapter_config.json: an alpha_pattern is not supported");
  }
  const alpha = config.lora_alpha;
  if (typeof alpha !== "number") throw new FormatError("adapter_config.json says no lora_alpha");
  const pattern = /^base_model\.model\.(?:model\.)?(layers\.\d+\..+)\.lora_([AB])(?:\.default)?\.weight$/;
  return {
    scale: (rank) => alpha / (config.use_rslora === true ? Math.sqrt(rank) : rank),
    site: (tensor) => {
      const match = pattern.exec(tensor);
      if (!match) throw new FormatError(`the adapter's ${tensor} is not one of the two factors of a layer's linear`);
      return { site: match[1], factor: match[2] === "A" ? "a" : "b" };
    },
  };
}

function ggufNaming({ meta }: Checkpoint, config: ModelConfig): Naming {
  const values = meta.kind === "gguf" ? meta.values : new Map();
  const kind = values.get("general.type");
  if (kind !== "adapter" || values.get("adapter.type") !== "lora") {
    throw new FormatError(`the file is no LoRA adapter: its general.type is ${JSON.stringify(kind)}`);
  }
  const architecture = values.get("general.architecture");
  const { architectures } = config.family;
  if (architecture !== (architectures[0] ?? "llama") && !architectures.includes(String(architecture))) {
    throw new FormatError(`the adapter is for a ${String(architecture)} model, this one is ${config.family.name}`);
  }
  const alpha = values.get("adapter.lora.alpha");
  if (typeof alpha !== "number") throw new FormatError("the adapter says no adapter.lora.alpha");
  return {
    scale: (rank) => alpha / rank,
    site: (tensor) => {
      const match = /^(.+)\.lora_([ab])$/.exec(tensor);
      const site = match && moduleOfGguf(match[1], config.family.postNorms);
      if (!match || !site)
        throw new FormatError(`the adapter's ${tensor} is not one of the two factors of a layer's linear`);
      return { site, factor: match[2] as "a" | "b" };
    },
  };
}

/** Rows as the plan has them: see WeightTransform's unpermute. */
function unpermuted(b: HostTensor<Float32Array>, site: string, config: ModelConfig): HostTensor<Float32Array> {
  const module = site.replace(/^layers\.\d+\./, "");
  const heads = { "self_attn.q_proj": config.numHeads, "self_attn.k_proj": config.numKvHeads }[module];
  if (!config.family.permutedInGguf || heads === undefined) return b;
  const [rows, rank] = b.shape;
  const head = rows / heads;
  const data = new Float32Array(b.data.length);
  for (let row = 0; row < rows; row++) {
    const within = row % head;
    const target = row - within + (within % 2) * (head / 2) + (within >> 1);
    data.set(b.data.subarray(row * rank, (row + 1) * rank), target * rank);
  }
  return { shape: b.shape, data };
}
