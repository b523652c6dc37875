// Owns: what an answer's text must be (OutputFormat) as a grammar's rule.
import { UserError } from "../../base/errors.js";
import { literal, type Rules } from "./ebnf.js";
import { foreignRule } from "./foreign.js";
import { anyObject } from "./json.js";
import { patternBody } from "./pattern.js";
import { schemaRule } from "./schema.js";

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
  | { readonly kind: "grammar"; readonly grammar: string };

const mostChoices = 1000;

/** The name of the rule. Throws UserError for what cannot be kept. */
export function formatRule(rules: Rules, format: OutputFormat, param = "format"): string {
  switch (format.kind) {
    case "json":
      return anyObject(rules);
    case "schema":
      return schemaRule(rules, format.schema, { param, strict: format.strict });
    case "regex":
      return rules.rule("answer", patternBody(format.pattern, { param }));
    case "choice":
      return rules.rule("answer", choiceBody(format.choices, param));
    case "grammar":
      return foreignRule(rules, format.grammar, param);
  }
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
