// Owns: the forward pass of BERT-type encoders as a Plan, and the checkpoint's names for it. Every token sees every other of
// its text; the last node gives all tokens' states, which the engine pools. Tokens are all of type 0, so the row of that
// type is added to the table of positions once, when it is read (with rotary positions the table is that row alone).
import { FormatError } from "../base/errors.js";
import type { Checkpoint, TensorInfo } from "../formats/checkpoint.js";
import { dequantize } from "../formats/quant/dequantize.js";
import { PlanBuilder } from "../plan/build.js";
import {
  activation,
  add,
  attention,
  cacheWrite,
  embed,
  gatedActivation,
  layerNorm,
  linear,
  rope,
} from "../plan/ops/index.js";
import type { Plan, Range, Tensor } from "../plan/plan.js";
import type { EncoderConfig } from "./encoder-config.js";

/** The last node's output: [tokens, hidden]. */
export const encoderOutput = "hidden";

interface Names {
  readonly words: string;
  readonly types: string;
  readonly positions: string;
  readonly norm: string;
  readonly layer: (layer: number) => string;
  /** q, k and v: three matrices, or one that holds them one after the other. */
  readonly qkv: readonly [string, string, string] | string;
  readonly o: string;
  readonly attentionNorm: string;
  readonly up: string;
  readonly gate: string;
  readonly down: string;
  readonly outputNorm: string;
  /** In the file, and in no forward pass. */
  readonly unused: RegExp;
}

const folderBert: Names = {
  words: "embeddings.word_embeddings",
  types: "embeddings.token_type_embeddings",
  positions: "embeddings.position_embeddings",
  norm: "embeddings.LayerNorm",
  layer: (i) => `encoder.layer.${i}.`,
  qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
  o: "attention.output.dense",
  attentionNorm: "attention.output.LayerNorm",
  up: "intermediate.dense",
  gate: "",
  down: "output.dense",
  outputNorm: "output.LayerNorm",
  unused: /^(embeddings\.position_ids|pooler\.dense\.|cls\.)/,
};

const folderNomic: Names = {
  words: "embeddings.word_embeddings",
  types: "embeddings.token_type_embeddings",
  positions: "",
  norm: "emb_ln",
  layer: (i) => `encoder.layers.${i}.`,
  qkv: "attn.Wqkv",
  o: "attn.out_proj",
  attentionNorm: "norm1",
  up: "mlp.fc11",
  gate: "mlp.fc12",
  down: "mlp.fc2",
  outputNorm: "norm2",
  unused: /^(pooler\.|cls\.)/,
};

const gguf: Names = {
  words: "token_embd",
  types: "token_types",
  positions: "position_embd",
  norm: "token_embd_norm",
  layer: (i) => `blk.${i}.`,
  qkv: ["attn_q", "attn_k", "attn_v"],
  o: "attn_output",
  attentionNorm: "attn_output_norm",
  up: "ffn_up",
  gate: "ffn_gate",
  down: "ffn_down",
  outputNorm: "layer_output_norm",
  unused: /^cls(\.|_)/,
};

function namesOf({ source, kind }: EncoderConfig): Names {
  if (source === "huggingface") return kind === "bert" ? folderBert : folderNomic;
  return kind === "bert" ? gguf : { ...gguf, qkv: "attn_qkv" };
}

/** The table of positions with type 0 in it: made here, in no file. */
const positionTable = "positions with token type 0";

/** A plan over the checkpoint's tensors and one more, and the source that has them all. Throws FormatError for missing,
 *  misshapen and unused tensors. */
