// Owns: what each key has spent today, in tokens, against what it may: kept across restarts, and shared by all servers that
// use the same folder. One file a day, DAY.log, to which lines "TOKENS NAME" are appended; a day (UTC) that is over is
// deleted. What was spent in the last second before a crash may be lost, nothing else.
import { appendFileSync, closeSync, mkdirSync, openSync, readdirSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { ApiKey } from "./keys.js";

const flushMs = 1000;
const dayMs = 24 * 3600 * 1000;

export class Budgets {
  private day = "";
  /** Of the day, by key, as the file has it. */
  private spent = new Map<string, number>();
  /** Not in the file yet. */
  private fresh = new Map<string, number>();
  /** Bytes of the file that are in `spent`. */
  private read = 0;
  private timer: NodeJS.Timeout | undefined;

  /**
   * @param folder made where a key with a budget first spends
   * @param now milliseconds since 1970
   */
  constructor(
    private readonly folder: string,
    private readonly now: () => number = Date.now,
  ) {}

  /** Throws UserError 429 where the key has spent what it may. */
  check(key: ApiKey | undefined): void {
    if (key?.budget === undefined) return;
    this.turn();
    this.readOn();
    const used = this.used(key.name);
    if (used < key.budget) return;
    const retryAfter = Math.ceil((dayMs - (this.now() % dayMs)) / 1000);
    throw new UserError(
      `This API key has spent its ${key.budget} tokens of today (${used} were used). The next day begins in ${retryAfter} s.`,
      { status: 429, code: "budget_exceeded", retryAfter },
    );
  }

  spend(key: ApiKey | undefined, tokens: number): void {
    if (key?.budget === undefined || tokens === 0) return;
    this.turn();
    this.fresh.set(key.name, (this.fresh.get(key.name) ?? 0) + tokens);
    this.timer ??= setTimeout(() => this.flush(), flushMs).unref();
  }

  used(name: string): number {
    return (this.spent.get(name) ?? 0) + (this.fresh.get(name) ?? 0);
  }

  /** Writes what has been spent. */
  flush(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.fresh.size === 0) return;
    const lines = [...this.fresh].map(([name, tokens]) => `${tokens} ${name}\n`).join("");
    try {
      mkdirSync(this.folder, { recursive: true });
      appendFileSync(this.path(), lines, { mode: 0o600 });
      this.fresh.clear();
      this.readOn();
    } catch (error) {
      // Counted on in memory; the next flush tries again.
      log.error(`what keys have spent cannot be written: ${(error as Error).message}`);
    }
  }

  /** Begins a new day where there is one. */
  private turn(): void {
    const today = new Date(this.now()).toISOString().slice(0, 10);
    if (today === this.day) return;
    if (this.day !== "") this.flush();
    this.day = today;
    this.spent = new Map();
    this.fresh = new Map();
    this.read = 0;
    this.forgetPast();
    this.readOn();
  }

  private forgetPast(): void {
    try {
      for (const name of readdirSync(this.folder)) {
        if (/^\d{4}-\d\d-\d\d\.log$/.test(name) && name < this.day) rmSync(join(this.folder, name), { force: true });
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }

  /** What was appended since, by whichever server. */
  private readOn(): void {
    const text = readFrom(this.path(), this.read);
    const end = text.lastIndexOf(10) + 1; // a line that is being written is for the next time
    this.read += end;
    for (const line of text.toString("utf8", 0, end).split("\n")) {
      const [, tokens, name] = /^(\d{1,15}) (\S+)$/.exec(line) ?? [];
      if (name !== undefined) this.spent.set(name, (this.spent.get(name) ?? 0) + Number(tokens));
    }
  }

  private path(): string {
    return join(this.folder, `${this.day}.log`);
  }
}

/** Empty where there is no such file. */
function readFrom(path: string, position: number): Buffer {
  let file: number;
  try {
    file = openSync(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return Buffer.alloc(0);
    throw error;
  }
  try {
    const parts: Buffer[] = [];
    for (;;) {
      const part = Buffer.alloc(65_536);
      const length = readSync(file, part, 0, part.length, position);
      if (length === 0) return Buffer.concat(parts);
      parts.push(part.subarray(0, length));
      position += length;
    }
  } finally {
    closeSync(file);
  }
}
