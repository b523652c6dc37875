// Owns: the state of a conversation in a terminal: which model, what was said, and what /set has changed; and the commands
// that look at it or change it. Reads no keys: chat.ts does.
import { isOn } from "../base/env.js";
import { UserError } from "../base/errors.js";
import type { ChatJob, ChatMessage, OutputFormat, Thinking } from "../session/types.js";
import { settingsOf, withPackageMessages } from "../store/apply.js";
import { createPackage } from "../store/create.js";
import {
  type ModelParameters,
  parameterLines,
  parameterNames,
  parametersOf,
  parameterValue,
} from "../store/parameters.js";
import { type PackageMessage, Store } from "../store/store.js";
import { dialectOf } from "../text/dialect.js";
import type { DeviceFlags } from "./flags.js";
import type { OpenModel } from "./open.js";
import { table } from "./table.js";

export type JobBase = Omit<ChatJob, "messages" | "prompt">;

export interface ChatSetup {
  readonly model: OpenModel;
  /** What every message is asked with. */
  readonly job: JobBase;
  readonly raw: boolean;
  readonly system?: string;
  readonly wordWrap: boolean;
  readonly hideThinking: boolean;
  readonly verbose: boolean;
  /** A model in place of this one, or this one with other settings of its loading. */
  open(name: string, more?: LoadFlags): Promise<{ model: OpenModel; job: JobBase; raw: boolean }>;
}

/** What is decided when a model is loaded. */
export type LoadFlags = Pick<DeviceFlags, "ctx" | "threads">;

const nothing: readonly string[] = ["num_batch", "num_gpu", "main_gpu", "use_mmap"];

export const help = `Write a message and press Enter. For several lines begin with """ and end with """.
  /set            parameters, system message, format, history, wordwrap, verbose, think
  /show           what the model is and says
  /load <model>   another model, or a conversation that was saved
  /save <name>    this conversation with its settings as a package
  /clear          forget what was said
  /bye            leave (so does Ctrl-D)
  /?              this; /? shortcuts: the keys
Ctrl-C stops an answer; twice at the prompt it leaves.`;

const shortcuts = `  Ctrl-A, Ctrl-E   to the beginning, to the end of the line
  Alt-B, Alt-F     back, forward one word
  Ctrl-K, Ctrl-U   delete to the end, to the beginning
  Ctrl-W           delete the word before
  Ctrl-L           clear the screen
  Up, Down         earlier messages
  Ctrl-C           stop the answer
  Ctrl-D           leave (so does /bye)`;

const setHelp = `  /set parameter <name> <value>   ${parameterNames.join(", ")}
  /set system <text>              the system message
  /set history | nohistory        keep messages for the Up key, or not
  /set wordwrap | nowordwrap      break lines between words, or not
  /set format json | noformat     answers are JSON, or free
  /set verbose | quiet            all figures, or one line
  /set think [low|medium|high] | nothink   reasoning before the answer, for models that can`;

const showHelp = "  /show info | license | modelfile | parameters | system | template";

/** What a command prints; null: nothing. */
type Said = string | null;

export class Conversation {
  model: OpenModel;
  raw: boolean;
  keepsHistory = !isOn("OLLAMA_NOHISTORY");
  wordWrap: boolean;
  verbose: boolean;
  readonly hideThinking: boolean;
  private job: JobBase;
  private messages: ChatMessage[] = [];
  private system: string | undefined;
  private parameters: ModelParameters = {};
  private format: OutputFormat | undefined;
  private think: Thinking | undefined;

  constructor(private readonly setup: ChatSetup) {
    this.model = setup.model;
    this.job = setup.job;
    this.raw = setup.raw;
    this.system = setup.system;
    this.wordWrap = setup.wordWrap;
    this.verbose = setup.verbose;
    this.hideThinking = setup.hideThinking;
    this.format = setup.job.format;
    this.think = setup.job.think;
  }

  /** The next request. */
  ask(text: string): ChatJob {
    const { sampling, stop, maxTokens, seed } = settingsOf(this.parameters);
    const job: JobBase = {
      ...this.job,
      sampling: { ...this.job.sampling, ...sampling, ...(seed === undefined ? {} : { seed: BigInt(seed) }) },
      ...(stop.length === 0 ? {} : { stop }),
      ...(maxTokens === undefined ? {} : { maxTokens }),
      format: this.format,
      think: this.think,
    };
    if (this.raw) return { ...job, prompt: text };
    const said: ChatMessage[] = [...this.messages, { role: "user", content: text }];
    const system = this.system;
    const own = system === undefined ? this.model.package : { ...this.model.package, system };
    return { ...job, messages: withPackageMessages(own, said) };
  }

  /** What was asked and answered is part of the conversation. */
  keep(question: string, answer: string): void {
    if (this.raw) return;
    this.messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
  }

  /** A line that begins with "/". Throws UserError for what cannot be done. */
  async command(line: string): Promise<Said> {
    const [, name, rest] = /^\/(\S*)\s*([\s\S]*)$/.exec(line)!;
    switch (name) {
      case "?":
      case "help":
        return rest === "shortcuts" ? shortcuts : rest === "set" ? setHelp : rest === "show" ? showHelp : help;
      case "clear":
        this.messages = [];
        return "Forgotten.";
      case "set":
        return this.set(rest);
      case "show":
        return this.show(rest);
      case "load":
        return this.load(rest);
      case "save":
        return this.save(rest);
      default:
        return `There is no /${name}.\n${help}`;
    }
  }

