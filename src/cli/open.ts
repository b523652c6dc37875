// Owns: from MODEL and the device flags to a loaded model with its session, its engine in a worker thread.
import type { LoadSpec } from "../host/load.js";
import { openSession } from "../host/open.js";
import { workerCarrier } from "../host/worker.js";
import type { RandomModel } from "../model/random.js";
import type { SamplingDefaults } from "../session/defaults.js";
import type { Generator } from "../session/needs.js";
import type { Session } from "../session/session.js";
import { type PackageSettings, packageAdapters, settingsOf } from "../store/apply.js";
import type { Package, ResolvedModel } from "../store/store.js";
import type { DeviceFlags } from "./flags.js";
import { resolveModel } from "./model.js";

export interface OpenModel {
  readonly name: string;
  readonly path: string;
  /** For people: what it runs on. */
  readonly device: string;
  readonly threads: number;
  readonly kvDtype: string;
  readonly session: Session;
  readonly generator: Generator;
  /** What the model itself wants where no flag says otherwise. */
  readonly sampling: SamplingDefaults;
  readonly hasTemplate: boolean;
  /** undefined: a path. */
  readonly package?: Package;
  /** What its package says; nothing for a path. */
  readonly settings: PackageSettings;
  /** The adapter that its package is made with, as requests call it. */
  readonly adapter?: string;
  /** From the resolved path to a model that can answer. */
  readonly loadMs: number;
  close(): Promise<void>;
}

/** The path of the model that guesses: the one that was asked for, or the package's, unless nothing is to be guessed. */
async function draftOf(flags: DeviceFlags & { insecure?: boolean }, own?: Package): Promise<string | undefined> {
  if (flags.draft !== undefined) return (await resolveModel(flags.draft, flags)).path;
  return flags.lookup === false ? undefined : own?.draft;
}

/** sequences: how many requests will run at once. */
export async function openModel(
  model: string | RandomModel,
  flags: DeviceFlags & { sequences: number; adapters?: LoadSpec["adapters"]; insecure?: boolean },
): Promise<OpenModel> {
  const random = typeof model === "string" ? undefined : model;
  const resolved: ResolvedModel =
    typeof model === "string" ? await resolveModel(model, flags) : { name: model.name, path: model.name };
  const { name, path, package: own } = resolved;
  const settings = settingsOf(own?.parameters ?? {});
  const adapters = [...(flags.adapters ?? []), ...packageAdapters(own)];
  const start = performance.now();
  const kvDtype = flags.kvDtype ?? "f16";
  const spec: LoadSpec = {
    path,
    random,
    device: flags.device,
    threads: flags.threads ?? settings.threads,
    kvDtype,
    lookup: flags.lookup,
    draft: await draftOf(flags, own),
    maxSequences: flags.sequences,
    contextLength: flags.ctx ?? settings.contextLength,
    // A package may ask for more than its model can, as Ollama lets it.
    clampContext: flags.ctx === undefined,
    deterministic: flags.deterministic,
    adapters,
  };
  const { session, engine, sampling } = await openSession({ carrier: workerCarrier, spec, template: own?.template });
  const { physicalCores } = await import("../host/load.js");
  return {
    name,
    path,
    device: engine.limits.device,
    threads: spec.threads ?? physicalCores(),
    kvDtype,
    session,
    generator: engine,
    sampling: { ...sampling, ...settings.sampling },
    package: own,
    settings,
    adapter: packageAdapters(own)[0]?.name,
    hasTemplate: session.text?.template !== undefined,
    loadMs: performance.now() - start,
    close: () => engine.close(),
  };
}
