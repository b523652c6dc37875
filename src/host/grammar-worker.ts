// Owns: the grammar worker's thread: one for a model, started with its first constrained request. Compiles grammars,
// follows each choice's tokens and writes what may come next to shared memory. One message after the other.
import { parentPort, workerData } from "node:worker_threads";
import { check, UserError } from "../base/errors.js";
import { openCheckpoint } from "../formats/open.js";
import { createTokenizer } from "../text/text.js";
import { GrammarEngine, type GrammarVocabulary, type Matching } from "./grammar-engine.js";
import {
  Busy,
  type GrammarMessage,
  type GrammarReply,
  type GrammarWorkerStart,
  Slot,
  usualPatienceMs,
  VerdictCode,
} from "./grammar-protocol.js";

interface Choice {
  readonly matching: Matching;
  readonly shared: Int32Array;
  stamp: number;
  /** Milliseconds of this thread, and tokens, that it has had. */
  spent: number;
  tokens: number;
}

/** A choice whose tokens take longer on average has only so much patience. */
const commonTokenMs = 50;

const port = parentPort!;
const { path, vocabSize, busy, patienceMs = usualPatienceMs } = workerData as GrammarWorkerStart;
const engine = new GrammarEngine(await loadVocabulary());
const choices = new Map<number, Choice>();

let work: Promise<void> = Promise.resolve();
port.on("message", (message: GrammarMessage) => {
  work = work.then(() => handle(message));
});

function reply(message: GrammarReply): void {
  port.postMessage(message);
}

async function handle(message: GrammarMessage): Promise<void> {
  switch (message.type) {
    case "compile":
      reply({ type: "compiled", ticket: message.ticket, error: await compileError(message) });
      return;
    case "open": {
      const { id, grammar, shared, history, stamp, jumped } = message;
      const matching = await engine.open(grammar);
      const choice = { matching, shared, stamp, spent: 0, tokens: history.length };
      choices.set(id, choice);
      await workOn(id, choice, async () => {
        for (const token of history) matching.accept(token);
        await write(choice, jumped ? false : undefined);
      });
      break;
    }
    case "accept":
      for (let i = 0; i < message.drawn.length; i += 2) {
        const choice = choices.get(message.drawn[i]);
        if (!choice) continue;
        choice.stamp++;
        choice.tokens++;
        await workOn(message.drawn[i], choice, async () => {
          if (choice.matching.accept(message.drawn[i + 1])) await write(choice);
          else publish(choice, VerdictCode.failed);
        });
      }
      break;
    case "rollback": {
      const choice = choices.get(message.id);
      if (!choice) return;
      choice.stamp++;
      choice.matching.rollback(message.count);
      await write(choice);
      break;
    }
    case "close":
      choices.get(message.id)?.matching.dispose();
      choices.delete(message.id);
      return;
  }
  reply({ type: "written" });
}

/** The host sees what is being worked on, and counts on nothing else of a choice that takes too long. */
async function workOn(id: number, choice: Choice, task: () => Promise<void>): Promise<void> {
  if (choice.spent > patienceMs && choice.spent > choice.tokens * commonTokenMs) {
    publish(choice, VerdictCode.slow);
    return;
  }
  busy[Busy.count]++;
  Atomics.store(busy, Busy.choice, id);
  const began = performance.now();
  await task();
  choice.spent += performance.now() - began;
  Atomics.store(busy, Busy.choice, 0);
}

/** A UserError is the caller's; anything else ends this thread, and the host starts another. */
async function compileError(
  message: GrammarMessage & { type: "compile" },
): Promise<{ message: string; code: string } | undefined> {
  try {
    await engine.compile(message.grammar);
    return undefined;
  } catch (error) {
    if (error instanceof UserError) return { message: error.message, code: error.code };
    throw error;
  }
}

async function write(choice: Choice, jumps?: boolean): Promise<void> {
  const verdict = await choice.matching.verdict(jumps);
  if (verdict.kind === "end") {
    publish(choice, VerdictCode.end);
    return;
  }
  const { shared } = choice;
  shared[Slot.jumps] = verdict.jump.length;
  shared.set(verdict.jump, Slot.jumpIds);
  shared.set(verdict.mask.subarray(0, shared.length - Slot.mask), Slot.mask);
  publish(choice, VerdictCode.mask);
}

function publish({ shared, stamp }: Choice, verdict: number): void {
  if (verdict !== VerdictCode.mask) shared[Slot.jumps] = 0;
  shared[Slot.verdict] = verdict;
  Atomics.store(shared, Slot.stamp, stamp);
}

async function loadVocabulary(): Promise<GrammarVocabulary> {
  const checkpoint = await openCheckpoint(path);
  const tokenizer = createTokenizer(checkpoint.meta);
  check(tokenizer !== undefined, "a model without a tokenizer has no constrained output");
  checkpoint.close();
  const none = new Uint8Array(0);
  const known = (id: number) => id < tokenizer.vocabSize;
  return {
    size: vocabSize,
    bytesOf: (id) => (known(id) ? tokenizer.decodeBytes(id).slice() : none),
    isControl: (id) => !known(id) || tokenizer.isControl(id),
    encode: (text) => tokenizer.encode(text),
  };
}
