// Pages on disk: whole or not there, of the right kind or not there, never more than the quota, whoever else reads, writes
// and clears, and whenever a process dies.
import { fork } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { setLog } from "../../src/base/log.js";
import { clearPages, digestOfFiles, fileOf, keyOf, reportPages, sweep } from "../../src/host/page-files.js";
import { PageTiers, type PageTiersOptions, type Where } from "../../src/host/page-tiers.js";

const MiB = 2 ** 20;
let folder: string;
let model: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-pages-"));
  model = join(folder, "model");
  writeFileSync(model, "weights");
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const key = (n: number, group = 0) => String.fromCharCode(group, ...Array.from({ length: 16 }, (_, i) => n * 16 + i));
const bytes = (n: number, length = 1000) => Uint8Array.from({ length }, (_, i) => (n * 31 + i * 7) & 255);
const about = { model: "m", device: "cpu, here", kvDtype: "f16", pageTokens: 16, group: 0 };

async function open(more: Partial<PageTiersOptions> = {}) {
  const places = new Map<string, Where>();
  const tiers = new PageTiers(
    { folder, files: [model], kind: "k", about, memoryBytes: 0, diskBytes: 64 * MiB, ...more },
    (keys, where) => {
      for (const one of keys) places.set(one, where);
    },
  );
  await tiers.open();
  const put = async (...ns: number[]) => {
    for (const n of ns) tiers.put(key(n), bytes(n));
    while (tiers.busy) await tiers.writeNext();
  };
  return { tiers, places, put };
}

/** The folders of kinds, and the pages in one. */
const kinds = () => readdirSync(folder).filter((name) => name.length === 32);
const files = (kind = kinds()[0]) => readdirSync(join(folder, kind)).filter((name) => name.length > 64);
const fileAt = (n: number, kind = kinds()[0]) => join(folder, kind, fileOf(key(n)));

describe("pages on disk", () => {
  test("are found by the next process, and are for their owner alone", async () => {
    const { put } = await open();
    await put(1, 2, 3);
    const { tiers, places } = await open();
    expect(tiers.diskPages).toBe(3);
    expect(places.get(key(2))).toEqual({ memory: false, disk: true, queued: false });
    expect(tiers.get(key(2))).toEqual(bytes(2));
    expect(tiers.get(key(4))).toBeUndefined();
    expect(statSync(fileAt(1)).mode & 0o777).toBe(0o600);
    expect(statSync(join(folder, kinds()[0])).mode & 0o777).toBe(0o700);
    expect(keyOf(fileOf(key(77, 3)))).toBe(key(77, 3));
  });

  test("that are damaged, cut, of another name or no page at all are dropped and counted, never given", async () => {
    const { put } = await open();
    await put(1, 2, 3, 4, 5);
    const flipped = readFileSync(fileAt(1));
    flipped[700] ^= 1;
    writeFileSync(fileAt(1), flipped);
    truncateSync(fileAt(2), 900);
    renameSync(fileAt(3), fileAt(6));
    writeFileSync(fileAt(4), "");
    const { tiers } = await open();
    for (const n of [1, 2, 4, 6]) expect(tiers.get(key(n))).toBeUndefined();
    expect(tiers.damaged).toBe(4);
    expect(files()).toEqual([fileOf(key(5))]);
    expect(tiers.get(key(5))).toEqual(bytes(5));
  });

  test("of another model, or of anything else that counts, are others", async () => {
    await (await open()).put(1);
    expect((await open({ kind: "other" })).tiers.get(key(1))).toBeUndefined();
    writeFileSync(model, "Weights");
    expect((await open()).tiers.get(key(1))).toBeUndefined();
    writeFileSync(join(folder, "elsewhere"), "weights");
    expect((await open({ files: [join(folder, "elsewhere")] })).tiers.get(key(1))).toEqual(bytes(1));
  });

  test("go when there are too many, those used longest ago first, of every kind", async () => {
    const first = await open({ kind: "old", diskBytes: 20_000 });
    await first.put(1, 2, 3, 4, 5, 6, 7, 8);
    const [old] = kinds();
    for (const n of [1, 2, 3, 4, 5, 6, 7, 8]) utimesSync(fileAt(n, old), new Date(n * 1000), new Date(n * 1000));
    expect(first.tiers.get(key(2))).toEqual(bytes(2)); // used now
    const second = await open({ diskBytes: 10_000 });
    await second.put(11, 12, 13);
    const left = kinds().flatMap((kind) => files(kind));
    expect(left.length * 1048).toBeLessThanOrEqual(10_000);
    expect(left).toContain(fileOf(key(2)));
    expect(left).not.toContain(fileOf(key(1)));
    expect(left).not.toContain(fileOf(key(3)));
    for (const n of [11, 12, 13]) expect(left).toContain(fileOf(key(n)));
    expect(first.tiers.get(key(1))).toBeUndefined();
  });

  test("are written again after another process has cleared them", async () => {
    const { tiers, places, put } = await open();
    await put(1);
    clearPages(folder, kinds());
    expect(tiers.get(key(1))).toBeUndefined();
    expect(places.get(key(1))).toEqual({ memory: false, disk: false, queued: false });
    await put(2);
    expect((await reportPages(folder)).map(({ pages, model }) => [model, pages])).toEqual([["m", 1]]);
  });

  test("are seen by a process that runs already", async () => {
    const one = await open();
    const other = await open();
    await one.put(1);
    expect(other.tiers.get(key(1))).toEqual(bytes(1));
    await other.put(1);
    expect(files()).toHaveLength(1);
  });

  test("are reported: tokens, bytes, how often they were fetched", async () => {
    const { tiers, put } = await open();
    await put(1, 2);
    tiers.put(key(1, 1), bytes(9, 500));
    while (tiers.busy) await tiers.writeNext();
    tiers.used(3);
    tiers.used(4);
    const [report] = await reportPages(folder);
    expect(report).toMatchObject({ ...about, pages: 3, tokens: 32, bytes: 2 * 1048 + 548, hits: 7 });
    expect(tiers.diskBytes).toBe(report.bytes);
  });

  test("what a process left half written is removed in time, and never read", async () => {
    await (await open()).put(1);
    const left = join(folder, kinds()[0], "new-1-1");
    writeFileSync(left, "half");
    await open();
    expect(existsSync(left)).toBe(true);
    utimesSync(left, new Date(0), new Date(0));
    await open();
    expect(existsSync(left)).toBe(false);
  });

  test("a disk that takes nothing costs nothing but the pages", async () => {
    const said: string[] = [];
    setLog((_, message) => said.push(message));
    const blocked = join(folder, "blocked");
    writeFileSync(blocked, "a file, no folder");
    const { tiers } = await open({ folder: blocked, memoryBytes: MiB });
    tiers.put(key(1), bytes(1));
    expect(tiers.busy).toBe(false);
    expect(tiers.get(key(1))).toEqual(bytes(1));
    expect(said.join()).toMatch(/in memory alone/);
    setLog(null);
  });
});

