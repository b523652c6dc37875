// Owns: what a model file says of its text, as one call: its tokenizer and its chat template, where it has them.
import { FormatError, UserError } from "../base/errors.js";
import type { CheckpointMeta, HuggingFaceFiles, MetaValue } from "../formats/checkpoint.js";
import { ChatTemplate, type ChatTemplateSource } from "./chat.js";
import { tokenizerFromGguf } from "./gguf-tokenizer.js";
import { tokenizerFromHuggingFace, tokenSpellings } from "./huggingface-tokenizer.js";
import type { Tokenizer } from "./tokenizer.js";

export interface TextModel {
  /** Undefined: the checkpoint has no tokenizer and is served by token ids. */
  readonly tokenizer?: Tokenizer;
  readonly template?: ChatTemplate;
}

/** A template in place of the model's own. */
export type TemplateOverride = Required<Pick<ChatTemplateSource, "kind">> & { readonly text: string };

export function createTextModel(meta: CheckpointMeta, override?: TemplateOverride): TextModel {
  const tokenizer = createTokenizer(meta);
  return { tokenizer, template: tokenizer && createTemplate(meta, tokenizer, override) };
}

/** Undefined: the checkpoint has none. Throws FormatError for a template that cannot be read. */
export function createTemplate(
  meta: CheckpointMeta,
  tokenizer: Tokenizer,
  override?: TemplateOverride,
): ChatTemplate | undefined {
  const source = override === undefined ? ownTemplates(meta) : { template: override.text, kind: override.kind };
  if (source === undefined) return undefined;
  const own = meta.kind === "gguf" ? {} : tokenSpellings(meta.files);
  const specialTokens = { ...ownSpellings(tokenizer), ...own };
  const controlSpellings = tokenizer.controlSpellings;
  return new ChatTemplate({ ...source, specialTokens, controlSpellings });
}

function ownTemplates(meta: CheckpointMeta): Templates | undefined {
  return meta.kind === "gguf" ? ggufTemplates(meta.values) : huggingFaceTemplates(meta.files);
}

/** Undefined where the checkpoint has no tokenizer. */
export function createTokenizer(meta: CheckpointMeta): Tokenizer | undefined {
  return meta.kind === "gguf" ? tokenizerFromGguf(meta.values) : tokenizerFromHuggingFace(meta.files);
}

/** For a surface that needs the template: a UserError where there is none. */
export function requireTemplate({ tokenizer, template }: TextModel): ChatTemplate {
  if (template !== undefined) return template;
  throw new UserError(
    tokenizer === undefined
      ? "the model has no tokenizer: give it token ids instead of messages"
      : "the model has no chat template (it is probably a base model): give it a plain prompt instead of messages",
    { code: "no_chat_template", param: "messages" },
  );
}

type Templates = Pick<ChatTemplateSource, "template" | "named">;

function ggufTemplates(values: ReadonlyMap<string, MetaValue>): Templates | undefined {
  const prefix = "tokenizer.chat_template";
  const named: Record<string, string> = {};
  for (const [key, value] of values) {
    if (key.startsWith(`${prefix}.`) && typeof value === "string") named[key.slice(prefix.length + 1)] = value;
  }
  const main = values.get(prefix);
  if (main !== undefined && typeof main !== "string") throw new FormatError(`${prefix} must be text`);
  return choose(main, named);
}

/** chat_template.jinja comes before tokenizer_config.json's, which is a text or a list of named ones. */
function huggingFaceTemplates(files: HuggingFaceFiles): Templates | undefined {
  const named: Record<string, string> = {};
  const configured = files.tokenizerConfig?.chat_template;
  if (Array.isArray(configured)) {
    for (const entry of configured as readonly { name?: unknown; template?: unknown }[]) {
      if (typeof entry?.name === "string" && typeof entry.template === "string") named[entry.name] = entry.template;
    }
  }
  Object.assign(named, files.namedChatTemplates);
  return choose(files.chatTemplate ?? (typeof configured === "string" ? configured : undefined), named);
}

function choose(main: string | undefined, named: Readonly<Record<string, string>>): Templates | undefined {
  const { default: fallback, ...others } = named;
  const template = main ?? fallback;
  if (template !== undefined) return { template, named: others };
  const [only] = Object.values(others);
  return only === undefined ? undefined : { template: only, named: others };
}

function ownSpellings(tokenizer: Tokenizer): Record<string, string> {
  const spellings: Record<string, string> = {};
  const ids = { bos_token: tokenizer.bosId, eos_token: tokenizer.eosId, unk_token: tokenizer.unknownId };
  for (const [name, id] of Object.entries({ ...ids, pad_token: tokenizer.padId })) {
    if (id !== undefined) spellings[name] = tokenizer.tokenOf(id);
  }
  return spellings;
}
