// Owns: what a session asks of the parts below it. EngineClient is a Generator; text/ gives a TextModel.
import type { EngineStats, GenerateRequest, ModelLimits, Timeline, TokenEvent } from "../engine/types.js";
import type { TemplateOverride } from "../text/text.js";
import type { ChatMessage, Tool } from "./types.js";

export interface Generator {
  readonly limits: ModelLimits;
  /** The signal ends all of its choices, as does leaving the iteration; each ends with one finish event. */
  generate(request: GenerateRequest, signal?: AbortSignal): AsyncIterable<TokenEvent>;
  /** One vector a text, not normalised; of models with limits.embeddingSize. */
  embed?(texts: readonly Int32Array[], signal?: AbortSignal): Promise<readonly Float32Array[]>;
  /** Ends a choice, or all of a request's; each still gets its finish event. */
  abort(id: string, index?: number): void;
  /** False between its host's death and the next request; absent: it cannot die by itself. */
  readonly alive?: boolean;
  /** Starts a dead host again. */
  stats?(): Promise<EngineStats>;
  /** What its newest steps did; undefined: it has none, or its host is dead. */
  timeline?(steps: number): Promise<Timeline | undefined>;
}

/** Absent for a checkpoint that has none: it is then served by token ids alone. */
export interface TextModel {
  readonly tokenizer: TextTokenizer;
  readonly template?: TextTemplate;
  /** The same with another template; throws FormatError for one that cannot be read. */
  withTemplate?(template: TemplateOverride): TextModel;
}

export interface TextTokenizer {
  /** Ids that end an answer. */
  readonly endIds: readonly number[];
  /** whole: as a text by itself, between the model's first and last tokens. bos: put the model's first token before it, where it has one. special: spelled-out special tokens become ids. */
  encode(text: string, options: { bos?: boolean; special?: boolean; whole?: boolean }): Int32Array;
  tokenBytes(id: number): Uint8Array;
  /** The control token that is spelled so. */
  control(spelling: string): number | undefined;
  /** whole: the ids are a text from its beginning, not the continuation of one. */
  detokenizer(options: { skipSpecial: boolean; whole?: boolean }): TextStream;
}

/** Gives whole characters only. */
export interface TextStream {
  push(id: number): string;
  flush(): string;
}

export interface TextTemplate {
  /** Its text, and that of the one which is used with tools, where it is another. */
  readonly source: string;
  readonly toolSource?: string;
  encode(
    messages: readonly ChatMessage[],
    options: {
      tools?: readonly Tool[];
      variables?: Readonly<Record<string, unknown>>;
      addGenerationPrompt: boolean;
    },
  ): Int32Array;
  /** The prompt for a text between two others; undefined: the template has no place for the suffix. */
  encodeInfill?(prompt: string, suffix: string): Int32Array | undefined;
}
