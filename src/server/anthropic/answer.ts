// Owns: answers in Anthropic's shapes: a message of content blocks, or the events that build one.
import { randomBytes } from "node:crypto";
import { collect } from "../../session/collect.js";
import type { ChatJob, Delta } from "../../session/types.js";
import { answered, type Exchange, interrupted, running } from "../exchange.js";
import { EventStream, type Framing, serverSentEvents } from "../stream.js";

/** Every event is named by its type. */
const events: Framing = {
  contentType: serverSentEvents.contentType,
  frame: (data) => `event: ${(data as { type: string }).type}\ndata: ${JSON.stringify(data)}\n\n`,
  end: "",
  keepAlive: () => 'event: ping\ndata: {"type":"ping"}\n\n',
};

export async function respondWhole(exchange: Exchange, job: ChatJob): Promise<void> {
  const { reply, model } = exchange;
  const prepared = model.session.prepare(job);
  await running(exchange, [prepared], async (signal) => {
    const { choices, promptIds, cachedTokens } = await collect(answered(exchange, prepared, signal));
    if (signal.aborted) throw interrupted(exchange);
    const [{ text, reasoning, toolCalls, reason, stop, timings }] = choices;
    const content = [
      ...(reasoning === "" ? [] : [{ type: "thinking", thinking: reasoning, signature: "" }]),
      ...(text === "" ? [] : [{ type: "text", text }]),
      ...toolCalls.map(({ id, name, arguments: input }) => ({ type: "tool_use", id, name, input: parsed(input) })),
    ];
    const usage = { ...inputUsage(promptIds.length, cachedTokens), output_tokens: timings.generatedTokens };
    reply.send({ ...message(model.id), content, ...ending(reason, stop), usage });
  });
}

export async function respondStream(exchange: Exchange, job: ChatJob): Promise<void> {
  const { request, reply, model, times } = exchange;
  const prepared = model.session.prepare(job);
  await running(exchange, [prepared], async (signal) => {
    const stream = new EventStream(request, reply, times, events);
    const blocks = new Blocks(model.id);
    try {
      for await (const delta of answered(exchange, prepared, signal)) {
        for (const event of blocks.add(delta)) await stream.send(event);
      }
      if (signal.aborted) throw interrupted(exchange);
      await stream.done();
    } catch (error) {
      await stream.fail(error);
    }
  });
}

/** Deltas as events: a block ends where one of another kind, or another call, begins. */
class Blocks {
  private index = -1;
  /** What the open block is; null: none is open. */
  private open: string | null = null;

  constructor(private readonly model: string) {}

  add(delta: Delta): object[] {
    switch (delta.type) {
      case "start": {
        const usage = { ...inputUsage(delta.promptIds.length, delta.cachedTokens), output_tokens: 0 };
        const none = { stop_reason: null, stop_sequence: null };
        return [{ type: "message_start", message: { ...message(this.model), content: [], ...none, usage } }];
      }
      case "content":
        if (delta.text === "") return [];
        return this.piece("text", { type: "text", text: "" }, { type: "text_delta", text: delta.text });
      case "reasoning":
        if (delta.text === "") return [];
        return this.piece(
          "thinking",
          { type: "thinking", thinking: "", signature: "" },
          { type: "thinking_delta", thinking: delta.text },
        );
      case "toolCall": {
        const { call, id, name, arguments: partial_json } = delta;
        const block = { type: "tool_use", id, name, input: {} };
        return this.piece(`call ${call}`, block, { type: "input_json_delta", partial_json });
      }
      case "finish": {
        const { reason, stop, timings } = delta;
        const usage = { output_tokens: timings.generatedTokens };
        return [
          ...this.close(),
          { type: "message_delta", delta: ending(reason, stop), usage },
          { type: "message_stop" },
        ];
      }
    }
  }

  private piece(kind: string, block: object, delta: object): object[] {
    const begun: object[] = [];
    if (this.open !== kind) {
      begun.push(...this.close());
      this.index += 1;
      this.open = kind;
      begun.push({ type: "content_block_start", index: this.index, content_block: block });
    }
    return [...begun, { type: "content_block_delta", index: this.index, delta }];
  }

  private close(): object[] {
    if (this.open === null) return [];
    this.open = null;
    return [{ type: "content_block_stop", index: this.index }];
  }
}

function message(model: string): object {
  return { id: `msg_${randomBytes(12).toString("hex")}`, type: "message", role: "assistant", model };
}

/** Anthropic counts what was cached apart. */
function inputUsage(prompt: number, cached: number): object {
  return { input_tokens: prompt - cached, cache_creation_input_tokens: 0, cache_read_input_tokens: cached };
}

function ending(reason: string, stop: string | number | undefined): object {
  if (reason === "stop" && typeof stop === "string") return { stop_reason: "stop_sequence", stop_sequence: stop };
  const stop_reason = reason === "tool_calls" ? "tool_use" : reason === "length" ? "max_tokens" : "end_turn";
  return { stop_reason, stop_sequence: null };
}

/** Calls are constrained to be JSON; one that was cut by the length is not. */
function parsed(json: string): unknown {
  try {
    return JSON.parse(json === "" ? "{}" : json);
  } catch {
    return {};
  }
}
