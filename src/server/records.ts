// Owns: what a server knows of the database that it shares with other servers of this home: its own row there, whose beat says
// that it lives, and who has died. The file is opened when something is first stored, or at the start where it is there.
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { log } from "../base/log.js";
import { processLives } from "../store/lock.js";
import { Database } from "./database.js";

const beatMs = 5_000;
/** A server on another machine (a shared home) cannot be asked: silent for so long, it is dead. */
const silentMs = 60_000;

/** Of this process: each has a row of its own, with the same pid. */
const here = new Set<string>();

export class Records {
  readonly id = randomUUID();
  private opened: Database | undefined;
  private timer: NodeJS.Timeout | undefined;
  private readonly chores: (() => void)[] = [];

  /** @param folder where the database and the files are; made where something is first stored */
  constructor(readonly folder: string) {}

  /** Throws UserError where it cannot be used. */
  get database(): Database {
    if (this.opened === undefined) {
      this.opened = Database.open(join(this.folder, "server.db"));
      here.add(this.id);
      this.beat();
      this.timer = setInterval(() => this.work(), beatMs);
      this.timer.unref();
    }
    return this.opened;
  }

  /** Called now and then while the database is open: for what others left behind, and what is over. */
  regularly(chore: () => void): void {
    this.chores.push(chore);
  }

  /** Takes up what an earlier server left. A database that cannot be used is said in the log: the rest works without. */
  start(): void {
    if (!existsSync(join(this.folder, "server.db"))) return;
    try {
      this.database;
      this.work();
    } catch (error) {
      log.error(`nothing can be stored: ${(error as Error).message}`);
    }
  }

  /** false: it has ended, and nobody does its work. */
  isAlive(id: string): boolean {
    const row = this.database.get<Server>("SELECT * FROM servers WHERE id = ?", id);
    return row !== undefined && lives(row);
  }

  close(): void {
    clearInterval(this.timer);
    here.delete(this.id);
    try {
      this.opened?.run("DELETE FROM servers WHERE id = ?", this.id);
    } finally {
      this.opened?.close();
      this.opened = undefined;
    }
  }

  private work(): void {
    try {
      this.beat();
      for (const chore of this.chores) chore();
    } catch (error) {
      log.error(`the database's upkeep failed: ${(error as Error).message}`);
    }
  }

  private beat(): void {
    const { database } = this;
    const row = [this.id, hostname(), process.pid, Date.now()] as const;
    database.run("INSERT OR REPLACE INTO servers VALUES (?, ?, ?, ?)", ...row);
    for (const server of database.all<Server>("SELECT * FROM servers")) {
      if (!lives(server)) database.run("DELETE FROM servers WHERE id = ?", server.id);
    }
  }
}

interface Server {
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  readonly beat: number;
}

/** A number may have been given to another process since; then the beat stands still. */
function lives({ id, host, pid, beat }: Server): boolean {
  if (here.has(id)) return true;
  if (Date.now() - beat > silentMs) return false;
  return host !== hostname() || (pid !== process.pid && processLives(pid));
}
