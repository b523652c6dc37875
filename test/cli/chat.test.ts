// The chat as a person has it: in a terminal (python3's pty, which passes on what it is given), with Ctrl-C in the middle
// of an answer.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { expect, test } from "vitest";
import { mainPath } from "../support/millrace.js";
import { smollm2 } from "../support/models.js";

const relay = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
const ctrlC = "\x03";
const ctrlD = "\x04";

function hasPty(): boolean {
  try {
    execFileSync("python3", ["-c", "import os, pty; os.waitstatus_to_exitcode"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

class Terminal {
  private readonly child: ChildProcess;
  private shown = "";
  private at = 0;
  readonly code: Promise<number | null>;

  constructor(args: readonly string[]) {
    this.child = spawn("python3", ["-c", relay, process.execPath, mainPath, ...args], {
      env: { ...process.env, TERM: "xterm" },
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => (this.shown += text));
    this.code = new Promise((resolve) => this.child.on("close", resolve));
  }

  /** Waits until the terminal shows this, after what was waited for before. Returns the match. */
  async see(what: RegExp): Promise<string> {
    for (const end = Date.now() + 20_000; Date.now() < end; await new Promise((next) => setTimeout(next, 10))) {
      const match = what.exec(this.shown.slice(this.at));
      if (match === null) continue;
      this.at += match.index + match[0].length;
      return match[0];
    }
    throw new Error(`${what} never came: ${JSON.stringify(this.shown.slice(this.at))}`);
  }

  type(text: string): void {
    this.child.stdin!.write(text);
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }
}

async function chatting(more: readonly string[], body: (terminal: Terminal) => Promise<void>): Promise<void> {
  const terminal = new Terminal(["run", smollm2(), "--temperature", "0", "--ctx", "4096", ...more]);
  try {
    await body(terminal);
  } finally {
    terminal.kill();
  }
}

test.skipIf(!hasPty())("Ctrl-C stops an answer and not the chat; at the prompt, twice, it leaves", async () => {
  await chatting(["--raw"], async (terminal) => {
    await terminal.see(/>>> /);
    terminal.type("Once upon a time\r");
    await terminal.see(/Once upon a time\s+\S[\s\S]{40}/);
    terminal.type(ctrlC);
    const stopped = await terminal.see(/\[prompt .*generation (\d+) tokens/);
    expect(Number(/generation (\d+)/.exec(stopped)![1])).toBeLessThan(4000);
    await terminal.see(/>>> /);
    terminal.type(ctrlC);
    await terminal.see(/Ctrl-C again, or Ctrl-D, leaves[\s\S]*>>> /);
    terminal.type(ctrlC);
    expect(await terminal.code).toBe(0);
  });
});

test.skipIf(!hasPty())("a chat remembers what was said, takes several lines, forgets and leaves", async () => {
  await chatting(["--max-tokens", "3"], async (terminal) => {
    const prompt = async () => Number(/prompt (\d+)/.exec(await terminal.see(/\[prompt \d+ tokens.*\]/))![1]);
    await terminal.see(/>>> /);
    terminal.type("Hi\r");
    const first = await prompt();
    await terminal.see(/>>> /);
    terminal.type('"""two\r');
    await terminal.see(/\.\.\. /);
    terminal.type('lines"""\r');
    expect(await prompt()).toBeGreaterThan(first + 5);
    await terminal.see(/>>> /);
    terminal.type("/clear\r");
    await terminal.see(/Forgotten[\s\S]*>>> /);
    terminal.type("Hi\r");
    expect(await prompt()).toBe(first);
    await terminal.see(/>>> /);
    terminal.type(ctrlD);
    expect(await terminal.code).toBe(0);
  });
});

test.skipIf(!hasPty())(
  "settings of a chat: a longer context loads the model again, a system message has several lines",
  async () => {
    await chatting(["--max-tokens", "3"], async (terminal) => {
      const type = async (line: string, answer: RegExp) => {
        await terminal.see(/>>> /);
        terminal.type(`${line}\r`);
        await terminal.see(answer);
      };
      await type("/set parameter num_ctx 512", /num_ctx is 512/);
      await type("/show info", /context +512 tokens/);
      await type("/set parameter num_ctx 999999", /the model was made for 8192/);
      await type("/set parameter num_gpu 1", /num_gpu has no effect here/);
      await type("/set think", /does not reason/);
      await type('/set system """You are', /\.\.\. /);
      terminal.type('a king."""\r');
      await type("/show system", /You are\s+a king\./);
      await type("Hi", /\[prompt \d+ tokens/);
      await terminal.see(/>>> /);
      terminal.type("/bye\r");
      expect(await terminal.code).toBe(0);
    });
  },
);
