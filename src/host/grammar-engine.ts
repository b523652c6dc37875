// Owns: grammars compiled and matched over one model's vocabulary: what the grammar worker runs. For each constrained choice
// a matcher; after every token it says which tokens may come next, which must, or that the answer is complete.
//
// The compiler sees tokens as bytes. Control tokens have none, so they can never come, but for those that a grammar names:
// they have a spelling of their own there (text/grammar/ebnf.ts). One more entry stands behind the vocabulary: a byte that is
// no text tells free text (anything up to a trigger) from everything else, for in free text every token would be allowed, and
// of the control tokens only those may come that end it.
import { UserError } from "../base/errors.js";
import type { TokenGrammar } from "../engine/types.js";
import { controlSpelling, splitControls } from "../text/grammar/ebnf.js";
import {
  type CompiledGrammar,
  type GrammarCompiler,
  type GrammarMatcher,
  loadXgrammar,
  type XgrammarModule,
} from "./xgrammar.js";

/** A model's vocabulary as this needs it. */
export interface GrammarVocabulary {
  /** Of the logits. */
  readonly size: number;
  /** Empty for what has no text. */
  bytesOf(id: number): Uint8Array;
  isControl(id: number): boolean;
  /** A text's ids, as a text that continues another. */
  encode(text: string): Int32Array;
}

/** What may follow the tokens so far. */
export type Verdict =
  | { readonly kind: "mask"; readonly mask: Int32Array; readonly jump: readonly number[] }
  /** Nothing can follow. */
  | { readonly kind: "end" };

const mostCompiled = 64;
const mostJump = 60;

export class GrammarEngine {
  private readonly compilers = new Map<string, Promise<GrammarCompiler>>();
  private readonly compiled = new Map<string, Promise<CompiledGrammar>>();
  private readonly module: XgrammarModule;
  /** Reads callers' own grammars first: a mistake in one aborts this instance and not the other. */
  private reader: XgrammarModule | undefined;
  private said: string[] = [];

  constructor(private readonly vocabulary: GrammarVocabulary) {
    this.module = this.load();
  }

  /** Throws UserError for a grammar that cannot be read. */
  async compile(grammar: TokenGrammar): Promise<CompiledGrammar> {
    const key = JSON.stringify([grammar.text, grammar.controls, grammar.ends]);
    const known = this.compiled.get(key);
    if (known !== undefined) {
      this.compiled.delete(key);
      this.compiled.set(key, known);
      return known;
    }
    const compiling = this.compileNew(grammar);
    this.compiled.set(key, compiling);
    compiling.catch(() => this.compiled.delete(key));
    if (this.compiled.size > mostCompiled) {
      const [oldest, dropped] = this.compiled.entries().next().value!;
      this.compiled.delete(oldest);
      dropped.then(
        (grammar) => grammar.dispose(),
        () => {},
      );
    }
    return compiling;
  }

  async open(grammar: TokenGrammar): Promise<Matching> {
    const compiled = await this.compile(grammar);
    const { GrammarMatcher } = this.module;
    const matcher = await GrammarMatcher.createGrammarMatcher(compiled, undefined, grammar.ends.length === 0);
    return new Matching(matcher, grammar, this.vocabulary);
  }

  private async compileNew(grammar: TokenGrammar): Promise<CompiledGrammar> {
    if (grammar.foreign) await this.read(grammar);
    const compiler = await this.compiler(grammar);
    this.said = [];
    try {
      return await compiler.compileGrammar(grammar.text);
    } catch {
      throw new GrammarFault(this.reason());
    }
  }

  private async read({ text }: TokenGrammar): Promise<void> {
    this.reader ??= this.load();
    this.said = [];
    try {
      (await this.reader.Grammar.fromEBNF(text)).dispose();
    } catch {
      this.reader = undefined;
      throw new UserError(`The grammar cannot be read: ${this.reason()}.`, {
        code: "invalid_grammar",
        param: "format",
      });
    }
  }

  private reason(): string {
    const fatal = this.said.find((line) => line.includes("[FATAL]"));
    return fatal?.replace(/^.*?\.cc:\d+: /, "").replace(/\.$/, "") ?? "no reason is known";
  }

  private load(): XgrammarModule {
    return loadXgrammar((line) => this.said.push(line));
  }

  /** One for each set of control tokens: a model's tool calls use one set, plain formats none. */
  private compiler({ controls, ends }: TokenGrammar): Promise<GrammarCompiler> {
    const key = `${controls.join()} ${ends.join()}`;
    let compiler = this.compilers.get(key);
    if (compiler === undefined) {
      compiler = this.makeCompiler(new Set(controls), ends);
      this.compilers.set(key, compiler);
    }
    return compiler;
  }

