// The grammar worker as compiled, over a tiny model's vocabulary: answers come through shared memory, and outlive the worker.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Worker } from "node:worker_threads";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import type { TokenConstraint, TokenGrammar } from "../../src/engine/types.js";
import { openCheckpoint } from "../../src/formats/open.js";
import type * as GrammarModule from "../../src/host/grammar.js";
import { createTokenizer } from "../../src/text/text.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const { GrammarHost } = (await import(
  new URL("../../dist/host/grammar.js", import.meta.url).href
)) as typeof GrammarModule;

let folder: string;
let path: string;
let vocabSize: number;
let idOf: (text: string) => number;
let end: number;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "millrace-grammar-"));
  path = join(folder, "tiny.gguf");
  writeTinyLlamaGguf(path);
  const checkpoint = await openCheckpoint(path);
  const tokenizer = createTokenizer(checkpoint.meta)!;
  checkpoint.close();
  vocabSize = tokenizer.vocabSize + 5; // padding rows, which no text names
  idOf = (text) => tokenizer.encode(text)[0];
  end = tokenizer.eosIds[0];
});
afterAll(() => rmSync(folder, { recursive: true }));

let host: GrammarModule.GrammarHost;
beforeEach(() => {
  host = new GrammarHost({ path, vocabSize });
});
afterEach(() => host.close());

const grammar = (text: string, more: Partial<TokenGrammar> = {}): TokenGrammar => ({
  ...{ text, controls: [], triggers: [], ends: [end], jumps: false },
  ...more,
});

async function ready(constraint: TokenConstraint): Promise<void> {
  while (!constraint.ready()) {
    await new Promise<void>((resolve) => {
      host.onWritten = resolve;
    });
  }
}

async function allowed(constraint: TokenConstraint): Promise<number[]> {
  await ready(constraint);
  const mask = new Uint32Array(Math.ceil(vocabSize / 32));
  if (!constraint.mask(mask)) return [];
  return Array.from({ length: mask.length * 32 }, (_, id) => id).filter((id) => (mask[id >>> 5] >>> (id & 31)) & 1);
}

const kill = () => (host as unknown as { worker: Worker }).worker.terminate();

test("says what may come, follows what came, forgets what is taken back, and ends", async () => {
  const constraint = host.open(grammar('root ::= "x" [yz]'));
  expect(await allowed(constraint)).toEqual([idOf("x")]);
  constraint.accept(idOf("x"));
  const second = [idOf("y"), idOf("z")].sort((a, b) => a - b);
  expect(await allowed(constraint)).toEqual(second);
  constraint.accept(idOf("z"));
  expect(await allowed(constraint)).toEqual([end]);
  constraint.rollback(1);
  expect(await allowed(constraint)).toEqual(second);
  constraint.rollback(1);
  expect(await allowed(constraint)).toEqual([idOf("x")]);
  const alone = host.open(grammar('root ::= "x"', { ends: [] }));
  await allowed(alone);
  alone.accept(idOf("x"));
  expect(await allowed(alone)).toEqual([]);
});

test("what must follow comes at once, but for its last token", async () => {
  const constraint = host.open(grammar('root ::= "abcdefgh" [0-9]', { jumps: true }));
  await ready(constraint);
  const jump = constraint.jump();
  expect(jump.length).toBeGreaterThan(2);
  expect(constraint.jump()).toEqual([]);
  expect(await allowed(constraint)).toContain(idOf("h"));
});

test("a worker that dies is replaced by one that knows how far everybody is", async () => {
  const one = host.open(grammar('root ::= "x" "y" [z]'));
  await ready(one);
  one.accept(idOf("x"));
  expect(await allowed(one)).toEqual([idOf("y")]);
  await kill();
  expect(await allowed(one)).toEqual([idOf("y")]);
  one.accept(idOf("y"));
  expect(await allowed(one)).toEqual([idOf("z")]);
  await kill();
  await ready(one);
  expect(one.failure).toMatchObject({ status: 500, code: "grammar_failed" });
  const other = host.open(grammar('root ::= "x"'));
  expect(await allowed(other)).toEqual([idOf("x")]);
});

test("a grammar that cannot be read is a UserError, and the next one is read", async () => {
  const bad = host.compile(grammar('root ::= ("x"', { foreign: true }));
  await expect(bad).rejects.toThrow(/grammar cannot be read: EBNF parser error/);
  await host.compile(grammar('root ::= ("x")', { foreign: true }));
});

test("a token that was not allowed ends the choice in an error", async () => {
  const constraint = host.open(grammar('root ::= "x" "y"'));
  await ready(constraint);
  constraint.accept(idOf("z"));
  await ready(constraint);
  expect(constraint.failure?.message).toMatch(/does not allow/);
});

test("a choice that takes too long to follow ends in an error of its caller's, and others go on", async () => {
  const hasty = new GrammarHost({ path, vocabSize, patienceMs: 1000 });
  const usual = host;
  host = hasty;
  const many = hasty.open(grammar('root ::= (("x"* "x"*)* "x"*)* "y"'));
  const other = hasty.open(grammar("root ::= [a-z]*"));
  for (let i = 0; i < 3000 && many.failure === undefined; i++) {
    many.accept(idOf("x"));
    other.accept(idOf("x"));
    await ready(many);
  }
  expect(many.failure).toMatchObject({ status: 400, code: "grammar_too_slow" });
  expect(await allowed(other)).toContain(idOf("x"));
  expect(other.failure).toBeUndefined();
  await hasty.close();
  host = usual;
});
