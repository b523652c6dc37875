// Owns: from MODEL and the device flags to a loaded model with its session. The engine loads in its worker thread while
// this one builds the tokenizer: neither waits for the other.
import { EngineClient } from "../engine/client.js";
import { openCheckpoint } from "../formats/open.js";
import { type LoadSpec, physicalCores } from "../host/load.js";
import { workerCarrier } from "../host/worker.js";
import { type SamplingDefaults, samplingDefaults } from "../session/defaults.js";
import type { Generator } from "../session/needs.js";
import { Session } from "../session/session.js";
import { loadText } from "../session/text.js";
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
export async function openModel(model: string, flags: DeviceFlags & { sequences: number }): Promise<OpenModel> {
  const { name, path } = await resolveModel(model);
  const start = performance.now();
  const threads = flags.threads ?? physicalCores();
  const kvDtype = flags.kvDtype ?? "f16";
  const spec: LoadSpec = {
    path,
    device: flags.device,
    threads,
    kvDtype,
    maxSequences: flags.sequences,
    ...(flags.ctx === undefined ? {} : { contextLength: flags.ctx }),
  };
  const loading = EngineClient.open({ carrier: workerCarrier, spec });
  // Its failure is the one to report, whatever happens to the text side meanwhile.
  loading.catch(() => {});
  try {
    const checkpoint = await openCheckpoint(path);
    const text = loadText(checkpoint.meta);
    const sampling = samplingDefaults(checkpoint.meta);
    checkpoint.close();
    const engine = await loading;
    return {
      name,
      device: engine.limits.device,
      threads,
      kvDtype,
      session: new Session(engine, text),
      generator: engine,
      sampling,
      hasTemplate: text?.template !== undefined,
      loadMs: performance.now() - start,
      close: () => engine.close(),
    };
  } catch (error) {
    const engine = await loading;
    await engine.close();
    throw error;
  }
}
