// Owns: how large a model may claim to be.
import { FormatError } from "../base/errors.js";

/** Far beyond any model there is; keeps products of two of them exact and hostile files from asking for the moon. */
export const most = {
  layers: 4096,
  heads: 4096,
  experts: 4096,
  headDim: 8192,
  width: 2 ** 22,
  vocab: 2 ** 25,
  context: 2 ** 31,
};

/** The readers ask this before a number becomes a divisor or the length of a loop. */
export function size(what: string, value: number, limit: number = most.width): number {
  if (!Number.isInteger(value) || value < 1 || value > limit) {
    throw new FormatError(`the ${what} must be a whole number from 1 to ${limit}, the file says ${value}`);
  }
  return value;
}
