// Owns: POST /v1/embeddings: texts or token ids in, vectors of length 1 out, as numbers or as base64 of little-endian f32.
import { type Static, Type } from "typebox";
import { UserError } from "../../base/errors.js";
import { type Exchange, embedded } from "../exchange.js";

const ids = Type.Array(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 }), { minItems: 1 });

export const EmbeddingsBody = Type.Object(
  {
    model: Type.String({ description: "the id of a model (GET /v1/models lists them)" }),
    input: Type.Union(
      [
        Type.String(),
        Type.Array(Type.String(), { minItems: 1, maxItems: 2048 }),
        ids,
        Type.Array(ids, { minItems: 1, maxItems: 2048 }),
      ],
      { description: "a string, a list of strings, a list of token ids, or a list of lists of token ids" },
    ),
    dimensions: Type.Optional(Type.Integer({ minimum: 1, description: "an integer of at least 1" })),
    encoding_format: Type.Optional(
      Type.Union([Type.Literal("float"), Type.Literal("base64")], { description: '"float" or "base64"' }),
    ),
    user: Type.Optional(Type.String({ description: "a string" })),
    timeout: Type.Optional(Type.Number({ exclusiveMinimum: 0, description: "a number of seconds above 0" })),
  },
  { additionalProperties: false },
);

export type EmbeddingsRequest = Static<typeof EmbeddingsBody>;

export async function embeddings(exchange: Exchange, body: EmbeddingsRequest): Promise<void> {
  const inputs = inputsOf(body.input);
  const { dimensions } = body;
  const { vectors, tokens } = await embedded(exchange, { inputs, truncate: false, dimensions, normalize: true });
  const written = (vector: Float32Array) =>
    body.encoding_format === "base64"
      ? Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString("base64")
      : [...vector];
  const data = vectors.map((vector, index) => ({ object: "embedding", index, embedding: written(vector) }));
  const usage = { prompt_tokens: tokens, total_tokens: tokens };
  exchange.reply.send({ object: "list", data, model: exchange.model.id, usage });
}

function inputsOf(input: EmbeddingsRequest["input"]): (string | Int32Array)[] {
  const list = typeof input === "string" || typeof input[0] === "number" ? [input] : input;
  const inputs = list.map((one) => (typeof one === "string" ? one : Int32Array.from(one as number[])));
  const empty = inputs.indexOf("");
  if (empty >= 0) throw new UserError(`Input ${empty} is empty: there is nothing to embed.`, { param: "input" });
  return inputs as (string | Int32Array)[];
}
