import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, describe, expect, test } from "vitest";
import { mapFile } from "../../src/formats/mmap.js";

const folder = mkdtempSync(join(tmpdir(), "mmap-"));
afterAll(() => rmSync(folder, { recursive: true }));

const size = 32 * 2 ** 20 + 123;
const content = Buffer.alloc(size, (() => Buffer.from(Uint8Array.from({ length: 251 }, (_, i) => i)))());
const path = join(folder, "content");
writeFileSync(path, content);

/** Bytes of file pages that are in this process's memory. */
function fileResident(): number {
  return Number(/RssFile:\s*(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024;
}

describe.each([true, false])("mmap: %s", (mmap) => {
  test("views are the file's bytes", () => {
    const file = mapFile(path, { mmap });
    expect(file.mapped).toBe(mmap);
    expect(file.size).toBe(size);
    expect(content.equals(file.view(0, size))).toBe(true);
    expect(Buffer.from(file.view(1001, 5000)).equals(content.subarray(1001, 5000))).toBe(true);
    expect(file.view(size, size).length).toBe(0);
    file.close();
  });

  test("nothing outside the file can be viewed", () => {
    const file = mapFile(path, { mmap });
    for (const [start, end] of [
      [0, size + 1],
      [-1, 5],
      [5, 4],
      [0.5, 2],
      [Number.NaN, 2],
      [0, Number.POSITIVE_INFINITY],
    ]) {
      expect(() => file.view(start, end)).toThrow(/there is nothing at/);
    }
    file.close();
  });

  test("a closed file says so", () => {
    const file = mapFile(path, { mmap });
    file.close();
    file.close();
    expect(() => file.view(0, 1)).toThrow(/was closed/);
    file.release(0, size);
  });

  test("what cannot be opened says so", () => {
    expect(() => mapFile(join(folder, "absent"), { mmap })).toThrow(
      expect.objectContaining({ name: "UserError", status: 404, code: "model_not_found" }),
    );
    mkdirSync(join(folder, "folder"), { recursive: true });
    expect(() => mapFile(join(folder, "folder"), { mmap })).toThrow(/not a regular file/);
  });

  test("an empty file has no bytes", () => {
    const empty = join(folder, "empty");
    writeFileSync(empty, "");
    const file = mapFile(empty, { mmap });
    expect(file.view(0, 0).length).toBe(0);
    file.close();
  });
});

test.each([true, false])("a file too long for one typed array is viewed in pieces (mmap: %s)", (mmap) => {
  const long = join(folder, "long");
  const length = 5 * 2 ** 30;
  const fd = openSync(long, "w");
  ftruncateSync(fd, length); // sparse: takes no room
  writeSync(fd, Uint8Array.of(1, 2, 3), 0, 3, length - 3);
  writeSync(fd, Uint8Array.of(4), 0, 1, 2 ** 32);
  closeSync(fd);
  const file = mapFile(long, { mmap });
  expect([...file.view(length - 4, length)]).toEqual([0, 1, 2, 3]);
  expect([...file.view(2 ** 32 - 1, 2 ** 32 + 2)]).toEqual([0, 4, 0]);
  expect(() => file.view(0, length)).toThrow(/at most 4294967296 can be viewed at once/);
  file.release(2 ** 32, length);
  const late = file.view(length - 3, length);
  file.close();
  expect([...late]).toEqual(mmap ? [0, 0, 0] : [1, 2, 3]);
});

test("a view kept beyond close() reads zeros and does not crash", () => {
  const file = mapFile(path);
  const view = file.view(1000, size);
  expect(view[0]).toBe(1000 % 251);
  file.close();
  expect(view.every((byte) => byte === 0)).toBe(true);
});

test.runIf(process.platform === "linux")("release() gives pages back, and they can be read again", () => {
  const file = mapFile(path);
  const bytes = file.view(0, size);
  const sum = () => {
    let total = 0;
    for (let at = 0; at < size; at += 4096) total += bytes[at];
    return total;
  };
  const before = fileResident();
  const first = sum();
  const touched = fileResident();
  expect(touched - before).toBeGreaterThan(30 * 2 ** 20);
  file.release(100, size);
  expect(touched - fileResident()).toBeGreaterThan(30 * 2 ** 20);
  expect(bytes[0]).toBe(0);
  expect(sum()).toBe(first);
  file.release(0, 5); // less than a page: nothing to do
  file.close();
});

test.runIf(process.platform === "linux")("the addresses go back once file and views are gone", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const addressBytes = () => Number(/VmSize:\s*(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024;
  const before = addressBytes();
  for (let i = 0; i < 64; i++) {
    const file = mapFile(path);
    file.view(0, 10);
    file.close();
  }
  const mappedBytes = addressBytes() - before;
  for (let i = 0; i < 20 && addressBytes() - before > 8 * size; i++) {
    collect();
    await new Promise((done) => setTimeout(done, 20));
  }
  expect(mappedBytes).toBeGreaterThan(32 * size);
  expect(addressBytes() - before).toBeLessThanOrEqual(8 * size);
});
