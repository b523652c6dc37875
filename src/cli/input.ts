// Owns: standard input as a whole.
import { FormatError } from "../base/errors.js";

export async function readStdin(): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

export async function readStdinText(): Promise<string> {
  const bytes = await readStdin();
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new FormatError("standard input is not UTF-8 text");
  }
}
