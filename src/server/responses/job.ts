// Owns: a response's request as a ChatJob: instructions, the items of the responses before it, and its own, as messages. An
// answer's text and its calls are one message of the model; reasoning of earlier turns is left out.

import { UserError } from "../../base/errors.js";
import { type Fitted, fitted } from "../../session/fit.js";
import type { Session } from "../../session/session.js";
import type { ChatJob, ChatMessage, OutputFormat, Thinking, Tool, ToolChoice } from "../../session/types.js";
import { sharedJob } from "../openai/job.js";
import type { OutputItem } from "./build.js";
import type { InputItem, ResponsesRequest } from "./schema.js";

/** What a conversation is made of. */
export type Item = InputItem | OutputItem;

/** A string is a user's message. */
export function inputItems(input: ResponsesRequest["input"]): InputItem[] {
  if (typeof input !== "string") return input;
  return [{ type: "message", role: "user", content: [{ type: "input_text", text: input }] }];
}

/** @param before items of the responses that this one follows, oldest first */
export function responseJob(body: ResponsesRequest, before: readonly Item[]): ChatJob {
  const { tools, tool_choice, parallel_tool_calls, max_output_tokens, top_logprobs, include } = body;
  if (top_logprobs !== undefined && include === undefined) {
    throw new UserError('The field "top_logprobs" needs "include": ["message.output_text.logprobs"].', {
      param: "top_logprobs",
    });
  }
  const { seed, temperature, top_p, top_k, min_p, priority, cache_salt } = body;
  const { frequency_penalty, presence_penalty, repetition_penalty } = body;
  const penalties = { frequency_penalty, presence_penalty, repetition_penalty };
  const { instructions } = body;
  const opening: ChatMessage[] = instructions === undefined ? [] : [{ role: "system", content: instructions }];
  return {
    ...sharedJob({ seed, temperature, top_p, top_k, min_p, priority, cache_salt, ...penalties }),
    messages: [...opening, ...messagesOf([...before, ...inputItems(body.input)])],
    templateVariables: body.chat_template_kwargs,
    tools: tools?.map(tool),
    toolChoice: toolChoice(tool_choice),
    parallelToolCalls: parallel_tool_calls,
    format: format(body.text?.format),
    think: thinking(body.reasoning?.effort),
    maxTokens: max_output_tokens,
    logprobs: include === undefined || include.length === 0 ? undefined : (top_logprobs ?? 0),
  };
}

/** With "truncation": "auto", as many of the oldest messages are left out as it takes; what the system says stays. */
export function prepareResponse(session: Session, job: ChatJob, truncation: ResponsesRequest["truncation"]): Fitted {
  try {
    return fitted(session, job, truncation === "auto" ? "drop_oldest" : "error");
  } catch (error) {
    throw named(error);
  }
}

/** Fields that are called otherwise here. */
const ownNames: Readonly<Record<string, string>> = {
  think: "reasoning.effort",
  format: "text.format",
  messages: "input",
  max_tokens: "max_output_tokens",
};

function named(error: unknown): unknown {
  if (!(error instanceof UserError) || error.param === null || !(error.param in ownNames)) return error;
  const { message, status, code, param } = error;
  return new UserError(message, { status, code, param: ownNames[param], cause: error });
}

function messagesOf(items: readonly Item[]): ChatMessage[] {
  const messages: ChatMessage[] = [];
  for (const item of items) {
    if (item.type === "reasoning") continue;
    if (item.type === "function_call_output") {
      messages.push({ role: "tool", toolCallId: item.call_id, content: textOf(item.output) });
    } else if (item.type === "function_call") {
      const call = { id: item.call_id, name: item.name, arguments: item.arguments };
      const last = messages.at(-1);
      if (last?.role !== "assistant") messages.push({ role: "assistant", content: null, toolCalls: [call] });
      else messages[messages.length - 1] = { ...last, toolCalls: [...(last.toolCalls ?? []), call] };
    } else messages.push({ role: item.role, content: textOf(item.content) });
  }
  return messages;
}

type Parts = Extract<InputItem, { role: string }>["content"];

function textOf(content: Parts | Extract<OutputItem, { type: "message" }>["content"]): string {
  if (typeof content === "string") return content;
  return content.map((part) => (part.type === "refusal" ? part.refusal : part.text)).join("\n");
}

function tool(
  { name, description, parameters, strict }: NonNullable<ResponsesRequest["tools"]>[number],
  index: number,
): Tool {
  if (name === undefined) {
    const param = `tools[${index}].name`;
    throw new UserError(`The field "${param}" is missing: give a name.`, { code: "missing_field", param });
  }
  return {
    name,
    description: description ?? undefined,
    parameters: parameters ?? undefined,
    strict: strict ?? undefined,
  };
}

function toolChoice(choice: ResponsesRequest["tool_choice"]): ToolChoice | undefined {
  if (typeof choice !== "object") return choice;
  if (choice.type === "function") return { name: choice.name };
  return { allowed: choice.tools.map(({ name }) => name), required: choice.mode === "required" };
}

function thinking(effort: string | null | undefined): Thinking | undefined {
  if (effort === undefined || effort === null) return undefined;
  if (effort === "none") return false;
  if (effort === "xhigh") return "max";
  return effort === "minimal" ? "low" : (effort as Thinking);
}

function format(given: NonNullable<ResponsesRequest["text"]>["format"]): OutputFormat | undefined {
  if (given === undefined || given.type === "text") return undefined;
  if (given.type === "json_object") return { kind: "json" };
  return { kind: "schema", schema: given.schema, strict: given.strict ?? undefined };
}