export function encoderPlan(config: EncoderConfig, checkpoint: Checkpoint): { plan: Plan; source: Checkpoint } {
  const names = namesOf(config);
  const tensors = new EncoderTensors(checkpoint, names);
  const { hiddenSize, contextLength } = config;
  const table = positionsOf(config, tensors);
  const info: TensorInfo = {
    name: positionTable,
    type: "F32",
    shape: [contextLength, hiddenSize],
    bytes: table.byteLength,
  };
  const source: Checkpoint = {
    meta: checkpoint.meta,
    label: checkpoint.label,
    fileBytes: checkpoint.fileBytes,
    tensors: new Map([...checkpoint.tensors, [positionTable, info]]),
    read: (name) => (name === positionTable ? new Uint8Array(table.buffer) : checkpoint.read(name)),
    release: (name) => name !== positionTable && checkpoint.release(name),
    close: () => checkpoint.close(),
  };
  const plan = forward(config, names, tensors);
  tensors.finish();
  return { plan, source };
}

function forward(config: EncoderConfig, names: Names, tensors: EncoderTensors): Plan {
  const { hiddenSize, intermediateSize, numHeads, contextLength, normEps: eps } = config;
  const headDim = hiddenSize / numHeads;
  const heads = { numKvHeads: numHeads, headDim, vHeadDim: headDim };
  const b = new PlanBuilder(config.vocabSize);
  const positions = b.input("positions");
  const weight = (name: string, shape: readonly number[], rows?: Range) => tensors.weight(b, name, shape, rows);
  const norm = (path: string, name: string, x: Tensor) =>
    b.apply(
      layerNorm,
      path,
      { x, weight: weight(`${name}.weight`, [hiddenSize]), bias: weight(`${name}.bias`, [hiddenSize]) },
      { eps },
    );
  const project = (path: string, name: string, x: Tensor, from: number, to: number, part?: Range) => {
    const whole = part === undefined ? to : 3 * to;
    const bias = tensors.has(`${name}.bias`) ? weight(`${name}.bias`, [whole], part) : undefined;
    return b.apply(linear, path, { x, weight: weight(`${name}.weight`, [whole, from], part), bias }, {});
  };
  const sum = (path: string, a: Tensor, x: Tensor) => b.apply(add, path, { a, b: x }, { alpha: 1, beta: 1 });

  const words = { ids: b.input("tokenIds"), weight: weight(`${names.words}.weight`, [config.vocabSize, hiddenSize]) };
  const places = { ids: positions, weight: tensors.table(b, positionTable, [contextLength, hiddenSize]) };
  const word = b.apply(embed, "words", words, { scale: 1 }); // [tokens, hidden]
  const place = b.apply(embed, "places", places, { scale: 1 });
  let x = norm("embeddings", names.norm, sum("embeddings_sum", word, place));
  for (let i = 0; i < config.numLayers; i++) {
    const at = (path: string) => `layers.${i}.${path}`;
    const of = (name: string) => names.layer(i) + name;
    const cache = b.cache(at("cache"), { kind: "paged", ...heads });
    const [q, k, v] = ["q", "k", "v"].map((one, j) => {
      const { qkv } = names;
      if (typeof qkv !== "string") return project(at(one), of(qkv[j]), x, hiddenSize, hiddenSize);
      const part = { start: j * hiddenSize, end: (j + 1) * hiddenSize };
      return project(at(one), of(qkv), x, hiddenSize, hiddenSize, part);
    });
    const turned = (path: string, y: Tensor) => {
      if (config.rope === undefined) return y;
      const turn = { ...config.rope, rotaryDim: headDim, headDim, numHeads };
      return b.apply(rope, at(path), { x: y, positions }, turn);
    };
    b.node(cacheWrite, at("cache_write"), { k: turned("k_rope", k), v, cache }, heads);
    const seen = { numHeads, ...heads, scale: headDim ** -0.5, causal: false };
    const mixed = b.apply(attention, at("attention"), { q: turned("q_rope", q), cache }, seen); // [tokens, hidden]
    const o = project(at("o"), of(names.o), mixed, hiddenSize, hiddenSize);
    x = norm(at("attention_norm"), of(names.attentionNorm), sum(at("attention_residual"), x, o));
    const up = project(at("up"), of(names.up), x, hiddenSize, intermediateSize); // [tokens, intermediate]
    const kind = config.activation;
    const active =
      config.kind === "bert"
        ? b.apply(activation, at("act"), { x: up }, { kind })
        : b.apply(
            gatedActivation,
            at("act"),
            { gate: project(at("gate"), of(names.gate), x, hiddenSize, intermediateSize), up },
            { kind },
          );
    const down = project(at("down"), of(names.down), active, intermediateSize, hiddenSize);
    const last = i === config.numLayers - 1;
    x = norm(last ? encoderOutput : at("output_norm"), of(names.outputNorm), sum(at("mlp_residual"), x, down));
  }
  return b.finish();
}

