// Owns: telling the two languages of chat templates apart: Jinja (Hugging Face) and Go's text/template (Ollama).

export type TemplateKind = "jinja" | "go";

/** Jinja has statements in {% %}; Go's values begin with a dot, a variable or a keyword of its own. */
export function templateKind(text: string): TemplateKind {
  if (/\{%|\{#/.test(text)) return "jinja";
  const go =
    /\{\{-?\s*(\.|\$|(if|range|with|else|end|define|template|block|json|len|index|eq|ne|and|or|not|printf?|slice)\b)/;
  return go.test(text) || !text.includes("{{") ? "go" : "jinja";
}
