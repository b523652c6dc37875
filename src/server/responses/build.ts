// Owns: a response as it comes to be: deltas in, the events of OpenAI's stream out, and the response object that they add up to.
// Who does not stream drops the events, so both see the same. Each event has its number; each item and part is opened, and
// closed before the next begins.
import { randomBytes } from "node:crypto";
import type { Session } from "../../session/session.js";
import type { Delta, DeltaToken } from "../../session/types.js";
import type { Failure } from "../errors.js";
import { type ChatLogprobs, chatLogprobs } from "../openai/logprobs.js";
import type { ResponsesRequest } from "./schema.js";

type Status = "queued" | "in_progress" | "completed" | "incomplete" | "failed" | "cancelled";
type ItemStatus = "in_progress" | "completed" | "incomplete";
type Logprobs = ChatLogprobs["content"];

interface TextPart {
  readonly type: "output_text";
  text: string;
  readonly annotations: never[];
  readonly logprobs: Logprobs[number][];
}

export type OutputItem =
  | { readonly type: "message"; id: string; status: ItemStatus; readonly role: "assistant"; content: TextPart[] }
  | {
      readonly type: "reasoning";
      id: string;
      status: ItemStatus;
      readonly summary: never[];
      content: { readonly type: "reasoning_text"; text: string }[];
    }
  | {
      readonly type: "function_call";
      id: string;
      status: ItemStatus;
      readonly call_id: string;
      readonly name: string;
      arguments: string;
    };

export interface ResponseObject {
  readonly id: string;
  readonly object: "response";
  readonly created_at: number;
  status: Status;
  completed_at: number | null;
  error: { readonly code: string; readonly message: string } | null;
  incomplete_details: { readonly reason: "max_output_tokens" } | null;
  output: OutputItem[];
  usage: object | null;
  timings?: object;
  readonly [field: string]: unknown;
}

export interface ResponseEvent {
  readonly type: string;
  readonly sequence_number: number;
}

const newId = (prefix: string) => `${prefix}_${randomBytes(24).toString("hex")}`;
const now = () => Math.floor(Date.now() / 1000);

/** Before anything is answered. */
export function newResponse(body: ResponsesRequest, status: "queued" | "in_progress"): ResponseObject {
  return {
    id: newId("resp"),
    object: "response",
    created_at: now(),
    status,
    background: body.background ?? false,
    completed_at: null,
    error: null,
    incomplete_details: null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    model: body.model,
    output: [],
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: body.previous_response_id ?? null,
    prompt_cache_key: body.prompt_cache_key ?? null,
    reasoning: { effort: body.reasoning?.effort ?? null, summary: null },
    safety_identifier: body.safety_identifier ?? null,
    service_tier: "default",
    store: body.store ?? true,
    temperature: body.temperature ?? 1,
    text: { format: body.text?.format ?? { type: "text" }, verbosity: "medium" },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    top_logprobs: body.top_logprobs ?? 0,
    top_p: body.top_p ?? 1,
    truncation: body.truncation ?? "disabled",
    usage: null,
    user: body.user ?? null,
  };
}

export class ResponseBuilder {
  private sequence = 0;
  /** The item that is being written, and what it is a continuation of. */
  private open: { readonly kind: string; readonly item: OutputItem } | undefined;
  private prompt = { tokens: 0, cached: 0 };
  /** Tokens of the prompt that the model does not see. */
  cutTokens = 0;
  /** Where they are wanted: asked at the end. */
  timings: (() => object) | undefined;
  private reasoningTokens = 0;

  /** @param session spells tokens, once there are any; undefined: log-probabilities are not wanted */
  constructor(
    readonly response: ResponseObject,
    private readonly session: (() => Session) | undefined,
  ) {}

  get ended(): boolean {
    return this.response.status !== "queued" && this.response.status !== "in_progress";
  }

  /** Once, before all else. */
  created(): ResponseEvent[] {
    const made = this.event("response.created", { response: this.snapshot() });
    if (this.response.status !== "queued") return [made];
    return [made, this.event("response.queued", { response: this.snapshot() })];
  }

  begun(): ResponseEvent[] {
    const created = this.sequence === 0 ? this.created() : [];
    this.response.status = "in_progress";
    return [...created, this.event("response.in_progress", { response: this.snapshot() })];
  }

  add(delta: Delta): ResponseEvent[] {
    switch (delta.type) {
      case "start":
        this.prompt = { tokens: delta.promptIds.length, cached: delta.cachedTokens };
        return [];
      case "content":
        return delta.text === "" && delta.tokens.length === 0 ? [] : this.text(delta.text, delta.tokens);
      case "reasoning":
        this.reasoningTokens += delta.tokens.length;
        return delta.text === "" ? [] : this.reasoning(delta.text);
      case "toolCall":
        return this.call(delta);
      case "finish":
        return this.finish(delta);
    }
  }

  /** It ended without having been finished: nothing follows. */
  fail({ status, code, message }: Pick<Failure, "status" | "code" | "message">): ResponseEvent[] {
    this.response.error = { code: status === 429 ? "rate_limit_exceeded" : code, message };
    return this.end("failed", "incomplete");
  }

  cancel(): ResponseEvent[] {
    return this.end("cancelled", "incomplete");
  }

