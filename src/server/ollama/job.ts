// Owns: Ollama's requests as ChatJobs: what the package says first, then the request; and prompts that are longer than the
// context, which are cut as Ollama cuts them: a conversation loses its oldest messages, a prompt its middle.
import { UserError } from "../../base/errors.js";
import { fewest, mostText, textLength } from "../../session/fit.js";
import type { Prepared, Session } from "../../session/session.js";
import type { ChatJob, ChatMessage } from "../../session/types.js";
import { withPackageMessages } from "../../store/apply.js";
import type { ServedModel } from "../models.js";
import { type Options, optionsOf } from "./options.js";
import type { ChatMessageBody, ChatRequest, GenerateRequest } from "./schema.js";

/** Throws UserError where it cannot be answered. */
export function prepareChat(body: ChatRequest, model: ServedModel): Prepared {
  const options = optionsOf(body.options ?? {}, model.defaults?.parameters);
  const messages = withDefaults(model, undefined, (body.messages ?? []).map(chatMessage));
  const tools = body.tools?.map(({ function: tool }) => tool);
  const called = tools === undefined || tools.length === 0 ? {} : { tools, toolChoice: "auto" as const };
  const job = { ...commonJob(body, options), ...called };
  const fits = new Fit(model.session, options, body.truncate ?? true);
  return fits.conversation(job, messages);
}

/** Throws UserError where it cannot be answered. */
export function prepareGenerate(body: GenerateRequest, model: ServedModel): Prepared {
  const session = body.template ? model.session.withTemplate(body.template) : model.session;
  const options = optionsOf(body.options ?? {}, model.defaults?.parameters);
  const job = commonJob(body, options);
  const fits = new Fit(session, options, body.truncate ?? true);
  const { prompt = "", context = [] } = body;
  refuse(body);
  if (body.suffix) return fits.text({ ...job, prompt, suffix: body.suffix }, []);
  if (body.raw || session.text?.template === undefined) {
    const system = body.system ?? model.defaults?.system ?? "";
    const text = body.raw || system === "" ? prompt : `${system}\n\n${prompt}`;
    return fits.text({ ...job, prompt: text, parseSpecial: body.raw ?? false }, context);
  }
  const user: ChatMessage = { role: "user", content: prompt };
  // What came before is in the context, the system message with it.
  const messages = context.length > 0 ? [user] : withDefaults(model, body.system, [user]);
  return fits.text({ ...job, messages }, context);
}

function refuse(body: GenerateRequest): void {
  if (body.raw && (body.system || body.template || body.context)) {
    throw new UserError("A raw prompt is taken as it is: leave out template, system and context.", { param: "raw" });
  }
  if (body.suffix && (body.raw || body.context)) {
    throw new UserError("A suffix goes with a prompt alone: leave out raw and context.", { param: "suffix" });
  }
  if (body.suffix && body.system) {
    throw new UserError("A text between two others has no system message: leave out system or suffix.", {
      param: "system",
    });
  }
}

function commonJob(body: ChatRequest | GenerateRequest, options: Options): Omit<ChatJob, "messages" | "prompt"> {
  if (body.top_logprobs !== undefined && !body.logprobs) {
    throw new UserError('The field "top_logprobs" needs "logprobs": true.', { param: "top_logprobs" });
  }
  const { format, think } = body;
  return {
    ...(format === undefined || format === "" ? {} : { format: outputFormat(format) }),
    ...(think === undefined || think === "" ? {} : { think }),
    n: 1,
    sampling: options.sampling,
    minTokens: 0,
    stop: options.stop,
    stopIds: [],
    includeStop: false,
    ignoreEos: false,
    logprobs: body.logprobs ? (body.top_logprobs ?? 0) : undefined,
    priority: 0,
  };
}

function outputFormat(format: "json" | object): ChatJob["format"] {
  return format === "json" ? { kind: "json" } : { kind: "schema", schema: format as object };
}

