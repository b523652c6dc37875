// Owns: what Ollama's API tells of models: the list, those that are loaded, and one in full.
import { UserError } from "../../base/errors.js";
import { aboutModel, type Capability, capabilitiesOf, type ModelAbout } from "../../store/about.js";
import { describeOrUnknown } from "../../store/describe.js";
import { modelfileOf } from "../../store/modelfile.js";
import type { PackageConfig } from "../../store/package.js";
import { parameterLines } from "../../store/parameters.js";
import type { ResidentReport, ServedModels } from "../models.js";
import type { LocalModel } from "../source.js";
import type { ShowRequest } from "./schema.js";

/** As far away as "for ever" has to be. */
const never = "9999-12-31T23:59:59.999Z";

const nameOf = ({ id, package: one }: LocalModel) => one?.name ?? id;

type Lengths = Pick<ModelAbout, "contextLength" | "embeddingLength">;

function detailsOf(config: PackageConfig, { contextLength, embeddingLength }: Partial<Lengths> = {}): object {
  const { format, family, families, parameterSize, quantization } = config;
  return {
    parent_model: "",
    format,
    family,
    families,
    parameter_size: parameterSize,
    quantization_level: quantization,
    ...(contextLength === undefined ? {} : { context_length: contextLength }),
    ...(embeddingLength === undefined ? {} : { embedding_length: embeddingLength }),
  };
}

/** A model that was named by its path has no config: its header says it. */
const configOf = async ({ package: one, path }: LocalModel) => one?.config ?? (await describeOrUnknown(path));

const basics = (model: LocalModel) => {
  const name = nameOf(model);
  return { name, model: name, digest: model.package?.digest ?? "" };
};

interface Outlook extends Partial<Lengths> {
  readonly capabilities: readonly Capability[];
}

/** By what a package is: its header is read once. */
const outlooks = new Map<string, Outlook>();

/** What a list tells of a model beyond its name; a file that cannot be read is still listed. */
async function outlookOf({ package: one, path }: LocalModel): Promise<Outlook> {
  const known = one === undefined ? undefined : outlooks.get(one.digest);
  if (known !== undefined) return known;
  let found: Outlook = { capabilities: [] };
  try {
    const { contextLength, embeddingLength, template, embeds } = await aboutModel(path);
    const capabilities = capabilitiesOf(one?.template?.text ?? template, embeds);
    found = { contextLength, embeddingLength, capabilities };
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
  }
  if (one !== undefined) outlooks.set(one.digest, found);
  return found;
}

export async function tags(models: ServedModels<LocalModel>): Promise<object> {
  const listed = models.all.map(async (model) => {
    const [config, { capabilities, ...lengths }] = await Promise.all([configOf(model), outlookOf(model)]);
    return {
      ...basics(model),
      modified_at: new Date(model.created * 1000).toISOString(),
      size: model.package?.bytes ?? 0,
      details: detailsOf(config, lengths),
      capabilities,
    };
  });
  return { models: await Promise.all(listed) };
}

export async function running(models: ServedModels<LocalModel>): Promise<object> {
  const describe = async ({ model, served, expiresAt }: ResidentReport<LocalModel>) => {
    const { memory, contextLength, ownMemory } = served.session.limits;
    const size = memory.weights + memory.workspace + memory.cache;
    return {
      ...basics(model),
      size,
      details: detailsOf(await configOf(model)),
      expires_at: Number.isFinite(expiresAt) ? new Date(expiresAt).toISOString() : never,
      size_vram: ownMemory ? size : 0,
      context_length: contextLength,
    };
  };
  return { models: await Promise.all(models.loaded.map(describe)) };
}

export async function show(model: LocalModel, { verbose = false }: ShowRequest): Promise<object> {
  const { package: one, path } = model;
  const [config, about] = await Promise.all([configOf(model), aboutModel(path, verbose)]);
  const template = one?.template?.text ?? about.template;
  const parameters = parameterLines(one?.parameters ?? {});
  return {
    ...(one?.license === undefined ? {} : { license: one.license.join("\n") }),
    modelfile: one === undefined ? `FROM ${path}\n` : modelfileOf([path, ...(one.projectors ?? [])], one),
    ...(parameters.length === 0 ? {} : { parameters: parameters.map(parameterLine).join("\n") }),
    ...(template === undefined ? {} : { template }),
    ...(one?.system === undefined ? {} : { system: one.system }),
    ...(config.renderer === undefined ? {} : { renderer: config.renderer }),
    ...(config.parser === undefined ? {} : { parser: config.parser }),
    ...(config.requires === undefined ? {} : { requires: config.requires }),
    ...(one?.messages === undefined ? {} : { messages: one.messages }),
    details: detailsOf(config, about),
    model_info: about.info,
    ...(verbose ? { tensors: about.tensors } : {}),
    capabilities: capabilitiesOf(template, about.embeds),
    modified_at: new Date(model.created * 1000).toISOString(),
  };
}

const parameterLine = ([name, value]: [string, unknown]) => `${name.padEnd(30)} ${JSON.stringify(value)}`;