/** [contextLength, hidden]: learned positions, or zeros, and type 0. */
function positionsOf(
  { contextLength, hiddenSize, typeRows, rope }: EncoderConfig,
  tensors: EncoderTensors,
): Float32Array {
  const { types, positions } = tensors.names;
  const table =
    rope === undefined
      ? tensors.values(`${positions}.weight`, [contextLength, hiddenSize])
      : new Float32Array(contextLength * hiddenSize);
  if (!tensors.has(`${types}.weight`)) return table;
  const type = tensors.values(`${types}.weight`, [typeRows, hiddenSize]).subarray(0, hiddenSize);
  for (let at = 0; at < table.length; at++) table[at] += type[at % hiddenSize];
  return table;
}

/** The checkpoint's tensors by the names above; a folder's may stand below "bert.". */
class EncoderTensors {
  private readonly used = new Set<string>();
  private readonly prefix: string;

  constructor(
    private readonly checkpoint: Checkpoint,
    readonly names: Names,
  ) {
    this.prefix = checkpoint.tensors.has(`bert.${names.words}.weight`) ? "bert." : "";
  }

  has(name: string): boolean {
    return this.checkpoint.tensors.has(this.prefix + name);
  }

  /** shape: of the whole tensor; rows: of it, these. */
  weight(b: PlanBuilder, name: string, shape: readonly number[], rows?: Range): Tensor {
    const { type } = this.info(name, shape);
    const [height, width = 1] = shape;
    const piece = { name: this.prefix + name, type, shape: [height, width] as const };
    if (rows === undefined) return b.weight(name, shape, [piece]);
    const part = [rows.end - rows.start, ...shape.slice(1)];
    return b.weight(`${name}[${rows.start}:${rows.end}]`, part, [{ ...piece, rows }]);
  }

  /** The one that no file has. */
  table(b: PlanBuilder, name: string, shape: readonly [number, number]): Tensor {
    return b.weight(name, shape, [{ name, type: "F32", shape }]);
  }

  values(name: string, shape: readonly number[]): Float32Array {
    const { type } = this.info(name, shape);
    const out = new Float32Array(shape.reduce((a, b) => a * b, 1));
    dequantize(type, this.checkpoint.read(this.prefix + name), out);
    return out;
  }

  finish(): void {
    const left = [...this.checkpoint.tensors.keys()].filter(
      (name) =>
        !this.used.has(name) &&
        !this.names.unused.test(name.slice(name.startsWith(this.prefix) ? this.prefix.length : 0)),
    );
    if (left.length === 0) return;
    throw new FormatError(`the file has tensors that this encoder does not use: ${left.slice(0, 8).join(", ")}`);
  }

  private info(name: string, shape: readonly number[]): TensorInfo {
    const info = this.checkpoint.tensors.get(this.prefix + name);
    if (!info) throw new FormatError(`the file has no tensor ${this.prefix}${name}`);
    if (info.shape.length !== shape.length || info.shape.some((length, i) => length !== shape[i])) {
      throw new FormatError(
        `tensor ${name} is [${info.shape.join(", ")}], the model's configuration wants [${shape.join(", ")}]`,
      );
    }
    this.used.add(this.prefix + name);
    return info;
  }
}
