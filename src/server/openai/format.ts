// Owns: what an answer's text must be, in every spelling that the OpenAI routes take: OpenAI's response_format, TGI's (with
// a value), vLLM's structural tags, its structured_outputs, and the guided_ fields that came before those. One a request.
import { type Static, type TProperties, Type } from "typebox";
import { checkDepth } from "../../base/depth.js";
import { UserError } from "../../base/errors.js";
import type { OutputFormat } from "../../session/types.js";

const noExtra = { additionalProperties: false } as const;
const anObject = Type.Record(Type.String(), Type.Unknown(), { description: "an object" });
const text = Type.Optional(Type.String({ description: "a string" }));
const strict = Type.Optional(Type.Union([Type.Boolean(), Type.Null()]));

const ResponseFormat = Type.Union(
  [
    Type.Object({ type: Type.Literal("text") }, noExtra),
    Type.Object({ type: Type.Literal("json_object") }, noExtra),
    Type.Object(
      {
        type: Type.Literal("json_schema"),
        json_schema: Type.Object(
          { name: Type.String(), description: text, schema: Type.Optional(anObject), strict },
          noExtra,
        ),
      },
      noExtra,
    ),
    Type.Object({ type: Type.Literal("structural_tag"), format: anObject }, noExtra),
    Type.Object(
      {
        type: Type.Literal("structural_tag"),
        structures: Type.Array(anObject),
        triggers: Type.Array(Type.String()),
      },
      noExtra,
    ),
    // As TGI's clients spell them.
    Type.Object({ type: Type.Union([Type.Literal("json"), Type.Literal("json_object")]), value: anObject }, noExtra),
    Type.Object({ type: Type.Literal("regex"), value: Type.String() }, noExtra),
    Type.Object(
      { type: Type.Literal("json_schema"), value: Type.Object({ name: text, schema: anObject }, noExtra) },
      noExtra,
    ),
  ],
  {
    description:
      '{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}} ' +
      'or {"type": "structural_tag", "format": {…}}',
  },
);

const choice = Type.Optional(Type.Array(Type.String(), { description: "a list of strings" }));
const json = Type.Optional(
  Type.Union([anObject, Type.String()], { description: "a JSON schema, as an object or as its JSON text" }),
);
const structuralTag = Type.Optional(
  Type.Union([anObject, Type.String()], { description: "a structural tag, as an object or as its JSON text" }),
);
/** What is so in any case. */
const always = Type.Optional(Type.Literal(true, { description: "true (other values are not supported)" }));

const StructuredOutputs = Type.Object(
  {
    json,
    regex: text,
    choice,
    grammar: text,
    json_object: Type.Optional(Type.Boolean({ description: "true or false" })),
    structural_tag: structuralTag,
    disable_any_whitespace: always,
    disable_additional_properties: always,
  },
  {
    ...noExtra,
    description: "an object with one of json, regex, choice, grammar, json_object and structural_tag",
  },
);

/** Beyond OpenAI, as vLLM has them. */
export const formatFields = {
  response_format: Type.Optional(ResponseFormat),
  structured_outputs: Type.Optional(StructuredOutputs),
  guided_json: json,
  guided_regex: text,
  guided_choice: choice,
  guided_grammar: text,
  structural_tag: structuralTag,
} satisfies TProperties;

type FormatFields = Static<ReturnType<typeof Type.Object<typeof formatFields>>>;
type Structured = Static<typeof StructuredOutputs>;

/** undefined: any text. */
export function outputFormat(body: FormatFields): OutputFormat | undefined {
  const { guided_json, guided_regex, guided_choice, guided_grammar, structural_tag } = body;
  const ways: [field: string, format: OutputFormat | undefined][] = [
    ["response_format", body.response_format && responseFormat(body.response_format)],
    ["structured_outputs", body.structured_outputs && structuredOutput(body.structured_outputs)],
    ["guided_json", structured({ json: guided_json }, "guided_json")[0]],
    ["guided_regex", structured({ regex: guided_regex })[0]],
    ["guided_choice", structured({ choice: guided_choice })[0]],
    ["guided_grammar", structured({ grammar: guided_grammar })[0]],
    ["structural_tag", structured({ structural_tag })[0]],
  ];
  const [first, second] = ways.filter(([, format]) => format !== undefined);
  if (second !== undefined) {
    throw new UserError(`${first[0]} and ${second[0]} say different things; give one.`, { param: second[0] });
  }
  return first?.[1];
}

function responseFormat(format: Static<typeof ResponseFormat>): OutputFormat | undefined {
  if (format.type === "text") return undefined;
  if (format.type === "structural_tag") return { kind: "structural", tag: format };
  if ("value" in format) {
    if (format.type === "regex") return { kind: "regex", pattern: format.value };
    return { kind: "schema", schema: format.type === "json_schema" ? format.value.schema : format.value };
  }
  if (format.type === "json_object") return { kind: "json" };
  const { schema, strict } = format.json_schema;
  return { kind: "schema", schema: schema ?? { type: "object" }, strict: strict ?? undefined };
}

function structuredOutput(given: Structured): OutputFormat {
  const ways = structured(given, "structured_outputs.json");
  if (ways.length === 1) return ways[0];
  const param = "structured_outputs";
  throw new UserError(
    `The field "${param}" must have exactly one of json, regex, choice, grammar, json_object and structural_tag.`,
    { code: "invalid_value", param },
  );
}

function structured(
  { json, regex, choice, grammar, json_object, structural_tag }: Structured,
  at = "",
): OutputFormat[] {
  const ways: OutputFormat[] = [];
  if (json !== undefined) ways.push({ kind: "schema", schema: typeof json === "string" ? schemaOf(json, at) : json });
  if (regex !== undefined) ways.push({ kind: "regex", pattern: regex });
  if (choice !== undefined) ways.push({ kind: "choice", choices: choice });
  if (grammar !== undefined) ways.push({ kind: "grammar", grammar });
  if (json_object === true) ways.push({ kind: "json" });
  if (structural_tag !== undefined) ways.push({ kind: "structural", tag: structural_tag });
  return ways;
}

function schemaOf(text: string, param: string): object {
  checkDepth(text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined;
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  throw new UserError(`The field "${param}" must be a JSON schema, as an object or as its JSON text.`, {
    code: "invalid_value",
    param,
  });
}
