// Owns: Anthropic's messages as a ChatJob. One message of blocks becomes as many of ours as it takes: each tool_result is a
// tool's message of its own. Thinking of earlier turns is left out, as Anthropic leaves it out.
import { UserError } from "../../base/errors.js";
import { plainSampling, randomSeed } from "../../session/sampling.js";
import type { ChatJob, ChatMessage, Thinking, ToolChoice } from "../../session/types.js";
import type { CountRequest, MessageBody, MessagesRequest } from "./schema.js";

export function messagesJob(body: MessagesRequest): ChatJob {
  const { max_tokens, temperature, top_p, top_k, stop_sequences } = body;
  return {
    ...promptJob(body),
    sampling: {
      ...plainSampling,
      temperature: temperature ?? 1,
      topP: Math.max(top_p ?? 1, 1e-6),
      topK: top_k ?? 0,
      seed: randomSeed(),
    },
    maxTokens: max_tokens,
    stop: stop_sequences ?? [],
  };
}

/** What the prompt depends on. */
export function promptJob(body: CountRequest): ChatJob {
  const { system, messages, tools, tool_choice, output_config } = body;
  if (messages.at(-1)?.role === "assistant") {
    throw new UserError("The last message must be the user's: beginning the answer for the model is not supported.", {
      code: "unsupported_field",
      param: `messages[${messages.length - 1}].role`,
    });
  }
  const parallel =
    tool_choice !== undefined && "disable_parallel_tool_use" in tool_choice
      ? !tool_choice.disable_parallel_tool_use
      : undefined;
  return {
    messages: [...systemMessage(system), ...messages.flatMap(chatMessages)],
    tools: tools?.map(({ name, description, input_schema: parameters, strict }) => {
      return { name, description, parameters, strict };
    }),
    toolChoice: toolChoice(tool_choice),
    parallelToolCalls: parallel,
    format: output_config?.format ? { kind: "schema", schema: output_config.format.schema } : undefined,
    think: thinking(body),
    n: 1,
    sampling: { ...plainSampling, seed: 0n },
    minTokens: 0,
    stop: [],
    stopIds: [],
    includeStop: false,
    ignoreEos: false,
    priority: 0,
  };
}

/** How much, where reasoning is not off. */
function thinking({ thinking: asked, output_config }: CountRequest): Thinking | undefined {
  if (asked?.type === "disabled") return false;
  const effort = output_config?.effort ?? undefined;
  if (effort === undefined) return asked === undefined ? undefined : true;
  return effort === "xhigh" ? "max" : (effort as Thinking);
}

function toolChoice(choice: CountRequest["tool_choice"]): ToolChoice | undefined {
  if (choice === undefined) return undefined;
  if (choice.type === "tool") return { name: choice.name };
  return choice.type === "any" ? "required" : choice.type;
}

function systemMessage(system: CountRequest["system"]): ChatMessage[] {
  if (system === undefined || system.length === 0) return [];
  const content = typeof system === "string" ? system : system.map(({ text }) => text).join("\n");
  return [{ role: "system", content }];
}

function chatMessages({ role, content }: MessageBody, index: number): ChatMessage[] {
  if (typeof content === "string") return [{ role, content }];
  const foreign = content.find(({ type }) =>
    role === "user" ? type === "tool_use" || type === "thinking" : type === "tool_result",
  );
  if (foreign !== undefined) {
    throw new UserError(`A message of the ${role} cannot have a ${foreign.type} block.`, {
      param: `messages[${index}].content`,
    });
  }
  const text = content.flatMap((block) => (block.type === "text" ? [block.text] : [])).join("\n");
  if (role === "assistant") {
    const toolCalls = content.flatMap((block) =>
      block.type === "tool_use" ? [{ id: block.id, name: block.name, arguments: JSON.stringify(block.input) }] : [],
    );
    if (toolCalls.length === 0) return [{ role, content: text }];
    return [{ role, content: text === "" ? null : text, toolCalls }];
  }
  const results = content.flatMap((block): ChatMessage[] => {
    if (block.type !== "tool_result") return [];
    const said =
      typeof block.content === "string" ? block.content : (block.content ?? []).map((part) => part.text).join("\n");
    return [{ role: "tool", toolCallId: block.tool_use_id, content: block.is_error ? `Error: ${said}` : said }];
  });
  return text === "" && results.length > 0 ? results : [...results, { role, content: text }];
}
