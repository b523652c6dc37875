// Owns: from a model file to a session on a running engine: the engine loads in its own thread or process while this one
// reads the text side's modules and builds the tokenizer; neither waits for the other, so the engine starts first. What
// index.ts, cli/ and server/ open models with.
import { EngineClient } from "../engine/client.js";
import type { Port } from "../engine/protocol.js";
import type { SamplingDefaults } from "../session/defaults.js";
import type { Session } from "../session/session.js";
import type { TemplateOverride } from "../text/text.js";
import { type CheckpointSpec, openSpec } from "./checkpoint.js";
import type { LoadSpec } from "./load.js";

export interface SessionOptions {
  readonly spec: LoadSpec;
  /** workerCarrier or processCarrier. */
  readonly carrier: () => Port;
  /** In place of the model's own. */
  readonly template?: TemplateOverride;
  /** Which of the spec's adapters answers where a job names none; undefined: none does. */
  readonly adapter?: string;
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

/** Throws UserError for what cannot be loaded; nothing is left running then. */
export async function openSession({
  spec,
  carrier,
  template,
  adapter,
  onProgress,
  signal,
}: SessionOptions): Promise<OpenedSession> {
  const loading = EngineClient.open({ carrier, spec, onProgress, signal });
  // Its failure is the one to report, whatever happens to the text side meanwhile.
  loading.catch(() => {});
  try {
    const { Session, text, endIds, ...about } = await openText(spec, template);
    const engine = await loading;
    return { ...about, engine, session: new Session(engine, text, endIds, adapter) };
  } catch (error) {
    const engine = await loading;
    await engine.close();
    throw error;
  }
}

async function openText(spec: CheckpointSpec, template: TemplateOverride | undefined) {
  const [checkpoint, { loadText }, { configuredEndIds, samplingDefaults }, { Session }] = await Promise.all([
    openSpec(spec),
    import("../session/text.js"),
    import("../session/defaults.js"),
    import("../session/session.js"),
  ]);
  try {
    const { meta, label, fileBytes } = checkpoint;
    const text = loadText(meta, template);
    return { Session, text, label, fileBytes, endIds: configuredEndIds(meta), sampling: samplingDefaults(meta) };
  } finally {
    checkpoint.close();
  }
}
