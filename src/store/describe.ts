// Owns: what people are told of a model file: family, size, quantisation. Reads its header only.
import { FormatError } from "../base/errors.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { openCheckpoint } from "../formats/open.js";
import { fileType, quantisations } from "../formats/quant/recipe.js";
import type { PackageConfig } from "./package.js";

/** llama.cpp's general.file_type, beyond those that millrace itself writes. */
const fileTypes: Readonly<Record<number, string>> = {
  ...{ 3: "Q4_1", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S" },
  ...{ 16: "Q5_K_S", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S" },
  ...{ 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M" },
  ...{ 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4" },
  ...Object.fromEntries(quantisations.map((name) => [fileType(name), name.toUpperCase()])),
};

/** "1.2B", "134.52M", "600K" */
export function humanCount(count: number): string {
  const [value, unit, digits] =
    count >= 1e9 ? [count / 1e9, "B", 1] : count >= 1e6 ? [count / 1e6, "M", 2] : [count / 1e3, "K", 0];
  return `${Number.isInteger(value) ? value : value.toFixed(digits as number)}${unit}`;
}

/** The type that holds most of the weights. */
function commonestType(checkpoint: Checkpoint): string {
  const bytes = new Map<string, number>();
  for (const tensor of checkpoint.tensors.values()) {
    bytes.set(tensor.type, (bytes.get(tensor.type) ?? 0) + tensor.bytes);
  }
  return [...bytes].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "";
}

function parametersIn(checkpoint: Checkpoint): number {
  return [...checkpoint.tensors.values()].reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
}

export function describeCheckpoint(checkpoint: Checkpoint): PackageConfig {
  const { meta } = checkpoint;
  const parameterSize = humanCount(parametersIn(checkpoint));
  if (meta.kind === "gguf") {
    const family = String(meta.values.get("general.architecture") ?? "");
    const type = meta.values.get("general.file_type");
    const quantization = (typeof type === "number" ? fileTypes[type] : undefined) ?? commonestType(checkpoint);
    return { format: "gguf", family, families: [family], parameterSize, quantization };
  }
  const family = String(meta.files.config.model_type ?? "");
  const quantization = commonestType(checkpoint);
  return { format: "safetensors", family, families: [family], parameterSize, quantization };
}

/** Throws UserError or FormatError for what cannot be opened. */
export async function describeModel(path: string): Promise<PackageConfig> {
  const checkpoint = await openCheckpoint(path);
  try {
    return describeCheckpoint(checkpoint);
  } finally {
    checkpoint.close();
  }
}

/** For what was pulled: a file that millrace cannot read is still the file that was asked for. */
export async function describeOrUnknown(path: string): Promise<PackageConfig> {
  try {
    return await describeModel(path);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    const format = path.endsWith(".gguf") ? "gguf" : "safetensors";
    return { format, family: "", families: [], parameterSize: "", quantization: "" };
  }
}
