// Owns: what the API surfaces ask for and get: ChatJob in, Delta out. session.ts turns one into the other; index.ts, cli/
// and server/ translate their own formats to and from these and touch nothing below.

import type { ErrorRecord, FinishReason, SamplingParams, Timings, TokenLogprobs } from "../engine/types.js";
import type { OutputFormat } from "../text/grammar/format.js";

export type { OutputFormat } from "../text/grammar/format.js";

export interface TextPart {
  readonly type: "text";
  readonly text: string;
}

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON text. */
  readonly arguments: string;
}

export interface ChatMessage {
  readonly role: "system" | "developer" | "user" | "assistant" | "tool";
  readonly content: string | readonly TextPart[] | null;
  readonly name?: string;
  readonly toolCalls?: readonly ToolCall[];
  readonly toolCallId?: string;
  /** The reasoning before an assistant's answer, for templates that show it to the model again. */
  readonly thinking?: string;
  /** Of a system message: JSON text of the tools, for templates that read them there. The session sets it. */
  readonly tools?: string;
}

export interface Tool {
  readonly name: string;
  readonly description?: string;
  /** JSON Schema of an object. */
  readonly parameters?: Readonly<Record<string, unknown>>;
  /** false: objects in it may have properties that they do not name. */
  readonly strict?: boolean;
}

/** auto: the model decides; required: at least one call; name: a call of this tool; allowed: of these, at least one where required. */
export type ToolChoice =
  | "auto"
  | "required"
  | "none"
  | { readonly name: string }
  | { readonly allowed: readonly string[]; readonly required: boolean };

export type Thinking = boolean | "low" | "medium" | "high" | "max";

/** Exactly one of messages, prompt and promptIds. */
export interface ChatJob {
  readonly messages?: readonly ChatMessage[];
  readonly tools?: readonly Tool[];
  /** auto unless said. */
  readonly toolChoice?: ToolChoice;
  /** More than one call an answer; true unless said. */
  readonly parallelToolCalls?: boolean;
  readonly format?: OutputFormat;
  /** Reasoning before the answer, for models that can. undefined: as the model's template has it. */
  readonly think?: Thinking;
  /** Extra variables for the template. */
  readonly templateVariables?: Readonly<Record<string, unknown>>;
  /** Ends the rendered messages with the opening of an answer; true unless said. */
  readonly addGenerationPrompt?: boolean;
  readonly prompt?: string;
  /** Spellings of special tokens in `prompt` become those tokens; otherwise they stay text. False unless said. */
  readonly parseSpecial?: boolean;
  /** What comes after the answer, which stands between it and `prompt`. */
  readonly suffix?: string;
  readonly promptIds?: Int32Array;
  readonly n: number;
  readonly sampling: SamplingParams;
  /** undefined: to the end of the context. */
  readonly maxTokens?: number;
  readonly minTokens: number;
  readonly stop: readonly string[];
  readonly stopIds: readonly number[];
  readonly includeStop: boolean;
  readonly ignoreEos: boolean;
  /** Special tokens give no text; true unless said. */
  readonly skipSpecialTokens?: boolean;
  readonly logprobs?: number;
  readonly promptLogprobs?: number;
  readonly priority: number;
  readonly cacheSalt?: string;
  /** A LoRA adapter that the model was loaded with, by its name; none unless said. */
  readonly adapter?: string;
}

export interface DeltaToken {
  readonly id: number;
  /** As the token alone decodes. */
  readonly bytes: Uint8Array;
  /** UTF-16 units of the choice's text before this token's. */
  readonly offset: number;
  readonly logprobs?: TokenLogprobs;
}

/** What a surface streams. Text of one choice, concatenated, is the whole answer. */
export type Delta =
  | {
      readonly type: "start";
      readonly promptIds: Int32Array;
      readonly cachedTokens: number;
      readonly promptLogprobs?: readonly (TokenLogprobs | null)[];
    }
  /** Tokens come with the text that they begin; one that begins none (special, or part of a character) with the next. */
  | { readonly type: "content"; readonly index: number; readonly text: string; readonly tokens: readonly DeltaToken[] }
  | {
      readonly type: "reasoning";
      readonly index: number;
      readonly text: string;
      readonly tokens: readonly DeltaToken[];
    }
  /** A piece of a call of a tool. */
  | {
      readonly type: "toolCall";
      readonly index: number;
      /** Which of the answer's calls, from 0. */
      readonly call: number;
      readonly id: string;
      /** With the first piece of a call. */
      readonly name?: string;
      /** Pieces of the arguments' JSON text; concatenated it is whole. */
      readonly arguments: string;
      readonly tokens: readonly DeltaToken[];
    }
  | {
      readonly type: "finish";
      readonly index: number;
      readonly reason: FinishReason;
      /** The stop string or id that ended it. */
      readonly stop?: string | number;
      /** Tokens without text in the answer: dropped with a stop string, the end token, special ones at the end. */
      readonly tokens: readonly DeltaToken[];
      readonly error?: ErrorRecord;
      readonly timings: Timings;
    };
