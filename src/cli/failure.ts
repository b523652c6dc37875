// Owns: how the command fails: one message on standard error that says what was wrong and what would be right, and an exit
// code: 1 it could not be done, 2 the command line was wrong, 130 it was interrupted. DEBUG=1 shows where.
import { CommanderError } from "commander";
import { debugLevel } from "../base/env.js";
import { UserError } from "../base/errors.js";

/** The command line was wrong. */
export class UsageError extends UserError {}

const isAbort = (error: unknown) => error instanceof Error && error.name === "AbortError";

/** Prints the failure and returns the exit code. */
export function reportFailure(error: unknown): number {
  if (isAbort(error)) return 130;
  if (error instanceof CommanderError) {
    // "bench" alone has printed its own help.
    if (error.code === "commander.help") return 2;
    const message = error.message.replace(/^error: /, "");
    process.stderr.write(`millrace: ${message}\n"millrace --help" and "millrace COMMAND --help" show what there is.\n`);
    return 2;
  }
  const known = error instanceof UserError;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`millrace: ${known ? "" : "a fault in millrace: "}${message}\n`);
  if (debugLevel() > 0) process.stderr.write(`${stack(error)}\n`);
  else if (!known) process.stderr.write("DEBUG=1 shows where it happened; please report it.\n");
  return error instanceof UsageError ? 2 : 1;
}

function stack(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const own = error.stack ?? error.message;
  return error.cause === undefined ? own : `${own}\ncaused by: ${stack(error.cause)}`;
}
