// Go templates against Go's own text/template (test/golden/go-template/make.go), and the turns that Ollama makes of them.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { GoStruct, runGoTemplate } from "../../src/text/go-template.js";
import { parseGoTemplate } from "../../src/text/go-template-parse.js";
import { OllamaTemplate } from "../../src/text/ollama-template.js";
import { templateKind } from "../../src/text/template-kind.js";

interface Golden {
  readonly messages: readonly Record<string, unknown>[];
  readonly tools: readonly Record<string, unknown>[];
  readonly cases: readonly { readonly template: string; readonly text: string }[];
}

const golden = JSON.parse(readFileSync(new URL("../golden/go-template/cases.json", import.meta.url), "utf8")) as Golden;

test.each(golden.cases)("$template", ({ template, text }) => {
  const { messages, tools } = golden;
  // The older form begins where nothing names .Messages.
  const inner = new OllamaTemplate(`${template}{{ if false }}{{ .Messages }}{{ end }}`);
  expect(inner.render({ messages, tools })).toBe(text);
});

const talk = [
  { role: "system", content: "S" },
  { role: "user", content: "A" },
  { role: "assistant", content: "B" },
  { role: "user", content: "C" },
];

test("a template without messages is run once a turn, and the last ends where the answer begins", () => {
  const template = new OllamaTemplate("{{ if .System }}<<{{ .System }}>>{{ end }}[{{ .Prompt }}]={{ .Response }};\n");
  expect(template.render({ messages: talk })).toBe("<<S>>[A]=B;\n[C]=");
});

test("a template that does not say where the answer goes has it at the end", () => {
  expect(new OllamaTemplate("[{{ .Prompt }}]").render({ messages: talk })).toBe("[A]B[C]");
});

test("neighbours of one role become one message; the system's messages are .System together", () => {
  const template = new OllamaTemplate("{{ .System }}|{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}");
  const messages = [...talk.slice(0, 2), { role: "user", content: "A2" }, { role: "system", content: "S2" }];
  expect(template.render({ messages })).toBe("S\n\nS2|system:S;user:A\n\nA2;system:S2;");
});

test("reasoning is asked for by .Think, .ThinkLevel and .IsThinkSet", () => {
  const template = new OllamaTemplate(
    "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}{{ if false }}{{ .Messages }}{{ end }}",
  );
  expect(template.render({ messages: [] })).toBe("false  false");
  expect(template.render({ messages: [], enable_thinking: false })).toBe("false  true");
  expect(template.render({ messages: [], enable_thinking: true, reasoning_effort: "high" })).toBe("true high true");
});

test("a text between prompt and suffix", () => {
  const template = new OllamaTemplate("<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ .Response }}");
  expect(template.takesSuffix).toBe(true);
  expect(template.renderInfill("a", "b")).toBe("<PRE>a<SUF>b<MID>");
});

test("dates and TypeScript's names of types", () => {
  const source =
    "{{ currentDate }} {{ yesterdayDate }}{{ range .Tools }}{{ range .Function.Parameters.Properties }} {{ toTypeScriptType . }}{{ end }}{{ end }}";
  const properties = { a: { type: "integer" }, b: { type: ["string", "null"] }, c: { anyOf: [{ type: "array" }] } };
  const tools = [{ type: "function", function: { name: "f", parameters: { type: "object", properties } } }];
  const template = new OllamaTemplate(`${source}{{ if false }}{{ .Messages }}{{ end }}`);
  const text = template.render({ messages: [], tools }, new Date(2024, 2, 1, 12));
  expect(text).toBe("2024-03-01 2024-02-29 number string | null any[]");
});

test.each([
  ["a\n{{ if .X }}b", /line 2: {{ if }} has no {{ end }}/],
  ["{{ end }}", /line 1: {{ end }} is not expected/],
  ["a {{ .X", /a {{ that does not end/],
  ['{{ block "x" . }}{{ end }}', /block }} is not supported/],
  ["{{ nosuch .X }}", /calls what there is not: nosuch/],
  ["\n\n{{ .X | }}", /line 3/],
  ["{{ break }}", /outside of a range/],
  ["{{ .X & 1 }}", /"& 1 }}" is not understood/],
])("%j is refused with its line", (source, message) => {
  expect(() => new OllamaTemplate(source)).toThrow(message);
});

test.each([
  ["\n{{ .System.Name }}", /line 2: .Name of S/],
  ["{{ range .Messages }}{{ .Name }}{{ end }}", /there is no field .Name/],
  ["{{ index .Messages 9 }}", /index 9 is outside of a list of 4/],
  ["{{ len 3 }}", /it has no length/],
  ['{{ eq 1 "a" }}', /different types/],
  ['{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}', /without end/],
  ["{{ range 9000000 }}{{ end }}", /cannot be ranged over/],
  ["{{ range 2000 }}{{ range 2000 }}{{ end }}{{ end }}", /does not come to an end/],
])("%j fails with words, not with a fault", (source, message) => {
  const template = new OllamaTemplate(`${source}{{ if false }}{{ .Messages }}{{ end }}`);
  expect(() => template.render({ messages: talk })).toThrow(message);
});

test("a struct's unknown field is an error, a map's is nothing", () => {
  const run = (x: unknown) =>
    runGoTemplate(parseGoTemplate("{{ .X.Y }}"), parseGoTemplate("{{ .X.Y }}").nodes, new Map([["X", x]]));
  expect(run(new Map())).toBe("<no value>");
  expect(() => run(new GoStruct({ Z: 1 }, {}))).toThrow(/no field .Y/);
});

test("the two languages are told apart", () => {
  expect(templateKind("{% for m in messages %}{{ m['content'] }}{% endfor %}")).toBe("jinja");
  expect(templateKind("{{ messages[0]['content'] }}")).toBe("jinja");
  expect(templateKind("{{- range .Messages }}{{ .Content }}{{ end }}")).toBe("go");
  expect(templateKind("{{ if .System }}x{{ end }}")).toBe("go");
  expect(templateKind("no actions at all")).toBe("go");
});
