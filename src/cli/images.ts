// Owns: pictures named in a prompt. Ollama's command sends the files along; here no model sees, and a name that went to the
// model as text would get an answer about a picture that nobody looked at.
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { UserError } from "../base/errors.js";

const pictures = /(?:'([^']+)'|"([^"]+)"|(\S+))/g;
/** As a path, not a word: "what is a favicon.png?" names none. */
const isPicture = /^(?:\.{0,2}|~)\/.*\.(?:png|jpe?g|webp)$/i;

/** Throws UserError where the text names a picture that is there. */
export function refuseImages(text: string, model: string): void {
  for (const [, single, double, bare] of text.matchAll(pictures)) {
    const name = (single ?? double ?? bare).replaceAll("\\ ", " ");
    if (isPicture.test(name) && existsSync(name.replace(/^~(?=\/)/, homedir()))) {
      throw new UserError(`${model} takes no images: leave ${name} out of the prompt.`, {
        code: "images_not_supported",
      });
    }
  }
}
