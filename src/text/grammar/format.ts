// Owns: what an answer's text must be (OutputFormat) as a grammar's rule.
import { UserError } from "../../base/errors.js";
import { literal, type Rules } from "./ebnf.js";
import { foreignRule } from "./foreign.js";
import { anyObject } from "./json.js";
import { patternBody } from "./pattern.js";
import { schemaRule } from "./schema.js";
import { holdsGrammar, type Spelling, structuralRule, structuralTexts } from "./structural.js";

/** What the text of an answer must be. */
export type OutputFormat =
  /** Any JSON object. */
  | { readonly kind: "json" }
  /** Objects have the properties that they name and no others, unless additionalProperties says so or strict is false. */
  | { readonly kind: "schema"; readonly schema: object; readonly strict?: boolean }
  /** The whole answer matches it. */
  | { readonly kind: "regex"; readonly pattern: string }
  | { readonly kind: "choice"; readonly choices: readonly string[] }
  /** EBNF or GBNF with a rule "root". */
  | { readonly kind: "grammar"; readonly grammar: string }
  /** xgrammar's and vLLM's structural tag, as an object or its JSON text: free text in which what tags enclose has a form. */
  | { readonly kind: "structural"; readonly tag: object | string };

const mostChoices = 1000;

export interface FormatOptions {
  readonly spelling: Spelling;
  /** What follows the text; empty: nothing. */
  readonly close: string;
  /** The field that holds the format: for errors. */
  readonly param: string;
}

/** A body: the text and what closes it. Throws UserError for what cannot be kept. */
export function formatBody(rules: Rules, format: OutputFormat, options: FormatOptions): string {
  const { spelling, close, param } = options;
  if (format.kind === "structural") return structuralRule(rules, format.tag, options);
  const text = textRule(rules, format, param);
  return close === "" ? text : `${text} ${spelling.quoted(close)}`;
}

function textRule(rules: Rules, format: Exclude<OutputFormat, { kind: "structural" }>, param: string): string {
  switch (format.kind) {
    case "json":
      return anyObject(rules);
    case "schema":
      return schemaRule(rules, format.schema, { param, strict: format.strict });
    case "regex":
      return rules.rule("answer", patternBody(rules, format.pattern, { param }));
    case "choice":
      return rules.rule("answer", choiceBody(format.choices, param));
    case "grammar":
      return foreignRule(rules, format.grammar, param);
  }
}

/** Whether the compiler must first see whether it can read it. */
export function isForeign(format: OutputFormat): boolean {
  return format.kind === "grammar" || (format.kind === "structural" && holdsGrammar(format.tag));
}

/** Fixed texts of a format in which control tokens may be spelled. */
export function markTexts(format: OutputFormat): string[] {
  return format.kind === "structural" ? structuralTexts(format.tag) : [];
}

function choiceBody(choices: readonly string[], param: string): string {
  const distinct = [...new Set(choices)];
  if (distinct.length === 0 || distinct.length > mostChoices || distinct.includes("")) {
    throw new UserError(`A choice is among 1 to ${mostChoices} texts, none of them empty.`, {
      code: "invalid_choice",
      param,
    });
  }
  return distinct.map(literal).join(" | ");
}
