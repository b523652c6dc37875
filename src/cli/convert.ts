// Owns: `millrace convert`: writing a model as one GGUF file.
import { closeSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import { layOutGguf } from "../formats/gguf-writer.js";
import { type RandomCheckpoint, randomCheckpoint } from "../model/random.js";
import { addShapeFlags, randomModel, type ShapeFlags } from "./shape.js";

interface ConvertFlags extends ShapeFlags {
  readonly output: string;
}

/** Whole or not at all: under another name until the last byte is there. */
function writeGguf(checkpoint: RandomCheckpoint, path: string): number {
  const tensors = [...checkpoint.tensors.values()];
  const { header, offsets, fileBytes } = layOutGguf(checkpoint.values, tensors);
  const temporary = `${path}.${process.pid}.tmp`;
  const file = openSync(temporary, "wx");
  try {
    writeAll(file, header, 0);
    for (const { name } of tensors) writeAll(file, checkpoint.read(name), offsets.get(name)!);
    ftruncateSync(file, fileBytes);
    closeSync(file);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  return fileBytes;
}

function writeAll(file: number, bytes: Uint8Array, at: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done, bytes.length - done, at + done);
}

export function command(): Command {
  return addShapeFlags(new Command("convert"))
    .description("Write a model of random weights as a GGUF file, so that other programs can run the same bytes.")
    .requiredOption("-o, --output <file>", "the GGUF file to write")
    .addHelpText(
      "after",
      "\nExamples:\n  millrace convert --shape llama-3.2-1b --quant q4_k_m -o llama-1b-random-q4_k_m.gguf",
    )
    .action(({ shape, output, ...flags }: ConvertFlags) => {
      if (shape === undefined) throw new UserError("convert needs --shape: which model's shape to write");
      const bytes = writeGguf(randomCheckpoint(randomModel({ shape, ...flags })), output);
      console.error(`${output}: ${(bytes / 1e6).toFixed(1)} MB`);
    });
}
