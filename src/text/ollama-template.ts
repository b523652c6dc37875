// Owns: a Go template as Ollama's packages use it: which values it is given, and the older form that knows only .System,
// .Prompt and .Response and is run once a turn. Messages and tools come in Hugging Face's form, as Jinja templates get
// them. Semantics: Ollama's template package.
import { FormatError } from "../base/errors.js";
import { type GoFunction, GoStruct, goJson, runGoTemplate, unknownFunctions, visitOperands } from "./go-template.js";
import { type Node, type Operand, type ParsedTemplate, type Pipe, parseGoTemplate } from "./go-template-parse.js";

type Fields = Readonly<Record<string, unknown>>;

interface Message {
  readonly role: string;
  content: string;
  readonly fields: Fields;
}

const day = (date: Date) => {
  const two = (value: number) => String(value).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
};

function functionsAt(now: Date): Readonly<Record<string, GoFunction>> {
  return {
    json: goJson,
    currentDate: () => day(now),
    yesterdayDate: () => day(new Date(now.getFullYear(), now.getMonth(), now.getDate() - 1)),
    toTypeScriptType: (value) => (value instanceof GoStruct ? typeScriptType(value.json as Fields) : "any"),
  };
}

const typeScriptNames: Readonly<Record<string, string>> = {
  ...{ string: "string", number: "number", integer: "number", boolean: "boolean", null: "null" },
  ...{ array: "any[]", object: "Record<string, any>" },
};

function typeScriptType(property: Fields): string {
  const { anyOf, type } = property;
  if (Array.isArray(anyOf) && anyOf.length > 0) return anyOf.map((one) => typeScriptType(one as Fields)).join(" | ");
  const types = (Array.isArray(type) ? type : [type]).map((one) => typeScriptNames[String(one)] ?? "any");
  return types.length === 0 ? "any" : types.join(" | ");
}

const present = (fields: Fields) =>
  Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== "" && !isEmptyList(value)),
  );
const isEmptyList = (value: unknown) => Array.isArray(value) && value.length === 0;

/** JSON's objects are Go's maps. */
function goValue(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(goValue);
  if (typeof value !== "object" || value === null) return value ?? null;
  return new Map(Object.entries(value).map(([key, one]) => [key, goValue(one)]));
}

const propertiesMap = (properties: unknown) =>
  new Map(Object.entries((properties ?? {}) as Fields).map(([name, one]) => [name, propertyStruct(one as Fields)]));

function propertyStruct(given: Fields): GoStruct {
  const { type, description = "", items, enum: values, anyOf, properties, required } = given ?? {};
  const types = type === undefined ? [] : [type].flat();
  const nested = properties === undefined ? null : propertiesMap(properties);
  const fields = {
    AnyOf: Array.isArray(anyOf) ? anyOf.map((one) => propertyStruct(one as Fields)) : [],
    Type: types.length === 1 ? String(types[0]) : types.length === 0 ? "" : types.map(String),
    Items: goValue(items),
    Description: description,
    Enum: goValue(values ?? []),
    Properties: nested,
    Required: required ?? [],
  };
  return new GoStruct(fields, present({ anyOf, type, items, description, enum: values, properties, required }));
}

function toolStruct(tool: Fields): GoStruct {
  const called = (tool.function ?? tool) as Fields;
  const { name = "", description = "", parameters: given } = called;
  const { type = "", required, properties, $defs, items } = (given ?? {}) as Fields;
  const parameterJson = { type, ...present({ $defs, items, required }), properties: propertiesMap(properties) };
  const functionJson = { name, description, parameters: parameterJson };
  const parameterFields = {
    ...{ Type: type, Required: required ?? [], Properties: propertiesMap(properties) },
    ...{ Defs: goValue($defs), Items: goValue(items) },
  };
  const parameters = new GoStruct(parameterFields, parameterJson);
  const inner = new GoStruct({ Name: name, Description: description, Parameters: parameters }, functionJson);
  const kind = tool.type ?? "function";
  return new GoStruct({ Type: kind, Items: null, Function: inner }, { type: kind, function: functionJson });
}

function callStruct(call: Fields, index: number): GoStruct {
  const { name = "", arguments: given } = (call.function ?? call) as Fields;
  const args = goValue(given ?? {});
  const inner = { Index: index, Name: name, Arguments: args };
  return new GoStruct(
    { ID: call.id ?? "", Function: new GoStruct(inner, { index, name, arguments: args }) },
    { id: call.id ?? "", function: { index, name, arguments: args } },
  );
}

function messageStruct({ role, content, fields }: Message): GoStruct {
  const calls = Array.isArray(fields.tool_calls) ? (fields.tool_calls as Fields[]).map(callStruct) : [];
  const all = {
    Role: role,
    Content: content,
    Thinking: fields.reasoning_content ?? fields.thinking ?? "",
    Images: [],
    ToolCalls: calls,
    ToolName: fields.tool_name ?? fields.name ?? "",
    ToolCallID: fields.tool_call_id ?? "",
  };
  return new GoStruct(all, all);
}

