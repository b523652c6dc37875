// Owns: from MODEL and the device flags to a loaded model with its session. The engine loads in its worker thread while
// this one reads its own modules and builds the tokenizer: neither waits for the other, so the worker starts first.
import { EngineClient } from "../engine/client.js";
import type { LoadSpec } from "../host/load.js";
import { workerCarrier } from "../host/worker.js";
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
export async function openModel(model: string, flags: DeviceFlags & { sequences: number }): Promise<OpenModel> {
  const { name, path } = await resolveModel(model);
  const start = performance.now();
  const kvDtype = flags.kvDtype ?? "f16";
  const spec: LoadSpec = {
    path,
    device: flags.device,
    threads: flags.threads,
    kvDtype,
    maxSequences: flags.sequences,
    contextLength: flags.ctx,
  };
  const loading = EngineClient.open({ carrier: workerCarrier, spec });
  // Its failure is the one to report, whatever happens to the text side meanwhile.
  loading.catch(() => {});
  try {
    const [{ openCheckpoint }, { loadText }, { samplingDefaults }, { Session }, { physicalCores }] = await Promise.all([
      import("../formats/open.js"),
      import("../session/text.js"),
      import("../session/defaults.js"),
      import("../session/session.js"),
      import("../host/load.js"),
    ]);
    const checkpoint = await openCheckpoint(path);
    const text = loadText(checkpoint.meta);
    const sampling = samplingDefaults(checkpoint.meta);
    checkpoint.close();
    const engine = await loading;
    return {
      name,
      device: engine.limits.device,
      threads: flags.threads ?? physicalCores(),
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
