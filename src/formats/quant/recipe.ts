// Owns: which storage type each tensor of a quantised GGUF model gets: llama.cpp's mixtures, by the tensor's GGUF name.
// Source: llama.cpp, src/llama-quant.cpp.
import { blocks, type StorageType } from "../../base/dtype.js";
import { UserError } from "../../base/errors.js";

interface Recipe {
  readonly base: StorageType;
  /** general.file_type. */
  readonly fileType: number;
  /** What a third of the layers' value and down projections get: the first and last eighth, and every third between. */
  readonly more?: StorageType;
  /** What the first layers' value and down projections get. */
  readonly first?: StorageType;
}

const recipes = {
  f32: { base: "F32", fileType: 0 },
  f16: { base: "F16", fileType: 1 },
  bf16: { base: "BF16", fileType: 32 },
  q4_0: { base: "Q4_0", fileType: 2 },
  q4_1: { base: "Q4_1", fileType: 3 },
  q5_0: { base: "Q5_0", fileType: 8 },
  q5_1: { base: "Q5_1", fileType: 9 },
  q8_0: { base: "Q8_0", fileType: 7 },
  q4_k_s: { base: "Q4_K", fileType: 14, first: "Q5_K" },
  q4_k_m: { base: "Q4_K", fileType: 15, more: "Q6_K" },
  q5_k_s: { base: "Q5_K", fileType: 16 },
  q5_k_m: { base: "Q5_K", fileType: 17, more: "Q6_K" },
  q6_k: { base: "Q6_K", fileType: 18 },
} as const satisfies Record<string, Recipe>;

export type Quantisation = keyof typeof recipes;

export const quantisations = Object.keys(recipes) as Quantisation[];

/** As people write it: "q4_K_M". Throws UserError for what is not known. */
export function parseQuantisation(text: string): Quantisation {
  const name = text.toLowerCase() as Quantisation;
  if (quantisations.includes(name)) return name;
  throw new UserError(`there is no quantisation ${JSON.stringify(text)}; known: ${quantisations.join(", ")}`, {
    param: "quantize",
  });
}

export const fileType = (quantisation: Quantisation): number => recipes[quantisation].fileType;

/** Where rows are no whole number of a type's blocks. */
const narrower: Partial<Record<StorageType, StorageType>> = { Q4_K: "Q5_0", Q5_K: "Q5_1", Q6_K: "Q8_0" };

/** layers: of the model; tied: the embedding is the output matrix too. Vectors and routers stay F32. */
export function storageFor(
  quantisation: Quantisation,
  name: string,
  shape: readonly number[],
  model: { readonly layers: number; readonly tied: boolean },
): StorageType {
  if (shape.length < 2 || name.endsWith("ffn_gate_inp.weight")) return "F32";
  const type = wanted(recipes[quantisation], name, model);
  const cols = shape[shape.length - 1];
  const fits = (one: StorageType) => cols % blocks[one].values === 0;
  if (fits(type)) return type;
  const instead = narrower[type];
  return instead && fits(instead) ? instead : "F16";
}

function wanted(recipe: Recipe, name: string, { layers, tied }: { layers: number; tied: boolean }): StorageType {
  const { base, more, first } = recipe;
  const isOutput = name === "output.weight" || (tied && name === "token_embd.weight");
  if (isOutput) return blocks[base].values > 1 && base !== "Q8_0" ? "Q6_K" : base;
  const match = /^blk\.(\d+)\.(attn_v|ffn_down|ffn_down_exps)\.weight$/.exec(name);
  if (!match) return base;
  const layer = Number(match[1]);
  if (more) return usesMore(layer, layers) ? more : base;
  if (first) return layer < (match[2] === "attn_v" ? 4 : Math.floor(layers / 8)) ? first : base;
  return base;
}

function usesMore(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}