  private text(text: string, tokens: readonly DeltaToken[]): ResponseEvent[] {
    const begun = this.openItem("message", () => ({
      type: "message",
      id: newId("msg"),
      status: "in_progress",
      role: "assistant",
      content: [],
    }));
    const item = this.open!.item as Extract<OutputItem, { type: "message" }>;
    if (item.content.length === 0) {
      const part: TextPart = { type: "output_text", text: "", annotations: [], logprobs: [] };
      item.content.push(part);
      begun.push(this.partEvent("response.content_part.added", { part: structuredClone(part) }));
    }
    const logprobs = this.session ? chatLogprobs(this.session(), tokens).content : [];
    item.content[0].text += text;
    item.content[0].logprobs.push(...logprobs);
    if (text === "" && logprobs.length === 0) return begun;
    return [...begun, this.partEvent("response.output_text.delta", { delta: text, logprobs })];
  }

  private reasoning(text: string): ResponseEvent[] {
    const begun = this.openItem("reasoning", () => ({
      type: "reasoning",
      id: newId("rs"),
      status: "in_progress",
      summary: [],
      content: [],
    }));
    const item = this.open!.item as Extract<OutputItem, { type: "reasoning" }>;
    if (item.content.length === 0) {
      item.content.push({ type: "reasoning_text", text: "" });
      begun.push(this.partEvent("response.content_part.added", { part: { type: "reasoning_text", text: "" } }));
    }
    item.content[0].text += text;
    return [...begun, this.partEvent("response.reasoning_text.delta", { delta: text })];
  }

  private call({ call, id, name, arguments: text }: Extract<Delta, { type: "toolCall" }>): ResponseEvent[] {
    const begun = this.openItem(`call ${call}`, () => ({
      type: "function_call",
      id: newId("fc"),
      status: "in_progress",
      call_id: id,
      name: name ?? "",
      arguments: "",
    }));
    if (text === "") return begun;
    const item = this.open!.item as Extract<OutputItem, { type: "function_call" }>;
    item.arguments += text;
    return [...begun, this.itemEvent("response.function_call_arguments.delta", { delta: text })];
  }

  private finish({ reason, timings }: Extract<Delta, { type: "finish" }>): ResponseEvent[] {
    // OpenAI: an answer that says nothing is a message of nothing.
    const nothing = this.response.output.length === 0 ? this.text("", []) : [];
    const { tokens: input, cached } = this.prompt;
    const output = timings.generatedTokens;
    this.response.usage = {
      input_tokens: input,
      input_tokens_details: { cached_tokens: cached, cache_write_tokens: 0 },
      output_tokens: output,
      output_tokens_details: { reasoning_tokens: this.reasoningTokens },
      total_tokens: input + output,
      context: { kept: input, cut: this.cutTokens, cached },
    };
    if (this.timings !== undefined) this.response.timings = this.timings();
    if (reason === "abort") return [...nothing, ...this.end("cancelled", "incomplete")];
    if (reason !== "length") return [...nothing, ...this.end("completed", "completed")];
    this.response.incomplete_details = { reason: "max_output_tokens" };
    return [...nothing, ...this.end("incomplete", "incomplete")];
  }

  private end(status: Exclude<Status, "queued" | "in_progress">, item: ItemStatus): ResponseEvent[] {
    const closed = this.close(item);
    this.response.status = status;
    if (status === "completed") this.response.completed_at = now();
    return [...closed, this.event(`response.${status}`, { response: this.snapshot() })];
  }

  private openItem(kind: string, make: () => OutputItem): ResponseEvent[] {
    if (this.open?.kind === kind) return [];
    const events = this.close("completed");
    const item = make();
    this.response.output.push(item);
    this.open = { kind, item };
    return [...events, this.event("response.output_item.added", { output_index: this.index, item: copy(item) })];
  }

  /** @param status of the item: what was cut is not complete */
  private close(status: ItemStatus): ResponseEvent[] {
    if (this.open === undefined) return [];
    const { item } = this.open;
    const events: ResponseEvent[] = [];
    if (item.type === "message") {
      const [{ text, logprobs }] = item.content;
      events.push(this.partEvent("response.output_text.done", { text, logprobs }));
      events.push(this.partEvent("response.content_part.done", { part: copy(item.content[0]) }));
    } else if (item.type === "reasoning") {
      events.push(this.partEvent("response.reasoning_text.done", { text: item.content[0].text }));
      events.push(this.partEvent("response.content_part.done", { part: copy(item.content[0]) }));
    } else {
      const { name, arguments: text } = item;
      events.push(this.itemEvent("response.function_call_arguments.done", { name, arguments: text }));
    }
    item.status = status;
    events.push(this.event("response.output_item.done", { output_index: this.index, item: copy(item) }));
    this.open = undefined;
    return events;
  }

  private get index(): number {
    return this.response.output.length - 1;
  }

  private itemEvent(type: string, fields: object): ResponseEvent {
    return this.event(type, { item_id: this.open!.item.id, output_index: this.index, ...fields });
  }

  private partEvent(type: string, fields: object): ResponseEvent {
    return this.itemEvent(type, { content_index: 0, ...fields });
  }

  private event(type: string, fields: object): ResponseEvent {
    return { type, sequence_number: this.sequence++, ...fields };
  }

  private snapshot(): ResponseObject {
    return copy(this.response);
  }
}

const copy = <T>(value: T): T => structuredClone(value);
