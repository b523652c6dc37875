// Owns: tools for models whose templates do not say all of them: described in a system message, given in that message's
// own field, and earlier calls and their results written as text, in the spelling that the dialect constrains and reads.
import type { CallSyntax, Dialect } from "../text/dialect.js";
import type { ChatMessage, TextPart, Tool, ToolCall } from "./types.js";

/** Messages that the dialect's template can render; `tools` are what it is not told of by a variable. */
export function describeTools(
  messages: readonly ChatMessage[],
  tools: readonly Tool[],
  dialect: Dialect,
): ChatMessage[] {
  const written = dialect.writesCalls ? joined(messages.map((message) => asText(message, dialect))) : [...messages];
  if (tools.length === 0) return written;
  const [first, ...rest] = written;
  const system = first?.role === "system" || first?.role === "developer" ? first : undefined;
  const others = system ? rest : written;
  if (dialect.systemTools) {
    const list = JSON.stringify(tools.map(({ strict: _, ...tool }) => tool));
    return [{ role: "system", ...system, content: flat(system?.content ?? null), tools: list }, ...others];
  }
  const text = description(tools, dialect.calls);
  if (system) return [{ ...system, content: `${flat(system.content)}\n\n${text}` }, ...others];
  return [{ role: "system", content: text }, ...others];
}

function description(tools: readonly Tool[], syntax: CallSyntax): string {
  const list = tools.map((tool) => JSON.stringify({ type: "function", function: tool })).join("\n");
  return (
    "You may call functions to help with the user's request. The functions are:\n" +
    `<tools>\n${list}\n</tools>\n` +
    "To call a function, answer with its name and arguments as JSON:\n" +
    spelled([{ id: "", name: "function_name", arguments: '{"key": "value"}' }], syntax)
  );
}

/** Calls as the model writes them. */
function spelled(calls: readonly ToolCall[], { open, before, middle, after, between, close }: CallSyntax): string {
  const written = calls.map(
    ({ name, arguments: text }, i) => before.replace("{i}", String(i)) + name + middle + text + after,
  );
  return open + written.join(between ?? "\n") + close;
}

function asText(message: ChatMessage, { calls, describesTools }: Dialect): ChatMessage {
  // A template that knows of tools knows of their results.
  if (message.role === "tool" && !describesTools) return message;
  if (message.role === "tool") {
    return { role: "user", content: `<tool_response>\n${flat(message.content)}\n</tool_response>`, toolCallId: "" };
  }
  if (message.toolCalls === undefined) return message;
  const content = flat(message.content);
  const parts = [...(content === "" ? [] : [content]), spelled(message.toolCalls, calls)];
  return { role: message.role, content: parts.join("\n") };
}

/** Results that were written as the user's become one message with each other: some templates want the roles in turns. */
function joined(messages: readonly ChatMessage[]): ChatMessage[] {
  const out: ChatMessage[] = [];
  let result = false;
  for (const { toolCallId, ...message } of messages) {
    const last = out.at(-1);
    const written = message.role === "user" && toolCallId !== undefined;
    if (message.role === "tool") {
      out.push({ ...message, toolCallId });
      continue;
    }
    if (last?.role === "user" && message.role === "user" && (written || result)) {
      out[out.length - 1] = { ...last, content: `${flat(last.content)}\n${flat(message.content)}` };
    } else out.push(message);
    result = written;
  }
  return out;
}

function flat(content: string | readonly TextPart[] | null): string {
  if (content === null) return "";
  return typeof content === "string" ? content : content.map(({ text }) => text).join("\n");
}