function chatMessage(message: ChatMessageBody, index: number): ChatMessage {
  const { role, content = "", thinking, tool_calls, tool_name, tool_call_id } = message;
  if (tool_calls !== undefined && tool_calls.length > 0 && role !== "assistant") {
    throw new UserError(`Only an assistant's message may carry tool_calls, not a ${role}'s.`, {
      param: `messages[${index}].tool_calls`,
    });
  }
  if (thinking && role !== "assistant") {
    throw new UserError(`Only an assistant's message may carry thinking, not a ${role}'s.`, {
      param: `messages[${index}].thinking`,
    });
  }
  return {
    role,
    content,
    ...(thinking ? { thinking } : {}),
    ...(tool_name === undefined ? {} : { name: tool_name }),
    ...(tool_call_id === undefined ? {} : { toolCallId: tool_call_id }),
    ...(tool_calls === undefined || tool_calls.length === 0
      ? {}
      : {
          toolCalls: tool_calls.map(({ id, function: call }, at) => ({
            id: id ?? `call_${index}_${at}`,
            name: call.name,
            arguments: JSON.stringify(call.arguments ?? {}),
          })),
        }),
  };
}

/** The package's conversation before the caller's; its system message where the caller has none. */
export function withDefaults(
  { defaults }: ServedModel,
  system: string | undefined,
  messages: readonly ChatMessage[],
): ChatMessage[] {
  const own = { system: system ?? defaults?.system, messages: defaults?.messages };
  return withPackageMessages(own, messages);
}

/** What of a prompt fits in the context, and how much then may be generated. */
class Fit {
  private readonly contextLength: number;

  constructor(
    private readonly session: Session,
    private readonly options: Options,
    private readonly truncate: boolean,
  ) {
    const { contextLength } = session.limits;
    this.contextLength = Math.min(contextLength, options.contextLength ?? contextLength);
  }

  /** Drops the oldest messages, as few as it takes, but neither system messages nor the last one. */
  conversation(job: ChatJob, messages: readonly ChatMessage[]): Prepared {
    if (!this.truncate || this.holds(job, messages, this.contextLength - 1)) return this.limited({ ...job, messages });
    const droppable = messages.flatMap(({ role }, at) => (role !== "system" && at < messages.length - 1 ? [at] : []));
    const without = (count: number) => {
      const gone = new Set(droppable.slice(0, count));
      return messages.filter((_, at) => !gone.has(at));
    };
    const count = fewest(droppable.length, (one) => this.holds(job, without(one), this.cutTo()));
    return this.limited({ ...job, messages: without(count) });
  }

  private holds(job: ChatJob, messages: readonly ChatMessage[], room: number): boolean {
    const whole = { ...job, messages };
    if (messages.length > room) return false;
    return textLength(whole) <= mostText && this.session.promptIds(whole).length <= room;
  }

  /** Keeps the beginning (num_keep) and the end. */
  text(job: ChatJob, context: readonly number[]): Prepared {
    const ids = this.truncate || context.length > 0 ? this.session.promptIds(job) : undefined;
    if (ids === undefined || (context.length === 0 && ids.length < this.contextLength)) return this.limited(job);
    const { messages, prompt, suffix, parseSpecial, ...rest } = job;
    const whole = [...context, ...this.continued(ids, context)];
    if (!this.truncate || whole.length < this.contextLength) {
      return this.limited({ ...rest, promptIds: Int32Array.from(whole) });
    }
    const room = this.cutTo();
    const keep = Math.min(this.options.numKeep < 0 ? room : this.options.numKeep, room);
    const cut = [...whole.slice(0, keep), ...whole.slice(whole.length - (room - keep))];
    return this.limited({ ...rest, promptIds: Int32Array.from(cut) });
  }

  /** A text's first token belongs to its beginning alone. */
  private continued(ids: Int32Array, context: readonly number[]): Int32Array {
    const [bos] = this.session.text?.tokenizer.encode("", { bos: true }) ?? [];
    return context.length > 0 && bos !== undefined && ids[0] === bos ? ids.subarray(1) : ids;
  }

  /** A prompt that had to be cut leaves room for an answer. */
  private cutTo(): number {
    const answer = Math.min(this.options.maxTokens ?? this.contextLength, this.contextLength >> 2);
    return this.contextLength - Math.max(1, answer);
  }

  /** An answer ends at the context's end, whatever num_predict says. */
  private limited(job: ChatJob): Prepared {
    const prepared = this.session.prepare(job);
    const prompt = prepared.request.promptIds.length;
    const room = this.contextLength - prompt;
    if (room < 1) {
      throw new UserError(
        `The context is ${this.contextLength} tokens long, but the prompt has ${prompt}. Shorten it, or give a larger num_ctx.`,
        { code: "context_length_exceeded", param: "prompt" },
      );
    }
    const maxTokens = Math.min(room, this.options.maxTokens ?? room);
    return { ...prepared, request: { ...prepared.request, maxTokens } };
  }
}
