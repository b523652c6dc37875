// Owns: a chat template in either language: Jinja, or Go's as Ollama's packages have it.
import { JinjaTemplate } from "./jinja.js";
import { OllamaTemplate } from "./ollama-template.js";
import { type TemplateKind, templateKind } from "./template-kind.js";

export interface TemplateEngine {
  readonly source: string;
  /** Throws UserError or FormatError for what the template refuses or does wrong. */
  render(variables: Readonly<Record<string, unknown>>, now?: Date): string;
  /** The prompt for a text between two others; only where takesSuffix. */
  renderInfill?(prompt: string, suffix: string, now?: Date): string;
  readonly takesSuffix?: boolean;
}

/** Throws FormatError, with the line where the language tells it, for what cannot be read. */
export function parseTemplate(text: string, kind: TemplateKind = templateKind(text)): TemplateEngine {
  return kind === "go" ? new OllamaTemplate(text) : new JinjaTemplate(text);
}
