// Owns: `millrace run MODEL [PROMPT]`: one answer, or a conversation where there is no prompt and a terminal.
import { existsSync, readFileSync } from "node:fs";
import { Command } from "commander";
import { UserError } from "../base/errors.js";
import { seedBits } from "../session/sampling.js";
import type { ChatJob, OutputFormat, Thinking } from "../session/types.js";
import { withPackageMessages } from "../store/apply.js";
import { type Answer, answer, stoppable } from "./answer.js";
import type { JobBase, LoadFlags } from "./conversation.js";
import { UsageError } from "./failure.js";
import { figuresBlock, figuresLine } from "./figures.js";
import {
  addDeviceFlags,
  addGuessFlags,
  addSamplingFlags,
  collect,
  type DeviceFlags,
  duration,
  type SamplingFlags,
  samplingOf,
  wholeNumber,
} from "./flags.js";
import { refuseImages } from "./images.js";
import { readStdinText } from "./input.js";
import { modelArgument } from "./model.js";
import { type OpenModel, openModel } from "./open.js";
import { askServer } from "./remote.js";
import { foretold } from "./speeds.js";
import { answerView } from "./wrap.js";

interface RunFlags extends DeviceFlags, SamplingFlags {
  readonly system?: string;
  readonly maxTokens?: number;
  readonly stop?: readonly string[];
  readonly lora?: string;
  readonly raw?: boolean;
  readonly json?: boolean;
  readonly format?: string;
  readonly think?: string | boolean;
  readonly hidethinking?: boolean;
  readonly verbose?: boolean;
  readonly nowordwrap?: boolean;
  readonly insecure?: boolean;
  /** Milliseconds. */
  readonly keepalive?: number;
  readonly truncate?: string | boolean;
  readonly dimensions?: number;
}

const loraName = "lora";

function jobBase(flags: RunFlags, model: OpenModel): JobBase {
  return {
    n: 1,
    sampling: samplingOf({ ...flags, seed: flags.seed ?? packageSeed(model) }, model.sampling),
    ...definedOf({ maxTokens: flags.maxTokens ?? model.settings.maxTokens }),
    minTokens: 0,
    stop: flags.stop ?? model.settings.stop,
    stopIds: [],
    includeStop: false,
    ignoreEos: false,
    adapter: flags.lora === undefined ? model.adapter : loraName,
    priority: 0,
    ...definedOf({ format: formatOf(flags.format), think: thinkingOf(flags.think) }),
  };
}

const packageSeed = ({ settings: { seed } }: OpenModel) => (seed === undefined ? undefined : seedBits(seed));

function definedOf<T extends object>(fields: T): Partial<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Partial<T>;
}

