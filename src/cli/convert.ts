// Owns: `millrace convert`: writing a model, a file's or a random one, as one GGUF file, quantised where asked for.
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import { parseQuantisation, quantisations } from "../formats/quant/recipe.js";
import { openSpec } from "../host/checkpoint.js";
import { convertToGguf } from "../host/convert.js";
import { wholeNumber } from "./flags.js";
import { modelArgument, resolveModel } from "./model.js";
import { pullReport } from "./progress.js";
import { addShapeFlags, randomModel, type ShapeFlags } from "./shape.js";

interface ConvertFlags extends ShapeFlags {
  readonly output: string;
  readonly threads?: number;
}

export function command(): Command {
  return addShapeFlags(new Command("convert").argument("[model]", modelArgument))
    .description(
      "Write a model as one GGUF file: from a Hugging Face folder or a GGUF in F32, F16 or BF16, quantised with --quant.",
    )
    .requiredOption("-o, --output <file>", "the GGUF file to write")
    .option("--threads <n>", "threads to quantise with (default: the processor's cores)", wholeNumber(1, 1024))
    .addHelpText(
      "after",
      `
Quantisations: ${quantisations.join(", ")}. Without one a GGUF file keeps its own types.

Examples:
  millrace convert ./Llama-3.2-1B --quant q4_k_m -o llama-3.2-1b-q4_k_m.gguf
  millrace convert --shape llama-3.2-1b --quant q4_k_m -o llama-1b-random-q4_k_m.gguf`,
    )
    .action(async (model: string | undefined, { output, threads, ...flags }: ConvertFlags) => {
      if ((model === undefined) === (flags.shape === undefined)) throw new UserError("give either a model or --shape");
      // A random model is made in the types that it is to have.
      const random = flags.shape === undefined ? undefined : randomModel({ ...flags, shape: flags.shape });
      const quantisation = random || flags.quant === undefined ? undefined : parseQuantisation(flags.quant);
      const { path } = model === undefined ? { path: random!.name } : await resolveModel(model);
      const checkpoint = await openSpec({ path, random });
      const report = pullReport();
      const onProgress = (done: number, total: number) => report.progress?.(output, done, total);
      try {
        await convertToGguf(checkpoint, output, { quantisation, threads, onProgress });
      } finally {
        report.stop();
        checkpoint.close();
      }
    });
}