/** Neighbours of one role become one message, tools' apart. system: all system messages' text. */
function collate(given: readonly Fields[]): { system: string; messages: Message[] } {
  const messages: Message[] = [];
  const system: string[] = [];
  for (const fields of given) {
    const [role, content] = [String(fields.role), String(fields.content ?? "")];
    if (role === "system") system.push(content);
    const last = messages.at(-1);
    if (last?.role === role && role !== "tool") last.content += `\n\n${content}`;
    else messages.push({ role, content, fields });
  }
  return { system: system.join("\n\n"), messages };
}

const isResponse = (operand: Operand) => operand.kind === "dot" && operand.names.includes("Response");

/** What stands before .Response, and that: the last turn of the older form ends there. */
function upToResponse(nodes: readonly Node[]): { nodes: Node[]; cut: boolean } {
  const out: Node[] = [];
  for (const node of nodes) {
    if (node.kind === "action" && usesResponse(node.pipe)) return { nodes: [...out, node], cut: true };
    if (!("body" in node)) {
      out.push(node);
      continue;
    }
    const body = upToResponse(node.body);
    const otherwise = body.cut ? { nodes: [], cut: true } : upToResponse(node.otherwise);
    out.push({ ...node, body: body.nodes, otherwise: otherwise.nodes });
    if (otherwise.cut) return { nodes: out, cut: true };
  }
  return { nodes: out, cut: false };
}

const usesResponse = ({ commands }: Pipe): boolean =>
  commands.flat().some((operand) => isResponse(operand) || (operand.kind === "pipe" && usesResponse(operand.pipe)));

const responseNode: Node = {
  kind: "action",
  pipe: { variables: [], assigns: false, commands: [[{ kind: "dot", names: ["Response"] }]] },
  line: 0,
};

export class OllamaTemplate {
  private readonly template: ParsedTemplate;
  private readonly lastTurn: readonly Node[];
  private readonly names = new Set<string>();

  /** Throws FormatError for what is no Go template, or one that calls what Ollama does not have. */
  constructor(readonly source: string) {
    const parsed = parseGoTemplate(source);
    visitOperands(parsed, (operand) => {
      const names = "names" in operand ? operand.names : [];
      for (const name of names) this.names.add(name);
    });
    const { nodes } = parsed;
    const complete = this.names.has("Messages") || this.names.has("Response") ? nodes : [...nodes, responseNode];
    this.template = { ...parsed, nodes: complete };
    this.lastTurn = upToResponse(complete).nodes;
    const unknown = unknownFunctions(parsed, functionsAt(new Date(0)));
    if (unknown.length > 0) throw new FormatError(`the template calls what there is not: ${unknown.join(", ")}`);
  }

  /** Whether the template has a place for text behind the answer. */
  get takesSuffix(): boolean {
    return this.names.has("Suffix");
  }

  get takesTools(): boolean {
    return this.names.has("Tools");
  }

  /** variables as a Jinja template gets them: messages, tools; enable_thinking and reasoning_effort become .Think. */
  render(variables: Fields, now = new Date()): string {
    const { system, messages } = collate(variables.messages as readonly Fields[]);
    const run = (nodes: readonly Node[], values: Fields) => {
      const data = new Map(Object.entries({ ...thinking(variables), ...values }));
      return runGoTemplate(this.template, nodes, data, functionsAt(now));
    };
    const { nodes } = this.template;
    if (!this.names.has("Messages")) return this.turns(messages, run);
    const tools = Array.isArray(variables.tools) ? (variables.tools as Fields[]).map(toolStruct) : [];
    return run(nodes, { System: system, Messages: messages.map(messageStruct), Tools: tools, Response: "" });
  }

  /** The prompt for a text between prompt and suffix. */
  renderInfill(prompt: string, suffix: string, now = new Date()): string {
    const values = { ...thinking({}), Prompt: prompt, Suffix: suffix, Response: "" };
    return runGoTemplate(this.template, this.template.nodes, new Map(Object.entries(values)), functionsAt(now));
  }

  private turns(messages: readonly Message[], run: (nodes: readonly Node[], values: Fields) => string): string {
    let out = "";
    let turn = { System: "", Prompt: "", Response: "" };
    const flush = () => {
      out += run(this.template.nodes, turn);
      turn = { System: "", Prompt: "", Response: "" };
    };
    for (const { role, content } of messages) {
      if (role === "system") {
        if (turn.Prompt !== "" || turn.Response !== "") flush();
        turn.System = content;
      } else if (role === "user") {
        if (turn.Response !== "") flush();
        turn.Prompt = content;
      } else if (role === "assistant") turn.Response = content;
    }
    return out + run(this.lastTurn, turn);
  }
}

function thinking({ enable_thinking: enabled, reasoning_effort: level }: Fields): Fields {
  const set = enabled !== undefined || level !== undefined;
  return { Think: enabled === true || typeof level === "string", ThinkLevel: level ?? "", IsThinkSet: set };
}