/** "json", or a JSON schema: itself, or the file that holds it. */
function formatOf(text: string | undefined): OutputFormat | undefined {
  if (text === undefined) return undefined;
  if (text === "json") return { kind: "json" };
  const file = /^\s*[{[]/.test(text) || !existsSync(text) ? undefined : text;
  try {
    const schema: unknown = JSON.parse(file === undefined ? text : readFileSync(file, "utf8"));
    if (typeof schema === "object" && schema !== null) return { kind: "schema", schema };
  } catch {
    // Said below.
  }
  throw new UsageError(
    file === undefined
      ? '--format must be json, a JSON schema such as \'{"type": "object"}\', or the name of a file that holds one'
      : `--format: ${file} holds no JSON schema`,
  );
}

function thinkingOf(text: string | boolean | undefined): Thinking | undefined {
  if (typeof text !== "string") return text;
  if (text === "true" || text === "false") return text === "true";
  return text as "low" | "medium" | "high";
}

function inputOf(
  prompt: string,
  flags: RunFlags,
  raw: boolean,
  model: OpenModel,
): Pick<ChatJob, "messages" | "prompt"> {
  if (raw) return { prompt };
  const user = { role: "user", content: prompt } as const;
  const own = flags.system === undefined ? model.package : { ...model.package, system: flags.system };
  return { messages: withPackageMessages(own, [user]) };
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
  const job: ChatJob = { ...base, ...inputOf(prompt, flags, isRaw(model, flags), model) };
  const { hidethinking: hideThinking = false, verbose } = flags;
  const view = answerView(process.stdout, { wordWrap: !flags.nowordwrap, hideThinking });
  const said = await stoppable((signal) => answer(model.session, job, { signal, ...(flags.json ? {} : view) })).catch(
    (error: unknown) => {
      if (!flags.json) view.end();
      throw error;
    },
  );
  if (flags.json) printJson(model, said, base.sampling.seed);
  else {
    view.end();
    process.stderr.write(
      `${verbose ? figuresBlock(said.figures, model.loadMs, foretold(model)) : `[${figuresLine(said.figures)}]`}\n`,
    );
  }
  if (said.finishReason === "abort") process.exitCode = 130;
}

/** A model that gives embeddings prints the text's, a JSON array. */
async function vectorOf(model: OpenModel, text: string, { truncate, dimensions }: RunFlags): Promise<void> {
  const { embed } = await import("../session/embed.js");
  const job = { inputs: [text], truncate: truncate !== "false", dimensions, normalize: true };
  const { vectors } = await stoppable((signal) => embed(model.session, job, signal));
  console.log(JSON.stringify([...vectors[0]]));
}

/** The word behind --think is a level, or the prompt's first. */
function thinkApart(words: readonly string[], flags: RunFlags): { words: readonly string[]; flags: RunFlags } {
  const { think } = flags;
  if (typeof think !== "string" || /^(true|false|low|medium|high)$/.test(think)) return { words, flags };
  return { words: [think, ...words], flags: { ...flags, think: true } };
}

async function run(name: string, given: readonly string[], all: RunFlags): Promise<void> {
  const { words, flags } = thinkApart(given, all);
  let prompt = words.join(" ");
  const talk = words.length === 0 && process.stdin.isTTY;
  if (talk && flags.json) throw new UsageError("--json wants a prompt: give one, or pipe it in");
  if (words.length === 0 && !talk) {
    prompt = await readStdinText();
    if (prompt === "") throw new UsageError('there is no prompt: give one (millrace run MODEL "…"), or pipe it in');
  }
  // What is piped in is text, whatever it names.
  refuseImages(words.join(" "), name);
  const adapters = flags.lora === undefined ? [] : [{ name: loraName, path: flags.lora }];
  const open = (one: string, more: LoadFlags = {}) => openModel(one, { ...flags, ...more, sequences: 1, adapters });
  let model = await open(name);
  try {
    const embeds = model.session.limits.embeddingSize !== undefined;
    if (embeds && talk) throw new UsageError(`${model.name} gives embeddings and does not chat: give it a text`);
    if (embeds) await vectorOf(model, prompt, flags);
    else if (talk) model = await converse(model, flags, open);
    else await once(model, prompt, flags);
  } finally {
    await model.close();
  }
  if (flags.keepalive !== undefined) await keepLoaded(name, flags.keepalive);
}

/** The model of this command ends with it; a server's can stay. */
async function keepLoaded(name: string, ms: number): Promise<void> {
  const keep_alive = Number.isFinite(ms) ? `${ms}ms` : -1;
  try {
    await (await askServer("/api/generate", { model: name, keep_alive, stream: false })).text();
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    process.stderr.write(`--keepalive is for a server's models, and ${error.message}\n`);
  }
}

/** The model that the conversation ended with. */
async function converse(
  first: OpenModel,
  flags: RunFlags,
  open: (name: string, more: LoadFlags) => Promise<OpenModel>,
): Promise<OpenModel> {
  const { chat } = await import("./chat.js");
  const about = (model: OpenModel) => ({ model, job: jobBase(flags, model), raw: isRaw(model, flags) });
  const conversation = await chat({
    ...about(first),
    ...definedOf({ system: flags.system }),
    wordWrap: !flags.nowordwrap,
    hideThinking: flags.hidethinking ?? false,
    verbose: flags.verbose ?? false,
    open: async (name, more = {}) => about(await open(name, more)),
  });
  return conversation.model;
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
    .option("--format <json|schema>", "the answer is JSON; with a JSON schema or a file that holds one, of that form")
    .option("--think [level]", "reasoning before the answer, for models that can: true, false, low, medium, high")
    .option("--hidethinking", "do not show the reasoning")
    .option(
      "--keepalive <time>",
      "afterwards, how long a running server keeps the model (5m, 0, -1: for ever)",
      duration,
    )
    .option(
      "--truncate [flag]",
      "of an embedding model: false refuses a text that is too long (default: its end is cut)",
    )
    .option("--dimensions <n>", "of an embedding model: only so many of the vector's numbers", wholeNumber(1))
    .option("--verbose", "all figures at the end, one a line")
    .option("--nowordwrap", "do not break lines between words")
    .option("--insecure", "a registry may be spoken to without TLS")
    .option("--raw", "continue the prompt as it is, without the chat template")
    .option("--json", "print {text, promptTokens, generatedTokens, ttftMs, …} as JSON when the answer is whole");
  addSamplingFlags(program);
  return addGuessFlags(addDeviceFlags(program))
    .addHelpText(
      "after",
      `
Examples:
  millrace run smollm2 "Why is the sky blue?"
  millrace run smollm2                                     chat
  millrace run ./model.gguf --temperature 0 "Two plus two is"
  git diff | millrace run smollm2 --system "Sum up this change in one line."
  millrace run smollm2 --raw --max-tokens 20 "Once upon a time"
  millrace run all-minilm "Some text"                      an embedding, as JSON
  millrace run smollm2 --json --seed 7 "Tell me a joke."`,
    )
    .action(run);
}
