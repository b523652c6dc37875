// Owns: how deeply JSON of callers may be nested: what reads it (validation, schemas, templates) calls itself once a level,
// and must not run out of stack. Looks at the text, so that nothing is built of what is refused.
import { UserError } from "./errors.js";

export const deepest = 128;

const quote = 34;
const backslash = 92;

/** Throws UserError for lists and objects in each other beyond the limit. Says nothing of whether it is JSON at all. */
export function checkDepth(text: string): void {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === quote) {
      for (i++; i < text.length && text.charCodeAt(i) !== quote; i++) if (text.charCodeAt(i) === backslash) i++;
      continue;
    }
    if (code === 91 || code === 123) {
      if (++depth > deepest) throw tooDeep();
    } else if (code === 93 || code === 125) depth--;
  }
}

const tooDeep = () =>
  new UserError(`The JSON is nested too deeply: at most ${deepest} lists and objects may be in each other.`, {
    code: "nested_too_deeply",
  });
