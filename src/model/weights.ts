// Owns: the checkpoint's names: which tensor a module's weight is, in both kinds of file, with what it takes to make it
// what the plan wants (rows put back in order, 1 added). Checks every shape against the config, and that no tensor is
// left over: an unused tensor means that the model computes something we do not.
import { FormatError } from "../base/errors.js";
import type { TensorInfo } from "../formats/checkpoint.js";
import type { PlanBuilder } from "../plan/build.js";
import type { Tensor, WeightPiece, WeightTransform } from "../plan/plan.js";
import type { ModelConfig } from "./config.js";
import { ropeFactors } from "./config-gguf.js";

/** Hugging Face's module names (of a layer, where a layer is given) → GGUF's. */
const ggufNames: Readonly<Record<string, string>> = {
  embed_tokens: "token_embd",
  norm: "output_norm",
  lm_head: "output",
  input_layernorm: "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  post_attention_layernorm: "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "mlp.gate": "ffn_gate_inp",
  "mlp.experts.gate_proj": "ffn_gate_exps",
  "mlp.experts.up_proj": "ffn_up_exps",
  "mlp.experts.down_proj": "ffn_down_exps",
};

/** In families with norms after attention and MLP the word post_attention_layernorm means another norm. */
const ggufNamesPostNorms: Readonly<Record<string, string>> = {
  ...ggufNames,
  post_attention_layernorm: "post_attention_norm",
  pre_feedforward_layernorm: "ffn_norm",
  post_feedforward_layernorm: "post_ffw_norm",
};

/** Hugging Face's module of a GGUF tensor ("blk.3.attn_q.weight" is "layers.3.self_attn.q_proj"); undefined: not of a layer. */
export function moduleOfGguf(name: string, postNorms: boolean): string | undefined {
  const match = /^blk\.(\d+)\.(\w+)\.weight$/.exec(name);
  const names = Object.entries(postNorms ? ggufNamesPostNorms : ggufNames);
  const module = match && names.find(([, gguf]) => gguf === match[2])?.[0];
  return module ? `layers.${match[1]}.${module}` : undefined;
}

/** Tensors that checkpoints carry and no forward pass reads: tables that are computed, an output matrix that is tied. */
const knownUnused = [/\.rotary_emb\.inv_freq$/, /\.attn_rot_embd$/, /\.attn\.(masked_)?bias$/];

/** A checkpoint's tensors, or whatever answers for one of this name and shape (random.ts). */
export interface TensorLookup {
  get(name: string, shape: readonly number[]): TensorInfo | undefined;
  keys(): Iterable<string>;
}

export class Weights {
  private readonly used = new Set<string>();
  private readonly gguf: Readonly<Record<string, string>>;

  constructor(
    private readonly builder: PlanBuilder,
    private readonly tensors: TensorLookup,
    private readonly config: ModelConfig,
  ) {
    this.gguf = config.family.postNorms ? ggufNamesPostNorms : ggufNames;
    if (config.source === "gguf") this.used.add(ropeFactors);
  }

  /** The weight of a linear layer or an embedding: [rows = out, cols = in]. */
  matrix(module: string, layer: number | undefined, rows: number, cols: number): Tensor {
    return this.tensor(this.name(module, layer, "weight"), [rows, cols], this.reordering(module));
  }

  /** One linear of all experts, stacked: [count × rows, cols]. GGUF has them in one tensor [count, rows, cols], Hugging Face
   *  in one each ("mlp.experts.3.up_proj"). */
  experts(module: string, layer: number, count: number, rows: number, cols: number): Tensor {
    const stacked = this.name(`mlp.experts.${module}`, layer, "weight");
    const from =
      this.config.source === "gguf"
        ? [{ ...this.piece(stacked, [count, rows, cols]), shape: [count * rows, cols] as const }]
        : Array.from({ length: count }, (_, j) =>
            this.piece(this.name(`mlp.experts.${j}.${module}`, layer, "weight"), [rows, cols]),
          );
    return this.builder.weight(stacked, [count * rows, cols], from);
  }

  bias(module: string, layer: number, length: number): Tensor {
    return this.tensor(this.name(module, layer, "bias"), [length], this.reordering(module));
  }

  norm(module: string, layer: number | undefined, length: number): Tensor {
    const minusOne = this.config.family.normsMinusOne && this.config.source === "huggingface";
    return this.tensor(this.name(module, layer, "weight"), [length], minusOne ? { kind: "addOne" } : undefined);
  }

  /** Throws FormatError for tensors that the plan has not asked for. */
  finish(): void {
    const tied = this.config.tiedEmbeddings ? this.name("lm_head", undefined, "weight") : undefined;
    const left = [...this.tensors.keys()].filter(
      (name) => !this.used.has(name) && name !== tied && !knownUnused.some((pattern) => pattern.test(name)),
    );
    if (left.length === 0) return;
    const more = left.length > 8 ? ` and ${left.length - 8} more` : "";
    throw new FormatError(
      `the file has tensors that a ${this.config.family.name} model does not use: ${left.slice(0, 8).join(", ")}${more}`,
    );
  }

  private name(module: string, layer: number | undefined, kind: "weight" | "bias"): string {
    if (this.config.source === "gguf") {
      return `${layer === undefined ? "" : `blk.${layer}.`}${this.gguf[module]}.${kind}`;
    }
    if (module === "lm_head") return `lm_head.${kind}`;
    return `model.${layer === undefined ? "" : `layers.${layer}.`}${module}.${kind}`;
  }

  private reordering(module: string): WeightTransform | undefined {
    const { family, source, numHeads, numKvHeads } = this.config;
    if (!family.permutedInGguf || source !== "gguf") return undefined;
    if (module === "self_attn.q_proj") return { kind: "unpermute", heads: numHeads };
    if (module === "self_attn.k_proj") return { kind: "unpermute", heads: numKvHeads };
    return undefined;
  }

  private tensor(name: string, shape: readonly number[], transform: WeightTransform | undefined): Tensor {
    const piece = this.piece(name, shape);
    return this.builder.weight(name, shape, [transform ? { ...piece, transform } : piece]);
  }

  /** The whole of the checkpoint's tensor, which must have this shape. */
  private piece(name: string, shape: readonly number[]): WeightPiece {
    const info = this.tensors.get(name, shape);
    if (!info) throw new FormatError(`the file has no tensor ${name}`);
    if (info.shape.length !== shape.length || info.shape.some((length, i) => length !== shape[i])) {
      throw new FormatError(
        `tensor ${name} is [${info.shape.join(", ")}], the model's configuration wants [${shape.join(", ")}]`,
      );
    }
    this.used.add(name);
    return { name, type: info.type, shape: [shape[0], shape[1] ?? 1] };
  }
}
