// Owns: what constrained answers are asked for, by the bench and by the test: schemas of many kinds with bounded parts (so
// that an answer can end), and tools. `problem` says what is wrong with a complete answer.

const text = (maxLength = 60) => ({ type: "string", maxLength });
const topics = ["a cat", "the sea", "Paris", "a train", "breakfast", "the moon", "a library", "chess", "rain", "music"];

const schemas = {
  person: {
    type: "object",
    properties: {
      name: text(30),
      age: { type: "integer", minimum: 0, maximum: 120 },
      email: { type: "string", format: "email" },
      married: { type: "boolean" },
    },
    required: ["name", "age", "married"],
  },
  ratings: {
    type: "array",
    minItems: 1,
    maxItems: 4,
    items: {
      type: "object",
      properties: { item: text(20), score: { type: "number", minimum: 0, maximum: 1 } },
      required: ["item", "score"],
    },
  },
  event: {
    type: "object",
    properties: {
      title: text(),
      date: { type: "string", format: "date" },
      kind: { enum: ["meeting", "party", "holiday"] },
      place: { anyOf: [text(20), { type: "null" }] },
    },
    required: ["title", "date", "kind", "place"],
    additionalProperties: false,
  },
  shape: {
    oneOf: [
      {
        type: "object",
        properties: { kind: { const: "circle" }, radius: { type: "number", exclusiveMinimum: 0 } },
        required: ["kind", "radius"],
      },
      {
        type: "object",
        properties: {
          kind: { const: "box" },
          sides: { type: "array", items: { type: "integer", minimum: 1 }, minItems: 2, maxItems: 3 },
        },
        required: ["kind", "sides"],
      },
    ],
  },
  tree: {
    $defs: {
      leaf: { type: "object", properties: { label: text(12) }, required: ["label"] },
      node: {
        type: "object",
        properties: { label: text(12), children: { type: "array", items: { $ref: "#/$defs/leaf" }, maxItems: 3 } },
        required: ["label", "children"],
      },
    },
    $ref: "#/$defs/node",
  },
  codes: {
    type: "object",
    properties: {
      code: { type: "string", pattern: "^[A-Z]{3}-\\d{2,4}$" },
      quote: { type: "string", pattern: '^["\\\\a-z ]{3,20}$' },
    },
    required: ["code", "quote"],
  },
};

const tools = [
  {
    name: "get_weather",
    description: "Weather of a city",
    parameters: {
      type: "object",
      properties: { city: text(30), unit: { enum: ["celsius", "fahrenheit"] } },
      required: ["city", "unit"],
    },
  },
  {
    name: "search",
    description: "Search the web",
    parameters: {
      type: "object",
      properties: { query: text(), limit: { type: "integer", minimum: 1, maximum: 20 } },
      required: ["query"],
    },
  },
  { name: "now", description: "The time", parameters: { type: "object", properties: {}, additionalProperties: false } },
];

function schemaKind([name, schema]) {
  return {
    name,
    options: { format: { kind: "schema", schema } },
    prompt: (i) => `Give me some ${name} data about ${topics[i % topics.length]}.`,
    problem: (result, validate) => {
      const valid = parsed(result.text, (value) => validate(schema, value));
      return valid === true ? undefined : String(valid);
    },
  };
}

function toolKind(name, options) {
  return {
    name,
    options: { tools, ...options },
    prompt: (i) => `What is the weather in the city of ${topics[i % topics.length]}? Use the tools.`,
    problem: ({ toolCalls, finishReason, text: said }, validate) => {
      const must = options.toolChoice !== undefined;
      if (must !== (finishReason === "tool_calls") && must) return `ended with ${finishReason}`;
      if (must && (toolCalls.length === 0 || said !== "")) return "not calls alone";
      if (options.parallelToolCalls === false && toolCalls.length > 1) return "more than one call";
      for (const call of toolCalls) {
        const tool = tools.find((one) => one.name === call.name);
        if (tool === undefined) return `an unknown tool ${call.name}`;
        const valid = parsed(call.arguments, (value) => validate(tool.parameters, value));
        if (valid !== true) return String(valid);
      }
      return undefined;
    },
  };
}

function parsed(json, check) {
  try {
    return check(JSON.parse(json));
  } catch (error) {
    return `${error.message}: ${json.slice(0, 200)}`;
  }
}

export const answerKinds = [
  ...Object.entries(schemas).map(schemaKind),
  toolKind("one call", { toolChoice: "required", parallelToolCalls: false }),
  toolKind("named call", { toolChoice: { name: "search" }, parallelToolCalls: false }),
  toolKind("calls", { toolChoice: "required" }),
];
