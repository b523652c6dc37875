// Owns: the conversation in a terminal: lines in, answers out, and what was said so far. Ctrl-C stops an answer; at the
// prompt twice in a row, or Ctrl-D, it leaves. A terminal's lines are read by readline only while one is wanted, so that
// Ctrl-C is a signal while the model speaks.
import { createInterface } from "node:readline";
import { UserError } from "../base/errors.js";
import { answer, stoppable } from "./answer.js";
import { type ChatSetup, Conversation } from "./conversation.js";
import { figuresBlock, figuresLine } from "./figures.js";
import { refuseImages } from "./images.js";
import { foretold } from "./speeds.js";
import { answerView } from "./wrap.js";

const say = (text: string) => process.stderr.write(`${text}\n`);

type Line =
  | { readonly kind: "line"; readonly text: string }
  | { readonly kind: "interrupt" }
  | { readonly kind: "end" };

/** Lines that came with one that was wanted (pasted text): they are the next. */
const ahead: string[] = [];

function readLine(prompt: string, history: string[]): Promise<Line> {
  if (ahead.length > 0) return Promise.resolve({ kind: "line", text: ahead.shift()! });
  return new Promise((resolve) => {
    const reader = createInterface({ input: process.stdin, output: process.stdout, prompt, history: [...history] });
    // close() itself emits "close": what came first is the answer. Lines of one paste come in one turn.
    let first: string | undefined;
    const done = (line: Line) => {
      resolve(line);
      reader.close();
    };
    reader.on("line", (text) => {
      if (first !== undefined) {
        ahead.push(text);
        return;
      }
      first = text;
      setImmediate(() => done({ kind: "line", text }));
    });
    reader.on("SIGINT", () => {
      process.stdout.write("\n");
      done({ kind: "interrupt" });
    });
    reader.on("close", () => done({ kind: "end" }));
    reader.prompt();
  });
}

/** A message of one line, or of several between """, which may also be the text of /set system. */
async function readMessage(history: string[]): Promise<Line> {
  const first = await readLine(">>> ", history);
  if (first.kind !== "line") return first;
  if (first.text.trim() !== "") history.unshift(first.text);
  const [opening, command] = /^\s*(\/set\s+system\s+)?"""/.exec(first.text) ?? [];
  if (opening === undefined) return first;
  const lines = [first.text.slice(opening.length)];
  while (!lines[lines.length - 1].trimEnd().endsWith('"""')) {
    const next = await readLine("... ", history);
    if (next.kind !== "line") return next;
    lines.push(next.text);
  }
  const text = lines.join("\n").trimEnd();
  return { kind: "line", text: (command ?? "") + text.slice(0, -3).trim() };
}

/** Until the person leaves; the conversation's last model is still open then. */
export async function chat(setup: ChatSetup): Promise<Conversation> {
  const conversation = new Conversation(setup);
  const history: string[] = [];
  let interrupted = false;
  // While a line is read the terminal gives Ctrl-C as a character; one that npm passes on as a signal is the same press.
  const ignore = () => {};
  process.on("SIGINT", ignore);
  say('Chat: /? shows what can be typed here, """ begins a message of several lines, Ctrl-D leaves.');
  for (;;) {
    const message = await readMessage(conversation.keepsHistory ? history : []);
    if (message.kind === "end") break;
    if (message.kind === "interrupt") {
      if (interrupted) break;
      interrupted = true;
      say("Ctrl-C again, or Ctrl-D, leaves.");
      continue;
    }
    interrupted = false;
    const text = message.text.trim();
    if (text === "") continue;
    if (text === "/bye" || text === "/exit" || text === "/quit") break;
    try {
      if (!isCommand(text)) await reply(conversation, text);
      else {
        const said = await conversation.command(text);
        if (said !== null) say(said);
      }
    } catch (error) {
      // Ctrl-C, while a model was fetched.
      if (error instanceof Error && error.name === "AbortError") say("Stopped.");
      else if (!(error instanceof UserError)) throw error;
      else say(`${error.message}${error.code === "context_length_exceeded" ? " /clear begins anew." : ""}`);
    }
  }
  process.off("SIGINT", ignore);
  return conversation;
}

/** A path at the beginning of a message is no command. */
const isCommand = (text: string) => /^\/[a-z?]*(\s|$)/.test(text);

/** An answer that failed leaves the conversation as it was. */
async function reply(conversation: Conversation, text: string): Promise<void> {
  const { model, wordWrap, hideThinking, verbose } = conversation;
  const view = answerView(process.stdout, { wordWrap, hideThinking });
  try {
    refuseImages(text, model.name);
    const said = await stoppable((signal) => answer(model.session, conversation.ask(text), { ...view, signal }));
    view.end();
    say(verbose ? figuresBlock(said.figures, model.loadMs, foretold(model)) : `[${figuresLine(said.figures)}]`);
    conversation.keep(text, said.text);
  } catch (error) {
    view.end();
    throw error;
  }
}