describe("pages in memory", () => {
  test("are the latest, as many as fit; the others are on disk", async () => {
    const { tiers, places, put } = await open({ memoryBytes: 2500 });
    await put(1, 2);
    tiers.get(key(1));
    await put(3);
    expect(tiers.memoryPages).toBe(2);
    expect(tiers.memoryBytes).toBe(2000);
    expect([1, 2, 3].map((n) => places.get(key(n))!.memory)).toEqual([true, false, true]);
    expect(tiers.get(key(2))).toEqual(bytes(2));
  });

  test("are all there is where the disk is not to be used", async () => {
    const { tiers, put } = await open({ memoryBytes: 2500, diskBytes: 0 });
    await put(1, 2, 3);
    expect(kinds()).toEqual([]);
    expect(tiers.get(key(1))).toBeUndefined();
    expect(tiers.get(key(3))).toEqual(bytes(3));
  });

  test("what was given is the caller's own", async () => {
    const { tiers, put } = await open({ memoryBytes: MiB });
    await put(1);
    tiers.get(key(1))!.fill(0);
    expect(tiers.get(key(1))).toEqual(bytes(1));
  });
});

test("a model's digest is read once, and again when the file is another", async () => {
  const before = await digestOfFiles(folder, [model]);
  const { mtime, atime } = statSync(model);
  expect(await digestOfFiles(folder, [model])).toBe(before);
  chmodSync(model, 0o000);
  writeFileSync(model, "WEIGHTS");
  utimesSync(model, atime, mtime);
  chmodSync(model, 0o600);
  expect(await digestOfFiles(folder, [model])).not.toBe(before);
  expect(await digestOfFiles(folder, [model, model])).not.toBe(before);
});

test("processes that write, sweep and die at once leave whole pages alone", async () => {
  mkdirSync(join(folder, "w"));
  const children = [0, 1].map((seed) =>
    fork(new URL("page-writer.mjs", import.meta.url), [folder, model, String(seed)], { stdio: "inherit" }),
  );
  await Promise.all(children.map((child) => new Promise((resolve) => child.once("message", resolve))));
  const { tiers } = await open({ diskBytes: MiB });
  for (let round = 0; round < 20; round++) {
    for (let n = 0; n < 40; n++) {
      const got = tiers.get(key(n));
      if (got) expect(got).toEqual(bytes(n));
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  for (const child of children) child.kill("SIGKILL");
  await Promise.all(children.map((child) => new Promise((resolve) => child.once("exit", resolve))));
  const after = await open();
  let found = 0;
  for (let n = 0; n < 40; n++) if (after.tiers.get(key(n))) found++;
  expect(found).toBeGreaterThan(0);
  expect(after.tiers.damaged + tiers.damaged).toBe(0);
  await sweep(folder, kinds()[0], () => 0);
  expect(files()).toEqual([]);
});
