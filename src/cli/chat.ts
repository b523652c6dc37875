// Owns: the conversation in a terminal: lines in, answers out, and what was said so far. Ctrl-C stops an answer; at the
// prompt twice in a row, or Ctrl-D, it leaves. A terminal's lines are read by readline only while one is wanted, so that
// Ctrl-C is a signal while the model speaks.
import { createInterface } from "node:readline";
import { UserError } from "../base/errors.js";
import type { Session } from "../session/session.js";
import type { ChatJob, ChatMessage } from "../session/types.js";
import { answer, stoppable } from "./answer.js";
import { figuresLine } from "./figures.js";

const say = (text: string) => process.stderr.write(`${text}\n`);

const help = `Write a message and press Enter. For several lines begin with """ and end with """.
  /clear   forget what was said
  /bye     leave (so does Ctrl-D)
Ctrl-C stops an answer; twice at the prompt it leaves.`;

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

/** A message of one line, or of several between """. */
async function readMessage(history: string[]): Promise<Line> {
  const first = await readLine(">>> ", history);
  if (first.kind !== "line") return first;
  if (first.text.trim() !== "") history.unshift(first.text);
  const opened = first.text.trimStart();
  if (!opened.startsWith('"""')) return first;
  const lines = [opened.slice(3)];
  while (!lines[lines.length - 1].trimEnd().endsWith('"""')) {
    const next = await readLine("... ", history);
    if (next.kind !== "line") return next;
    lines.push(next.text);
  }
  const text = lines.join("\n").trimEnd();
  return { kind: "line", text: text.slice(0, -3).trim() };
}

/** job: what every message is asked with, less the messages. Where the model has no chat template a line is continued. */
export async function chat(
  session: Session,
  job: Omit<ChatJob, "messages" | "prompt">,
  options: { system?: string; raw: boolean },
): Promise<void> {
  const opening: ChatMessage[] = options.system === undefined ? [] : [{ role: "system", content: options.system }];
  let messages = opening;
  const history: string[] = [];
  let interrupted = false;
  // While a line is read the terminal gives Ctrl-C as a character; one that npm passes on as a signal is the same press.
  const ignore = () => {};
  process.on("SIGINT", ignore);
  say('Chat: /? shows what can be typed here, """ begins a message of several lines, Ctrl-D leaves.');
  for (;;) {
    const message = await readMessage(history);
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
    if (text === "/clear") {
      messages = opening;
      say("Forgotten.");
    } else if (text.startsWith("/")) say(text === "/?" || text === "/help" ? help : `There is no ${text}.\n${help}`);
    else messages = await reply(session, job, messages, text, options.raw);
  }
  process.off("SIGINT", ignore);
}

/** Answers, and returns the conversation with what was said; an answer that failed leaves it as it was. */
async function reply(
  session: Session,
  job: Omit<ChatJob, "messages" | "prompt">,
  messages: readonly ChatMessage[],
  text: string,
  raw: boolean,
): Promise<ChatMessage[]> {
  const asked: ChatMessage[] = [...messages, { role: "user", content: text }];
  const input = raw ? { prompt: text } : { messages: asked };
  const onText = (piece: string) => process.stdout.write(piece);
  try {
    const said = await stoppable((signal) => answer(session, { ...job, ...input }, { onText, signal }));
    process.stdout.write("\n");
    say(`[${figuresLine(said.figures)}]`);
    return raw ? [...messages] : [...asked, { role: "assistant", content: said.text }];
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    say(`${error.message}${error.code === "context_length_exceeded" ? " /clear begins anew." : ""}`);
    return [...messages];
  }
}
