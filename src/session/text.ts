// Owns: the text side of one checkpoint as a session uses it: encoding prompts and conversations, streams of text, and
// a token's bytes. Ids that the model can draw but the vocabulary does not name (padding rows) have no text.
import { log } from "../base/log.js";
import type { CheckpointMeta } from "../formats/checkpoint.js";
import { type ChatTemplate, encodeChat, type TemplateMessage } from "../text/chat.js";
import { Detokenizer } from "../text/detokenizer.js";
import { createTemplate, createTextModel, type TemplateOverride } from "../text/text.js";
import type { Tokenizer } from "../text/tokenizer.js";
import type { TextModel, TextStream, TextTemplate, TextTokenizer } from "./needs.js";
import type { ChatMessage, Tool } from "./types.js";

/** Undefined for a checkpoint without a tokenizer: it is served by token ids alone. */
export function loadText(meta: CheckpointMeta, override?: TemplateOverride): TextModel | undefined {
  const { tokenizer, template } = createTextModel(meta, override);
  if (tokenizer === undefined) return undefined;
  for (const warning of tokenizer.warnings) log.warn(warning);
  const shared = textTokenizer(tokenizer);
  const withTemplate = (one: ChatTemplate | undefined): TextModel => ({
    tokenizer: shared,
    template: one && textTemplate(tokenizer, one),
    withTemplate: (other) => withTemplate(createTemplate(meta, tokenizer, other)),
  });
  return withTemplate(template);
}

const noBytes = new Uint8Array(0);

function textTokenizer(tokenizer: Tokenizer): TextTokenizer {
  const known = (id: number) => id >= 0 && id < tokenizer.vocabSize;
  return {
    endIds: tokenizer.eosIds,
    encode: (text, { bos = false, special = false, whole = false }) =>
      tokenizer.encode(text, { addSpecial: whole || (bos ? "begin" : false), parseSpecial: special }),
    control: (spelling) => {
      const id = tokenizer.idOf(spelling);
      return id !== undefined && tokenizer.isControl(id) ? id : undefined;
    },
    tokenBytes: (id) => (known(id) ? tokenizer.decodeBytes(id).slice() : noBytes),
    detokenizer({ skipSpecial, whole = false }): TextStream {
      const stream = new Detokenizer(tokenizer, { skipSpecial, stripLeadingSpace: whole });
      return { push: (id) => (known(id) ? stream.push(id) : ""), flush: () => stream.flush() };
    },
  };
}

function textTemplate(tokenizer: Tokenizer, template: ChatTemplate): TextTemplate {
  return {
    source: template.source,
    toolSource: template.namedSource("tool_use"),
    encode(messages, { tools, variables, addGenerationPrompt }) {
      const rendered = template.render({
        messages: messages.map(templateMessage),
        tools: tools?.map(templateTool),
        variables,
        addGenerationPrompt,
      });
      return encodeChat(tokenizer, rendered);
    },
    encodeInfill(prompt, suffix) {
      const rendered = template.renderInfill(prompt, suffix);
      return rendered && encodeChat(tokenizer, rendered);
    },
  };
}

/** What the model is to know of it: nothing that was left out, and not how strictly it is held to the schema. */
function templateTool({ name, description, parameters }: Tool): Readonly<Record<string, unknown>> {
  const known = { name, ...(description === undefined ? {} : { description }) };
  return { type: "function", function: { ...known, ...(parameters === undefined ? {} : { parameters }) } };
}

/** In OpenAI's form, which is what templates are written for. */
function templateMessage({
  role,
  content,
  name,
  toolCalls,
  toolCallId,
  thinking,
  tools,
}: ChatMessage): TemplateMessage {
  const message: Record<string, unknown> = { role, content };
  if (name !== undefined) message.name = name;
  if (tools !== undefined) message.tools = tools;
  if (toolCallId !== undefined) message.tool_call_id = toolCallId;
  // Templates of different makers know it by different names.
  if (thinking !== undefined) Object.assign(message, { reasoning_content: thinking, thinking });
  if (toolCalls !== undefined) {
    message.tool_calls = toolCalls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return message as TemplateMessage;
}