  private set(text: string): Said | Promise<Said> {
    const [, what, rest] = /^(\S*)\s*([\s\S]*)$/.exec(text)!;
    switch (what) {
      case "parameter":
        return this.setParameter(rest);
      case "system":
        if (rest === "") return "Usage: /set system <text>";
        if (this.raw) throw new UserError("the model has no chat template: it takes no system message");
        this.system = rest;
        return "The system message is set.";
      case "history":
      case "nohistory":
        this.keepsHistory = what === "history";
        return this.keepsHistory ? "The Up key brings messages back." : "No more messages are kept for the Up key.";
      case "wordwrap":
      case "nowordwrap":
        this.wordWrap = what === "wordwrap";
        return this.wordWrap ? "Lines break between words." : "Lines break where the terminal ends.";
      case "verbose":
      case "quiet":
        this.verbose = what === "verbose";
        return this.verbose ? "Every answer ends with all figures." : "Every answer ends with one line of figures.";
      case "format":
        if (rest !== "json") return "Usage: /set format json";
        this.format = { kind: "json" };
        return "Answers are JSON from now on.";
      case "noformat":
        this.format = undefined;
        return "Answers are free from now on.";
      case "think":
        if (rest !== "" && !["low", "medium", "high"].includes(rest)) return "Usage: /set think [low|medium|high]";
        return this.setThink(rest === "" ? true : (rest as Thinking));
      case "nothink":
        return this.setThink(false);
      default:
        return setHelp;
    }
  }

  private setThink(think: Thinking): Said {
    const { name, session } = this.model;
    const able = dialectOf(session.text?.template?.source).reasoning !== undefined;
    if (think !== false && !able) throw new UserError(`${name} does not reason before it answers.`);
    this.think = think;
    return think === false ? "The model answers at once." : "The model reasons before it answers.";
  }

  private async setParameter(text: string): Promise<Said> {
    const [, name, rest] = /^(\S*)\s*([\s\S]*)$/.exec(text)!;
    if (name === "" || rest === "") return setHelp;
    if (nothing.includes(name)) throw new UserError(`${name} has no effect here: leave, and start again with --device`);
    const values = name === "stop" ? rest.split(/\s+/) : parameterValue(name, rest);
    const parameters = { ...this.parameters, ...parametersOf({ [name]: values }) };
    if (name === "num_ctx" || name === "num_thread") await this.reload(parameters);
    this.parameters = parameters;
    return `${name} is ${rest}`;
  }

  /** The same model, loaded with what `parameters` say; where it cannot be, it stays as it is. */
  private async reload(parameters: ModelParameters): Promise<void> {
    const { num_ctx = 0, num_thread = 0 } = parameters;
    const more = { ...(num_ctx > 0 ? { ctx: num_ctx } : {}), ...(num_thread > 0 ? { threads: num_thread } : {}) };
    const { model } = await this.setup.open(this.model.package?.name ?? this.model.path, more);
    await this.model.close();
    this.model = model;
  }

  private async show(what: string): Promise<Said> {
    const one = this.model.package;
    const system = this.system ?? one?.system;
    const parameters = { ...one?.parameters, ...this.parameters };
    if (what === "system") return system ?? "There is no system message.";
    if (what === "parameters") {
      const lines = table(parameterLines(parameters).map(([name, value]) => [name, String(value)]));
      return lines === "" ? "No parameters are set." : lines;
    }
    if (what === "license") return one?.license?.join("\n\n") ?? "The package has no licence.";
    if (what === "template") return one?.template?.text ?? "The model's own: millrace show NAME --template prints it.";
    if (what === "modelfile" && one !== undefined) {
      const { modelfileText } = await import("./show.js");
      return modelfileText({ ...one, parameters, ...(system === undefined ? {} : { system }) });
    }
    if (what === "modelfile") return `FROM ${this.model.name}`;
    if (what !== "info") return showHelp;
    const { name, device, session } = this.model;
    const rows = [
      ["model", name],
      ["parameters", one?.config.parameterSize ?? ""],
      ["quantization", one?.config.quantization ?? ""],
      ["context", `${session.limits.contextLength} tokens`],
      ["device", device],
    ];
    return table(rows.filter(([, value]) => value !== ""));
  }

  private async load(name: string): Promise<Said> {
    if (name === "") return "Usage: /load <model>";
    const { model, job, raw } = await this.setup.open(name);
    await this.model.close();
    this.model = model;
    this.job = job;
    this.raw = raw;
    this.messages = [];
    this.think = this.setup.job.think;
    this.parameters = {};
    this.system = undefined;
    return `${model.name} is loaded.`;
  }

  private async save(name: string): Promise<Said> {
    if (name === "") return "Usage: /save <name>";
    const one = this.model.package;
    const own = (one?.messages ?? []) as readonly PackageMessage[];
    const messages = [...own, ...this.messages.map(({ role, content }) => ({ role, content: content as string }))];
    const made = await createPackage(new Store(), name, {
      from: [one?.name ?? this.model.path],
      folder: process.cwd(),
      system: this.system,
      parameters: this.parameters,
      messages,
    });
    return `Saved as ${made.name}.`;
  }
}
