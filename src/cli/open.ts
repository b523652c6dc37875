// Owns: from MODEL and the device flags to a loaded model with its session, its engine in a worker thread.
import type { LoadSpec } from "../host/load.js";
import { openSession } from "../host/open.js";
import { workerCarrier } from "../host/worker.js";
import type { RandomModel } from "../model/random.js";
import type { SamplingDefaults } from "../session/defaults.js";
import type { Generator } from "../session/needs.js";
import type { Session } from "../session/session.js";
import type { DeviceFlags } from "./flags.js";
import { resolveModel } from "./model.js";

export interface OpenModel {
  readonly name: string;
  /** For people: what it runs on. */
  readonly device: string;
  readonly threads: number;
  readonly kvDtype: string;
  readonly session: Session;
  readonly generator: Generator;
  /** What the model itself wants where no flag says otherwise. */
  readonly sampling: SamplingDefaults;
  readonly hasTemplate: boolean;
  /** From the resolved path to a model that can answer. */
  readonly loadMs: number;
  close(): Promise<void>;
}

/** sequences: how many requests will run at once. */
export async function openModel(
  model: string | RandomModel,
  flags: DeviceFlags & { sequences: number; adapters?: LoadSpec["adapters"] },
): Promise<OpenModel> {
  const random = typeof model === "string" ? undefined : model;
  const { name, path } = typeof model === "string" ? await resolveModel(model) : { name: model.name, path: model.name };
  const start = performance.now();
  const kvDtype = flags.kvDtype ?? "f16";
  const spec: LoadSpec = {
    path,
    random,
    device: flags.device,
    threads: flags.threads,
    kvDtype,
    maxSequences: flags.sequences,
    contextLength: flags.ctx,
    deterministic: flags.deterministic,
    adapters: flags.adapters,
  };
  const { session, engine, sampling } = await openSession({ carrier: workerCarrier, spec });
  const { physicalCores } = await import("../host/load.js");
  return {
    name,
    device: engine.limits.device,
    threads: flags.threads ?? physicalCores(),
    kvDtype,
    session,
    generator: engine,
    sampling,
    hasTemplate: session.text?.template !== undefined,
    loadMs: performance.now() - start,
    close: () => engine.close(),
  };
}
