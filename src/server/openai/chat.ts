// Owns: POST /v1/chat/completions: its body as a ChatJob, and deltas as chat choices.
import { UserError } from "../../base/errors.js";
import type { Session } from "../../session/session.js";
import type {
  ChatJob,
  ChatMessage,
  Delta,
  DeltaToken,
  Thinking,
  Tool,
  ToolCall,
  ToolChoice,
} from "../../session/types.js";
import type { Exchange } from "../exchange.js";
import { sharedJob } from "./job.js";
import { chatLogprobs } from "./logprobs.js";
import { heading, respondStream, respondWhole, type Shape, wishesOf } from "./respond.js";
import type { ChatRequest } from "./schema.js";

export async function chatCompletion(exchange: Exchange, body: ChatRequest): Promise<void> {
  const job = chatJob(body);
  const shape = new ChatShape(
    exchange.model.session,
    job,
    body.return_token_ids ?? exchange.model.session.text === undefined,
  );
  // There is one tier; metadata stands in whole answers, as in those that OpenAI stores.
  const labels = {
    ...(body.service_tier === undefined ? {} : { service_tier: "default" }),
    ...(body.metadata === undefined || body.stream ? {} : { metadata: body.metadata }),
  };
  const head = heading("chatcmpl", body.stream ? "chat.completion.chunk" : "chat.completion", exchange.model, labels);
  const respond = body.stream ? respondStream : respondWhole;
  await respond(exchange, [job], head, shape, wishesOf(body));
}

export function chatJob(body: ChatRequest): ChatJob {
  if (body.top_logprobs !== undefined && body.logprobs !== true) {
    throw new UserError('The field "top_logprobs" needs "logprobs": true.', { param: "top_logprobs" });
  }
  const { max_tokens, max_completion_tokens } = body;
  if (max_tokens !== undefined && max_completion_tokens !== undefined && max_tokens !== max_completion_tokens) {
    throw new UserError(
      `max_tokens (${max_tokens}) and max_completion_tokens (${max_completion_tokens}) say different things; give one.`,
      { param: "max_tokens" },
    );
  }
  return {
    ...sharedJob(body),
    messages: body.messages.map(chatMessage),
    templateVariables: body.chat_template_kwargs,
    tools: body.tools?.map(tool),
    toolChoice: toolChoice(body.tool_choice),
    parallelToolCalls: body.parallel_tool_calls,
    think: thinking(body.reasoning_effort),
    addGenerationPrompt: body.add_generation_prompt ?? true,
    maxTokens: max_completion_tokens ?? max_tokens,
    logprobs: body.logprobs ? (body.top_logprobs ?? 0) : undefined,
  };
}

function tool({
  function: { name, description, parameters, strict },
}: NonNullable<ChatRequest["tools"]>[number]): Tool {
  return { name, description, parameters: parameters ?? undefined, strict: strict ?? undefined };
}

function toolChoice(choice: ChatRequest["tool_choice"]): ToolChoice | undefined {
  if (typeof choice !== "object") return choice;
  if (choice.type === "function") return { name: choice.function.name };
  const { mode, tools } = choice.allowed_tools;
  return { allowed: tools.map((one) => one.function.name), required: mode === "required" };
}

function thinking(effort: ChatRequest["reasoning_effort"]): Thinking | undefined {
  if (effort === undefined) return undefined;
  if (effort === "none") return false;
  if (effort === "xhigh") return "max";
  return effort === "minimal" ? "low" : (effort as Thinking);
}

/** What each role may carry beyond content. */
function chatMessage(message: ChatRequest["messages"][number], index: number): ChatMessage {
  const { role, content, name, tool_calls, tool_call_id } = message;
  const at = `messages[${index}]`;
  if (tool_calls !== undefined && role !== "assistant") {
    throw new UserError(`Only an assistant's message may carry tool_calls, not a ${role}'s.`, {
      param: `${at}.tool_calls`,
    });
  }
  if (tool_call_id !== undefined && role !== "tool") {
    throw new UserError(`Only a tool's message may carry tool_call_id, not a ${role}'s.`, {
      param: `${at}.tool_call_id`,
    });
  }
  if (role === "tool" && tool_call_id === undefined) {
    throw new UserError(`The field "${at}.tool_call_id" is missing: a tool's message says which call it answers.`, {
      code: "missing_field",
      param: `${at}.tool_call_id`,
    });
  }
  if ((content === undefined || content === null) && !(role === "assistant" && tool_calls !== undefined)) {
    throw new UserError(`The field "${at}.content" is missing: give a string or a list of text parts.`, {
      code: "missing_field",
      param: `${at}.content`,
    });
  }
  return {
    role,
    content: content ?? null,
    name,
    toolCallId: tool_call_id,
    toolCalls: tool_calls?.map(({ id, function: call }) => ({ id, name: call.name, arguments: call.arguments })),
  };
}

class ChatShape implements Shape {
  constructor(
    private readonly session: Session,
    private readonly job: ChatJob,
    private readonly withIds: boolean,
  ) {}

  chunk(_promptIndex: number, delta: Parameters<Shape["chunk"]>[1]) {
    if (delta.type === "start") {
      const choices = Array.from({ length: this.job.n }, (_, index) => ({
        index,
        delta: { role: "assistant", content: "" },
        logprobs: null,
        finish_reason: null,
      }));
      return { choices, ...(this.withIds ? { prompt_token_ids: [...delta.promptIds] } : {}) };
    }
    if (delta.type !== "finish") {
      return {
        choices: [{ ...this.piece(delta.index, delta.tokens), delta: chatDelta(delta), finish_reason: null }],
      };
    }
    const { index, reason, stop, tokens } = delta;
    const ids = this.withIds ? { token_ids: tokens.map(({ id }) => id) } : {};
    return {
      choices: [{ index, delta: {}, logprobs: null, finish_reason: reason, stop_reason: stop ?? null, ...ids }],
    };
  }

  whole(answers: Parameters<Shape["whole"]>[0]) {
    const [{ promptIds, choices }] = answers;
    return {
      choices: choices.map(({ index, text, reasoning, toolCalls, tokens, silentTokens, reason, stop }) => ({
        ...this.piece(index, tokens, silentTokens),
        message: {
          role: "assistant",
          // OpenAI: a message of calls alone has no content.
          content: text === "" && toolCalls.length > 0 ? null : text,
          refusal: null,
          ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
          ...(toolCalls.length === 0 ? {} : { tool_calls: toolCalls.map(wireCall) }),
        },
        finish_reason: reason,
        stop_reason: stop ?? null,
      })),
      ...(this.withIds ? { prompt_token_ids: [...promptIds] } : {}),
    };
  }

  private piece(index: number, tokens: readonly DeltaToken[], silent: readonly DeltaToken[] = []) {
    return {
      index,
      logprobs: this.job.logprobs === undefined ? null : chatLogprobs(this.session, tokens),
      ...(this.withIds ? { token_ids: [...tokens, ...silent].map(({ id }) => id) } : {}),
    };
  }
}

function chatDelta(delta: Exclude<Delta, { type: "start" | "finish" }>): object {
  if (delta.type === "content") return { content: delta.text };
  if (delta.type === "reasoning") return { reasoning_content: delta.text };
  const { call: index, id, name, arguments: text } = delta;
  // Only a call's first piece says whose it is.
  const call = name === undefined ? { index } : { index, id, type: "function" };
  return { tool_calls: [{ ...call, function: { ...(name === undefined ? {} : { name }), arguments: text } }] };
}

function wireCall({ id, name, arguments: text }: ToolCall): object {
  return { id, type: "function", function: { name, arguments: text } };
}
