// Owns: a tiny model of the llama architecture in a GGUF, with random weights of any storage type and a byte-level
// vocabulary with a chat template, so that it opens, tokenizes and generates (nonsense) like a real one.
import { blocks, type StorageType } from "../../src/base/dtype.js";
import { type MetaInput, randomWeights, type TensorInput, writeGguf } from "./gguf-writer.js";
import { seededRandom } from "./random.js";

export interface TinyLlama {
  /** Of every matrix; default F32. Norms are F32. */
  readonly type?: StorageType;
  readonly embeddingType?: StorageType;
  readonly outputType?: StorageType;
  /** No output.weight: the embedding serves. */
  readonly tied?: boolean;
  readonly layers?: number;
  /** A multiple of 256 for the K types, of 32 for the other quantised ones; so is feedForward. */
  readonly hidden?: number;
  readonly feedForward?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly contextLength?: number;
  readonly seed?: number;
  /** Set over the metadata, or undefined to leave a key out. */
  readonly meta?: Readonly<Record<string, MetaInput | undefined>>;
}

const chatTemplate =
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/** GPT-2's table: the character that stands for a byte in a byte-level vocabulary. */
export function byteCharacters(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

const merges = [
  "Ġ t",
  "h e",
  "i n",
  "r e",
  "o n",
  "Ġt he",
  "e r",
  "Ġ a",
  "a t",
  "Ġ s",
  "e n",
  "o r",
  "n d",
  "Ġ o",
  "e s",
  "Ġ w",
  "i s",
  "Ġ b",
  "o u",
  "Ġa nd",
  "l l",
  "Ġ c",
  "Ġo f",
  "in g",
  "Ġ f",
  "H e",
  "He ll",
  "Hell o",
  "Ġ m",
];

/** 288 tokens: the bytes, 29 merges, then <|endoftext|> 285, <|im_start|> 286 and <|im_end|> 287. */
export function tinyVocabulary(): Record<string, MetaInput> {
  const special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
  const tokens = [...byteCharacters(), ...merges.map((merge) => merge.replace(" ", "")), ...special];
  const types = Int32Array.from(tokens, (_, id) => (id >= tokens.length - special.length ? 3 : 1));
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.merges": merges,
    "tokenizer.ggml.bos_token_id": tokens.length - 3,
    "tokenizer.ggml.eos_token_id": tokens.length - 1,
    "tokenizer.ggml.padding_token_id": tokens.length - 3,
    "tokenizer.ggml.add_bos_token": false,
    "tokenizer.chat_template": chatTemplate,
  };
}

export function writeTinyLlamaGguf(path: string, o: TinyLlama = {}): void {
  const { type = "F32", layers = 2, hidden = 256, feedForward = 512, heads = 4, kvHeads = 2, seed = 1 } = o;
  const { embeddingType = type, outputType = type, tied = false, contextLength = 512 } = o;
  const random = seededRandom(seed);
  const vocabulary = tinyVocabulary();
  const vocabSize = (vocabulary["tokenizer.ggml.tokens"] as string[]).length;
  const headDim = hidden / heads;
  const tensors: TensorInput[] = [];
  const matrix = (name: string, rows: number, cols: number, as: StorageType = type, rms = 1 / Math.sqrt(cols)) => {
    if (cols % blocks[as].values !== 0) throw new Error(`${name}: ${cols} columns are not whole ${as} blocks`);
    tensors.push({ name, type: as, shape: [rows, cols], data: randomWeights(as, rows * cols, random, rms) });
  };
  const norm = (name: string) => {
    const values = Float32Array.from({ length: hidden }, () => 1 + 0.1 * random.normal());
    tensors.push({ name, type: "F32", shape: [hidden], data: new Uint8Array(values.buffer) });
  };
  matrix("token_embd.weight", vocabSize, hidden, embeddingType, 1);
  for (let layer = 0; layer < layers; layer++) {
    const at = `blk.${layer}`;
    norm(`${at}.attn_norm.weight`);
    matrix(`${at}.attn_q.weight`, hidden, hidden);
    matrix(`${at}.attn_k.weight`, kvHeads * headDim, hidden);
    matrix(`${at}.attn_v.weight`, kvHeads * headDim, hidden);
    matrix(`${at}.attn_output.weight`, hidden, hidden);
    norm(`${at}.ffn_norm.weight`);
    matrix(`${at}.ffn_gate.weight`, feedForward, hidden);
    matrix(`${at}.ffn_up.weight`, feedForward, hidden);
    matrix(`${at}.ffn_down.weight`, hidden, feedForward);
  }
  norm("output_norm.weight");
  if (!tied) matrix("output.weight", vocabSize, hidden, outputType, 4 / Math.sqrt(hidden));
  const meta: Record<string, MetaInput | undefined> = {
    "general.architecture": "llama",
    "general.name": `tiny llama ${type}`,
    "llama.vocab_size": vocabSize,
    "llama.context_length": contextLength,
    "llama.embedding_length": hidden,
    "llama.block_count": layers,
    "llama.feed_forward_length": feedForward,
    "llama.attention.head_count": heads,
    "llama.attention.head_count_kv": kvHeads,
    "llama.attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-5 },
    "llama.rope.dimension_count": headDim,
    "llama.rope.freq_base": { type: "f32", value: 10000 },
    ...vocabulary,
    ...o.meta,
  };
  const present = Object.entries(meta).filter((pair): pair is [string, MetaInput] => pair[1] !== undefined);
  writeGguf(path, { meta: present, tensors });
}
