// Owns: where tests find the real models. scripts/test.mjs fetches them into the store and names them in two variables;
// without SmolLM2 its tests fail rather than pass unseen, without Gemma they say that they were left out.
import { existsSync } from "node:fs";

/** Path of SmolLM2-135M-Instruct Q4_1, the default model. */
export function smollm2(): string {
  const path = process.env.MILLRACE_TEST_SMOLLM2;
  if (path === undefined || path === "") {
    throw new Error(
      "MILLRACE_TEST_SMOLLM2 must name the default model's .gguf: run `npm test`, which fetches it and sets it",
    );
  }
  if (!existsSync(path)) throw new Error(`MILLRACE_TEST_SMOLLM2 names ${path}, which is not there`);
  return path;
}

let warned = false;

/** Path of Gemma 3 270M Q4_K_M, or undefined, said aloud, where it was not fetched. */
export function gemma(): string | undefined {
  const path = process.env.MILLRACE_TEST_GEMMA;
  if (path !== undefined && path !== "" && existsSync(path)) return path;
  if (!warned) console.warn("SKIPPED: tests with Gemma 3 270M, because MILLRACE_TEST_GEMMA does not name its .gguf");
  warned = true;
  return undefined;
}
