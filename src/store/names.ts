// Owns: what MODEL may be on a command line or in a request: hf:owner/repo[@revision][/file], a name in the catalogue, or
// the path of a .gguf file or a model folder. A catalogue's name wins over a file of the same name: write ./name for that.
import { statSync } from "node:fs";
import { basename, resolve } from "node:path";
import { UserError } from "../base/errors.js";
import { type CatalogueEntry, catalogue, findEntry } from "./catalogue.js";
import { type HubName, parseHubName } from "./hub.js";

export type ModelName =
  | { readonly kind: "path"; readonly path: string; readonly label: string }
  | { readonly kind: "catalogue"; readonly name: string; readonly entry: CatalogueEntry }
  | { readonly kind: "hub"; readonly name: string; readonly hub: HubName };

export function parseModelName(model: string): ModelName {
  if (model.startsWith("hf:")) return { kind: "hub", name: model, hub: parseHubName(model.slice(3)) };
  const entry = findEntry(model);
  if (entry !== undefined) return { kind: "catalogue", name: entry.name, entry };
  const path = resolve(model);
  if (model !== "" && statSync(path, { throwIfNoEntry: false }) !== undefined) {
    return { kind: "path", path, label: basename(path).replace(/\.gguf$/, "") };
  }
  const known = catalogue.map(({ name, title }) => `${name} (${title})`).join(", ");
  const looksLikePath = /[\\/]|\.(gguf|safetensors)$/.test(model);
  const what = looksLikePath
    ? `there is no file or folder ${model}`
    : `there is no model ${JSON.stringify(model)} in the catalogue, and no file of that name`;
  throw new UserError(
    `${what}. A model is a name in the catalogue: ${known}; the path of a .gguf file or of a Hugging Face folder; or hf:owner/repo.`,
    { status: 404, code: "model_not_found" },
  );
}
