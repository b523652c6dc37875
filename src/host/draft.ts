// Owns: a draft model's way into memory: that its tokens mean what the large model's do, and what room is left for it.
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { Device, Limits, MemoryReport, Program } from "../device/device.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { openCheckpoint } from "../formats/open.js";
import { modelConfig } from "../model/config.js";
import { type LoadSpec, planModel } from "./load.js";

export interface LoadedDraft {
  readonly program: Program;
  readonly limits: Limits;
  readonly memory: MemoryReport;
  close(): Promise<void>;
}

/** undefined: the device rounds a token differently when others stand beside it, so checking guesses would change answers. */
export async function loadDraft(
  spec: LoadSpec & { readonly draft: string },
  model: { readonly checkpoint: Checkpoint; readonly limits: Limits; readonly vocabSize: number },
  device: Device,
): Promise<LoadedDraft | undefined> {
  if (!device.info.rowInvariant) {
    log.warn(`the draft model is not used: on ${device.info.description} guesses would change answers`);
    return undefined;
  }
  const checkpoint = await openCheckpoint(spec.draft);
  try {
    const { limits: taken } = model;
    const { plan, limits } = planModel(checkpoint, device, {
      contextLength: Math.min(taken.contextLength, modelConfig(checkpoint).contextLength),
      kvDtype: spec.kvDtype,
      threads: spec.threads,
      depth: 1,
      maxSequences: taken.maxSequences,
      deterministic: spec.deterministic,
      memoryBytes: (spec.memoryBytes ?? device.info.memoryBytes) - taken.memoryBytes,
    });
    checkVocabulary(checkpoint, plan.vocabSize, model);
    const program = await device.compile(plan, checkpoint, limits);
    const close = async () => {
      await program.close();
      checkpoint.close();
    };
    return { program, limits, memory: program.memory, close };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

/** Throws UserError where the same id is not the same token. */
function checkVocabulary(draft: Checkpoint, vocabSize: number, model: { checkpoint: Checkpoint; vocabSize: number }) {
  const no = (why: string) =>
    new UserError(`${draft.label} cannot draft for ${model.checkpoint.label}: ${why}; both must have one vocabulary`, {
      code: "unsupported_draft",
      param: "draft",
    });
  if (vocabSize !== model.vocabSize) throw no(`it has ${vocabSize} tokens, the model ${model.vocabSize}`);
  const [own, other] = [tokensOf(draft), tokensOf(model.checkpoint)];
  if (own === undefined || other === undefined) return;
  const different = own.findIndex((token, id) => token !== other[id]);
  if (different >= 0) {
    throw no(
      `its token ${different} is ${JSON.stringify(own[different])}, the model's ${JSON.stringify(other[different])}`,
    );
  }
}

/** By id; undefined where the files do not list them in a way that can be compared. */
function tokensOf({ meta }: Checkpoint): readonly string[] | undefined {
  if (meta.kind === "gguf") {
    const tokens = meta.values.get("tokenizer.ggml.tokens");
    return Array.isArray(tokens) ? (tokens as string[]) : undefined;
  }
  const vocab = (meta.files.tokenizer?.model as { vocab?: unknown } | undefined)?.vocab;
  if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab)) return undefined;
  const tokens: string[] = [];
  for (const [token, id] of Object.entries(vocab as Record<string, number>)) tokens[id] = token;
  return tokens;
}
