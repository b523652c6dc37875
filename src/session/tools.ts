// Owns: tools for models whose templates say nothing of them: described in a system message, and earlier calls and their
// results written as text, in the spelling that the dialect "described" constrains and reads.
import type { ChatMessage, TextPart, Tool } from "./types.js";

/** Messages that a template without tools can render. */
export function describeTools(messages: readonly ChatMessage[], tools: readonly Tool[]): ChatMessage[] {
  const written = messages.map(asText);
  if (tools.length === 0) return written;
  const text = description(tools);
  const [first, ...rest] = written;
  if (first?.role === "system" || first?.role === "developer") {
    return [{ ...first, content: `${flat(first.content)}\n\n${text}` }, ...rest];
  }
  return [{ role: "system", content: text }, ...written];
}

function description(tools: readonly Tool[]): string {
  const list = tools.map((tool) => JSON.stringify({ type: "function", function: tool })).join("\n");
  return (
    "You may call functions to help with the user's request. The functions are:\n" +
    `<tools>\n${list}\n</tools>\n` +
    "To call a function, answer with its name and arguments as JSON:\n" +
    '<tool_call>\n{"name": "function_name", "arguments": {"key": "value"}}\n</tool_call>'
  );
}

function asText(message: ChatMessage): ChatMessage {
  if (message.role === "tool") {
    return { role: "user", content: `<tool_response>\n${flat(message.content)}\n</tool_response>` };
  }
  if (message.toolCalls === undefined) return message;
  const calls = message.toolCalls.map(
    (call) => `<tool_call>\n{"name": ${JSON.stringify(call.name)}, "arguments": ${call.arguments}}\n</tool_call>`,
  );
  const content = flat(message.content);
  return { role: message.role, content: [...(content === "" ? [] : [content]), ...calls].join("\n") };
}

function flat(content: string | readonly TextPart[] | null): string {
  if (content === null) return "";
  return typeof content === "string" ? content : content.map(({ text }) => text).join("\n");
}
