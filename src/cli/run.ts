// Owns: `millrace run MODEL [PROMPT]`: one answer, or a conversation where there is no prompt and a terminal.
import { Command } from "commander";
import type { ChatJob } from "../session/types.js";
import { type Answer, answer, stoppable } from "./answer.js";
import { UsageError } from "./failure.js";
import { figuresLine } from "./figures.js";
import {
  addDeviceFlags,
  addSamplingFlags,
  collect,
  type DeviceFlags,
  type SamplingFlags,
  samplingOf,
  wholeNumber,
} from "./flags.js";
import { readStdinText } from "./input.js";
import { modelArgument } from "./model.js";
import { type OpenModel, openModel } from "./open.js";

interface RunFlags extends DeviceFlags, SamplingFlags {
  readonly system?: string;
  readonly maxTokens?: number;
  readonly stop?: readonly string[];
  readonly lora?: string;
  readonly raw?: boolean;
  readonly json?: boolean;
}

const loraName = "lora";

type JobBase = Omit<ChatJob, "messages" | "prompt">;

function jobBase(flags: RunFlags, model: OpenModel): JobBase {
  return {
    n: 1,
    sampling: samplingOf(flags, model.sampling),
    ...(flags.maxTokens === undefined ? {} : { maxTokens: flags.maxTokens }),
    minTokens: 0,
    stop: flags.stop ?? [],
    stopIds: [],
    includeStop: false,
    ignoreEos: false,
    adapter: flags.lora === undefined ? undefined : loraName,
    priority: 0,
  };
}

function inputOf(prompt: string, flags: RunFlags, raw: boolean): Pick<ChatJob, "messages" | "prompt"> {
  if (raw) return { prompt };
  const user = { role: "user", content: prompt } as const;
  return { messages: flags.system === undefined ? [user] : [{ role: "system", content: flags.system }, user] };
}

/** Whether text is continued as it is. A model without a chat template can do nothing else, and says so. */
function isRaw(model: OpenModel, flags: RunFlags): boolean {
  if (flags.raw) {
    if (flags.system !== undefined) throw new UsageError("--system is a chat message: it cannot go with --raw");
    return true;
  }
  if (model.hasTemplate) return false;
  if (flags.system !== undefined) throw new UsageError(`${model.name} has no chat template: --system needs one`);
  process.stderr.write(`${model.name} has no chat template: it continues your text as it is (--raw).\n`);
  return true;
}

function printJson(model: OpenModel, said: Answer, seed: bigint): void {
  const { text, tokenIds, finishReason, figures, startToFirstTokenMs } = said;
  const { name, device, threads, kvDtype, loadMs } = model;
  const about = { model: name, device, threads, kvDtype, seed: seed.toString() };
  console.log(JSON.stringify({ text, finishReason, ...figures, startToFirstTokenMs, loadMs, tokenIds, ...about }));
}

async function once(model: OpenModel, prompt: string, flags: RunFlags): Promise<void> {
  const base = jobBase(flags, model);
  const job: ChatJob = { ...base, ...inputOf(prompt, flags, isRaw(model, flags)) };
  let endsLine = true;
  const onText = (text: string) => {
    process.stdout.write(text);
    endsLine = text.endsWith("\n");
  };
  const said = await stoppable((signal) => answer(model.session, job, { signal, ...(flags.json ? {} : { onText }) }));
  if (flags.json) printJson(model, said, base.sampling.seed);
  else {
    if (!endsLine) process.stdout.write("\n");
    process.stderr.write(`[${figuresLine(said.figures)}]\n`);
  }
  if (said.finishReason === "abort") process.exitCode = 130;
}

async function run(name: string, words: readonly string[], flags: RunFlags): Promise<void> {
  let prompt = words.join(" ");
  const talk = words.length === 0 && process.stdin.isTTY;
  if (talk && flags.json) throw new UsageError("--json wants a prompt: give one, or pipe it in");
  if (words.length === 0 && !talk) {
    prompt = await readStdinText();
    if (prompt === "") throw new UsageError('there is no prompt: give one (millrace run MODEL "…"), or pipe it in');
  }
  const adapters = flags.lora === undefined ? [] : [{ name: loraName, path: flags.lora }];
  const model = await openModel(name, { ...flags, sequences: 1, adapters });
  try {
    if (talk) {
      const { chat } = await import("./chat.js");
      const raw = isRaw(model, flags);
      await chat(model.session, jobBase(flags, model), {
        raw,
        ...(flags.system === undefined ? {} : { system: flags.system }),
      });
    } else await once(model, prompt, flags);
  } finally {
    await model.close();
  }
}

export function command(): Command {
  const program = new Command("run")
    .description("Answer a prompt, streaming; chat where there is none. The figures go to standard error.")
    .argument("<model>", modelArgument)
    .argument("[prompt...]", "what to answer; without it standard input, or a conversation in a terminal")
    .option("--system <text>", "the system message")
    .option("--max-tokens <n>", "longest answer (default: to the end of the context)", wholeNumber(1))
    .option("--stop <text>", "end the answer before this text (may be given several times)", collect)
    .option("--lora <path>", "answer with this LoRA adapter: a .gguf file or a PEFT folder")
    .option("--raw", "continue the prompt as it is, without the chat template")
    .option("--json", "print {text, promptTokens, generatedTokens, ttftMs, …} as JSON when the answer is whole");
  addSamplingFlags(program);
  return addDeviceFlags(program)
    .addHelpText(
      "after",
      `
Examples:
  millrace run smollm2 "Why is the sky blue?"
  millrace run smollm2                                     chat
  millrace run ./model.gguf --temperature 0 "Two plus two is"
  git diff | millrace run smollm2 --system "Sum up this change in one line."
  millrace run smollm2 --raw --max-tokens 20 "Once upon a time"
  millrace run smollm2 --json --seed 7 "Tell me a joke."`,
    )
    .action(run);
}
