// Owns: texts to embeddings for one loaded model: tokens, texts that are too long, and the vectors' length. What the API
// surfaces share. Refuses models that give none.
import { UserError } from "../base/errors.js";
import type { Session } from "./session.js";

export interface EmbedJob {
  /** Texts, or the token ids of texts with the model's first and last tokens. At least one. */
  readonly inputs: readonly (string | Int32Array)[];
  /** A text longer than the context loses its end; false: it is refused. */
  readonly truncate: boolean;
  /** Only so many of each vector's first numbers. */
  readonly dimensions?: number;
  /** To the length 1. */
  readonly normalize: boolean;
}

export interface Embeddings {
  /** One a text. */
  readonly vectors: readonly Float32Array[];
  /** Of all texts together, after truncation. */
  readonly tokens: number;
}

/** Throws the signal's reason when it aborts. */
export async function embed(session: Session, job: EmbedJob, signal?: AbortSignal): Promise<Embeddings> {
  const { embeddingSize, contextLength, vocabSize } = session.limits;
  if (embeddingSize === undefined || session.engine.embed === undefined) {
    throw new UserError("This model gives no embeddings; use an embedding model such as all-minilm.", {
      code: "no_embeddings",
      param: "model",
    });
  }
  const { dimensions } = job;
  if (dimensions !== undefined && dimensions > embeddingSize) {
    throw new UserError(`The model's embeddings have ${embeddingSize} dimensions; ${dimensions} were asked for.`, {
      param: "dimensions",
    });
  }
  const texts = job.inputs.map((input, index) => {
    const ids = typeof input === "string" ? wholeText(session, input) : input;
    if (ids.length === 0)
      throw new UserError(`Input ${index} is empty: there is nothing to embed.`, { param: "input" });
    for (const id of ids) {
      if (id < 0 || id >= vocabSize) {
        throw new UserError(`Token id ${id} is not in the vocabulary: ids go from 0 to ${vocabSize - 1}.`, {
          param: "input",
        });
      }
    }
    if (ids.length <= contextLength) return ids;
    if (job.truncate) return Int32Array.of(...ids.subarray(0, contextLength - 1), ids[ids.length - 1]);
    throw new UserError(
      `The context is ${contextLength} tokens long, but input ${index} has ${ids.length}. Shorten it, or let it be truncated.`,
      { code: "context_length_exceeded", param: "input" },
    );
  });
  const whole = await session.engine.embed(texts, signal);
  return {
    vectors: whole.map((vector) => {
      const cut = dimensions === undefined ? vector : vector.slice(0, dimensions);
      return job.normalize ? normalized(cut) : cut;
    }),
    tokens: texts.reduce((sum, { length }) => sum + length, 0),
  };
}

function wholeText(session: Session, text: string): Int32Array {
  if (session.text !== undefined) return session.text.tokenizer.encode(text, { whole: true });
  throw new UserError("This model has no tokenizer: give token ids.", { code: "no_tokenizer", param: "input" });
}

/** A vector of zeros stays one. */
function normalized(vector: Float32Array): Float32Array {
  const length = Math.hypot(...vector);
  return length === 0 ? vector : vector.map((value) => value / length);
}
