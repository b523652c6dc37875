// Owns: --shape and --quant: models of random weights on the command line.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Command } from "commander";
import { UserError } from "../base/errors.js";
import { parseQuantisation, quantisations } from "../formats/quant/recipe.js";
import type { RandomModel } from "../model/random.js";
import { shapes } from "../model/shapes.js";
import { wholeNumber } from "./flags.js";

export interface ShapeFlags {
  readonly shape?: string;
  readonly quant?: string;
  readonly weightSeed: number;
}

export function addShapeFlags(command: Command): Command {
  return command
    .option(
      "--shape <shape>",
      `instead of a model: random weights in the shape of ${Object.keys(shapes).join(", ")}, or of a config.json`,
    )
    .option("--quant <type>", `of the random weights: ${quantisations.join(", ")} (default: bf16)`)
    .option("--weight-seed <n>", "the same seed makes the same weights", wholeNumber(0), 1);
}

/** Throws UserError for an unknown shape, an unreadable config.json or an unknown quantisation. */
export function randomModel({ shape, quant = "bf16", weightSeed }: ShapeFlags & { shape: string }): RandomModel {
  const known = shapes[shape.toLowerCase()];
  const label = known ? shape.toLowerCase() : basename(shape) === "config.json" ? basename(dirname(shape)) : shape;
  const quantisation = parseQuantisation(quant);
  const config = known ?? readConfig(shape);
  return { config, quantisation, seed: weightSeed, name: `${label || "random"}-${quantisation}` };
}

function readConfig(path: string): Record<string, unknown> {
  const choices = `a shape is ${Object.keys(shapes).join(", ")}, or the path of a config.json`;
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    throw new UserError(`there is no shape or file ${JSON.stringify(path)}: ${choices}`, { param: "shape" });
  }
  try {
    const config = JSON.parse(text) as unknown;
    if (typeof config === "object" && config !== null && !Array.isArray(config))
      return config as Record<string, unknown>;
  } catch {}
  throw new UserError(`${path} is not a JSON object: ${choices}`, { param: "shape" });
}
