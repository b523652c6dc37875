// The real command in a process of its own, with a store of its own.
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

export const mainPath = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Running {
  readonly child: ChildProcess;
  readonly done: Promise<Finished>;
}

export function startMillrace(
  args: readonly string[],
  options: { env?: Record<string, string>; input?: string | Buffer; cwd?: string } = {},
): Running {
  const { DEBUG, NODE_OPTIONS, ...inherited } = process.env;
  const child = spawn(process.execPath, [mainPath, ...args], {
    env: { ...inherited, ...options.env },
    cwd: options.cwd,
    stdio: ["pipe", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  child.stdin.on("error", () => {}); // a command that does not read its input may be gone already
  child.stdin.end(options.input ?? "");
  const done = new Promise<Finished>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
  return { child, done };
}

export const millrace = (...given: Parameters<typeof startMillrace>) => startMillrace(...given).done;
