// Owns: what TGI's routes accept, field by field, with TGI's ranges. Each description completes the sentence "must be …".
import { type Static, Type } from "typebox";
import { ChatBody } from "../openai/schema.js";

const noExtra = { additionalProperties: false } as const;
const orNull = <T extends Parameters<typeof Type.Union>[0][number]>(type: T, description: string) =>
  Type.Optional(Type.Union([type, Type.Null()], { description }));

const integer = (minimum: number, maximum: number) =>
  orNull(Type.Integer({ minimum, maximum }), `an integer from ${minimum} to ${maximum}`);
const positive = (maximum: number) =>
  orNull(Type.Number({ exclusiveMinimum: 0, maximum }), `a number above 0, at most ${maximum}`);
const flag = () => orNull(Type.Boolean(), "true or false");

/** What /info tells and the schema holds to. */
export const limits = { bestOf: 16, stopSequences: 64, topTokens: 20 } as const;

const largest = Number.MAX_SAFE_INTEGER;
const jsonSchema = Type.Union([Type.String(), Type.Record(Type.String(), Type.Unknown())]);

const Grammar = Type.Union(
  [
    Type.Object({ type: Type.Union([Type.Literal("json"), Type.Literal("json_object")]), value: jsonSchema }, noExtra),
    Type.Object({ type: Type.Literal("regex"), value: Type.String() }, noExtra),
    Type.Object(
      {
        type: Type.Literal("json_schema"),
        value: Type.Object({ name: Type.Optional(Type.String()), schema: jsonSchema }, noExtra),
      },
      noExtra,
    ),
    Type.Null(),
  ],
  {
    description:
      '{"type": "json", "value": schema}, {"type": "json_schema", "value": {"schema": schema}} or {"type": "regex", "value": "…"}',
  },
);

const unsupported = (only: false | null) => ({ description: `${only} (other values are not supported)` });

const Parameters = Type.Object(
  {
    adapter_id: orNull(Type.String(), "the name of an adapter that the model was loaded with"),
    best_of: integer(1, limits.bestOf),
    decoder_input_details: flag(),
    details: flag(),
    do_sample: flag(),
    frequency_penalty: orNull(Type.Number({ minimum: -2, maximum: 2 }), "a number from -2 to 2"),
    grammar: Type.Optional(Grammar),
    max_new_tokens: integer(1, largest),
    repetition_penalty: positive(100),
    return_full_text: flag(),
    seed: integer(0, largest),
    stop: orNull(
      Type.Array(Type.String({ minLength: 1 }), { maxItems: limits.stopSequences }),
      `a list of up to ${limits.stopSequences} non-empty strings`,
    ),
    temperature: positive(100),
    top_k: integer(1, 2 ** 31 - 1),
    top_n_tokens: integer(0, limits.topTokens),
    top_p: positive(1),
    truncate: integer(1, largest),
    typical_p: Type.Optional(Type.Null(unsupported(null))),
    watermark: Type.Optional(Type.Union([Type.Literal(false), Type.Null()], unsupported(false))),
  },
  { ...noExtra, description: "an object of parameters" },
);

const inputs = Type.String({ description: "a string" });
/** Beyond TGI: which model, where the server has several. */
const model = Type.Optional(Type.String({ description: "the id of a model (GET /v1/models lists them)" }));

/** The route has said it already: Hugging Face's client says it again. */
const streams = (value: boolean) =>
  Type.Optional(Type.Literal(value, { description: `${value} on this route (or be left out)` }));

const fields = { inputs, parameters: Type.Optional(Parameters), model };

export const GenerateBody = Type.Object({ ...fields, stream: streams(false) }, noExtra);

export const StreamBody = Type.Object({ ...fields, stream: streams(true) }, noExtra);

export const CompatBody = Type.Object({ ...fields, stream: flag() }, noExtra);

export const ChatTokenizeBody = Type.Object({ ...ChatBody.properties, model }, noExtra);

export type GenerateRequest = Pick<CompatRequest, "inputs" | "parameters" | "model">;
export type CompatRequest = Static<typeof CompatBody>;
export type ChatTokenizeRequest = Static<typeof ChatTokenizeBody>;
export type GenerateParameters = Static<typeof Parameters>;