  private async makeCompiler(controls: ReadonlySet<number>, ends: readonly number[]): Promise<GrammarCompiler> {
    const { TokenizerInfo, GrammarCompiler } = this.module;
    const { vocabulary } = this;
    const encoder = new TextEncoder();
    const tokens: string[] = [];
    for (let id = 0; id < vocabulary.size; id++) {
      if (controls.has(id)) tokens.push(spelled(encoder.encode(controlSpelling(id))));
      else if (vocabulary.isControl(id)) tokens.push("");
      else {
        const bytes = vocabulary.bytesOf(id);
        tokens.push(bytes.includes(1) ? "" : spelled(bytes));
      }
    }
    tokens.push(spelled(Uint8Array.of(0xff)));
    // Stop tokens that a matcher brings itself are missing from masks of nearly everything (free text), for they have no text.
    const info = await TokenizerInfo.createTokenizerInfo(tokens, "byte_level", false, tokens.length, [...ends]);
    return GrammarCompiler.createGrammarCompiler(info);
  }
}

/** The instance is broken: everything in it has to be made anew. */
export class GrammarFault extends Error {}

/** One choice's way through its grammar. */
export class Matching {
  constructor(
    private readonly matcher: GrammarMatcher,
    private readonly grammar: TokenGrammar,
    private readonly vocabulary: GrammarVocabulary,
  ) {}

  /** False where the grammar does not allow it; nothing has changed then. */
  accept(id: number): boolean {
    return this.matcher.acceptToken(id);
  }

  rollback(count: number): void {
    if (count > 0) this.matcher.rollBack(count);
  }

  /** Tokens that must follow are accepted already; the mask is of the token after them. */
  async verdict(jumps = this.grammar.jumps ?? true): Promise<Verdict> {
    if (this.matcher.isTerminated()) return { kind: "end" };
    const jump = jumps ? this.jump() : [];
    const mask = await this.matcher.getNextTokenBitmask();
    this.restrict(mask);
    if (jump.length === 0 && mask.every((word) => word === 0)) return { kind: "end" };
    return { kind: "mask", mask, jump };
  }

  dispose(): void {
    this.matcher.dispose();
  }

  private restrict(mask: Int32Array): void {
    const { size } = this.vocabulary;
    const free = bit(mask, size);
    const last = size >>> 5;
    if (last < mask.length) mask[last] &= size % 32 === 0 ? 0 : (1 << (size & 31)) - 1;
    mask.fill(0, last + 1);
    if (!free) return;
    for (const id of this.grammar.controls)
      if (!this.grammar.triggers.includes(id)) mask[id >>> 5] &= ~(1 << (id & 31));
  }

  /**
   * The ids of what must follow, as the tokenizer would write it, but for the last: with what comes after it, another might
   * stand in its place.
   */
  private jump(): number[] {
    const forced = this.matcher.findJumpForwardString();
    if (forced.length < 2) return [];
    const ids: number[] = [];
    for (const part of splitControls(forced) ?? []) {
      const own = typeof part === "number" ? [part] : this.exactly(part);
      if (own === undefined) break;
      ids.push(...own);
    }
    if (!this.vocabulary.isControl(ids.at(-1) ?? 0)) ids.pop();
    ids.splice(mostJump);
    const taken: number[] = [];
    for (const id of ids) {
      if (!this.matcher.acceptToken(id)) break;
      taken.push(id);
    }
    return taken;
  }

  /** Ids whose bytes are the text's; undefined where the tokenizer changes it. */
  private exactly(text: string): Int32Array | undefined {
    const wanted = new TextEncoder().encode(text);
    const plain = this.vocabulary.encode(text);
    if (this.spells(plain, wanted)) return plain;
    // A tokenizer that puts a space before a text: let it, before something else.
    const shifted = this.vocabulary.encode(`\n${text}`);
    for (let cut = 1; cut <= Math.min(3, shifted.length); cut++) {
      if (this.spells(shifted.subarray(cut), wanted)) return shifted.subarray(cut);
    }
    return undefined;
  }

  private spells(ids: Int32Array, wanted: Uint8Array): boolean {
    let at = 0;
    for (const id of ids) {
      const bytes = this.vocabulary.bytesOf(id);
      for (const byte of bytes) if (wanted[at++] !== byte) return false;
    }
    return at === wanted.length;
  }
}

function bit(mask: Int32Array, id: number): boolean {
  return ((mask[id >>> 5] >>> (id & 31)) & 1) === 1;
}

/** Bytes in the alphabet of byte-level vocabularies, which the compiler reads back as these bytes. */
function spelled(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += alphabet[byte];
  return text;
}

const alphabet = byteAlphabet();

function byteAlphabet(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let others = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : others++));
}
