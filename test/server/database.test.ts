// The embedded database: what it keeps when the processes that write it are killed, and what it says of files it cannot use.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Database } from "../../src/server/database.js";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-database-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const compiled = new URL("../../dist/server/database.js", import.meta.url).href;

/** Counts up in two places at once, for ever. */
const writer = (path: string) => `
  const { Database } = await import(${JSON.stringify(compiled)});
  const database = Database.open(${JSON.stringify(path)});
  process.stdout.write("up");
  for (let n = 0; ; n++) {
    database.transaction(() => {
      database.run("UPDATE servers SET beat = beat + 1 WHERE id = 'count'");
      database.run("INSERT INTO files (id, client, created, purpose, filename, bytes) VALUES (?, '', 0, '', ?, 0)",
        process.pid + "-" + n, "x".repeat(2000));
    });
  }`;

function begin(path: string) {
  const child = spawn(process.execPath, ["--input-type=module", "-e", writer(path)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const up = new Promise((resolve) => child.stdout.once("data", resolve));
  const gone = new Promise((resolve) => child.once("exit", resolve));
  return { child, up, gone };
}

describe("the database", () => {
  it("keeps whole transactions, and stays usable, when two processes that write it are killed", async () => {
    const path = join(folder, "killed.db");
    const first = Database.open(path);
    first.run("INSERT INTO servers VALUES ('count', '', 0, 0)");
    let before = 0;
    for (let round = 0; round < 4; round++) {
      const both = [begin(path), begin(path)];
      await Promise.all(both.map(({ up }) => up));
      await new Promise((resolve) => setTimeout(resolve, 100 + 50 * round));
      for (const { child } of both) child.kill("SIGKILL");
      await Promise.all(both.map(({ gone }) => gone));
      const database = Database.open(path);
      const { beat } = database.get<{ beat: number }>("SELECT beat FROM servers WHERE id = 'count'")!;
      const { count } = database.get<{ count: number }>("SELECT count(*) AS count FROM files")!;
      expect(count).toBe(beat);
      expect(count).toBeGreaterThan(before);
      before = count;
      database.close();
    }
    expect(first.get<{ count: number }>("SELECT count(*) AS count FROM files")!.count).toBe(before);
    first.close();
  });

  it("undoes a transaction that fails", () => {
    const database = Database.open(join(folder, "undone.db"));
    expect(() =>
      database.transaction(() => {
        database.run("INSERT INTO servers VALUES ('a', '', 0, 0)");
        throw new Error("no");
      }),
    ).toThrow("no");
    expect(database.all("SELECT * FROM servers")).toEqual([]);
    database.close();
  });

  it("is its owner's to read alone", () => {
    const path = join(folder, "mode.db");
    const database = Database.open(path);
    database.run("INSERT INTO servers VALUES ('a', '', 0, 0)");
    for (const file of [path, `${path}-wal`]) expect(statSync(file).mode & 0o077).toBe(0);
    database.close();
  });

  it("says which file is damaged, or too new, and what to do", () => {
    const path = join(folder, "damaged.db");
    writeFileSync(path, "nothing of the kind ".repeat(1000));
    expect(() => Database.open(path)).toThrow(/damaged\.db is damaged .* move it away/);
    const newer = join(folder, "newer.db");
    const database = Database.open(newer);
    database.run("PRAGMA user_version = 999");
    database.close();
    expect(() => Database.open(newer)).toThrow(/newer millrace \(version 999/);
  });
});
