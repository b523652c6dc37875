// Owns: what the parsers of headers share: how they ask for more bytes, and how they show text out of a file.
import { FormatError } from "../base/errors.js";

/** The header goes on beyond the bytes given, though not beyond the file: come again with at least `needed` bytes. */
export class HeaderIncomplete extends FormatError {
  constructor(readonly needed: number) {
    super(`the header is longer than the bytes at hand: at least ${needed} are needed`);
    this.name = "HeaderIncomplete";
  }
}

/** A name or value out of a file, short enough and plain enough for a message. */
export function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}
