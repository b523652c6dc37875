// Owns: from a model file to a session on a running engine: the engine loads in its own thread or process while this one
// builds the tokenizer; neither waits for the other. What index.ts and server/ open models with.
import { EngineClient } from "../engine/client.js";
import type { Port } from "../engine/protocol.js";
import { openCheckpoint } from "../formats/open.js";
import { configuredEndIds, type SamplingDefaults, samplingDefaults } from "../session/defaults.js";
import { Session } from "../session/session.js";
import { loadText } from "../session/text.js";
import type { LoadSpec } from "./load.js";

export interface SessionOptions {
  readonly spec: LoadSpec;
  /** workerCarrier or processCarrier. */
  readonly carrier: () => Port;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

export interface OpenedSession {
  readonly session: Session;
  readonly engine: EngineClient;
  /** What the model itself wants where a caller does not say. */
  readonly sampling: SamplingDefaults;
  /** The file's or folder's own name, and the size of all its files: tells one model from another. */
  readonly label: string;
  readonly fileBytes: number;
}

/** Throws UserError or FormatError for what cannot be loaded; nothing is left running then. */
export async function openSession({ spec, carrier, onProgress, signal }: SessionOptions): Promise<OpenedSession> {
  // Refused here before a thread or process is started for it.
  const checkpoint = await openCheckpoint(spec.path);
  const loading = EngineClient.open({ carrier, spec, onProgress, signal });
  // Reported below, after the text side has had its say.
  loading.catch(() => {});
  try {
    const { meta, label, fileBytes } = checkpoint;
    const text = loadText(meta);
    const engine = await loading;
    const session = new Session(engine, text, configuredEndIds(meta));
    return { session, engine, sampling: samplingDefaults(meta), label, fileBytes };
  } catch (error) {
    await loading.then(
      (engine) => engine.close(),
      () => {},
    );
    throw error;
  } finally {
    checkpoint.close();
  }
}
