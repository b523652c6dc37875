// A model's pages outside its device, with the worker as compiled: nothing waits for it, and what was put is there later.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type * as StoreModule from "../../src/host/page-store.js";
import type { PageTiersOptions } from "../../src/host/page-tiers.js";

const { WorkerPageStore } = (await import(
  new URL("../../dist/host/page-store.js", import.meta.url).href
)) as typeof StoreModule;

const MiB = 2 ** 20;
let folder: string;
let options: PageTiersOptions;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-page-store-"));
  const model = join(folder, "model");
  writeFileSync(model, "weights");
  const about = { model: "m", device: "cpu", kvDtype: "f16", pageTokens: 16, group: 0 };
  options = { folder: join(folder, "pages"), files: [model], kind: "k", about, memoryBytes: 0, diskBytes: 512 * MiB };
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const key = (n: number) => String.fromCharCode(0, ...Array.from({ length: 16 }, (_, i) => n * 16 + i));
const bytes = (n: number, length = 1000) => new Uint8Array(length).fill(n);

async function open(more: Partial<PageTiersOptions> = {}) {
  const store = new WorkerPageStore({ ...options, ...more });
  await store.known();
  return store;
}

async function until(true_: () => boolean): Promise<void> {
  while (!true_()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe("a model's pages", () => {
  test("are there at once, on disk soon, and for the next process after closing", async () => {
    const store = await open();
    store.put(key(1), bytes(1));
    expect(store.find(key(1))).toBe("memory");
    expect(await store.get([key(2), key(1)], 10_000)).toEqual([undefined, bytes(1)]);
    await until(() => store.find(key(1)) === "disk");
    for (let n = 3; n < 40; n++) store.put(key(n), bytes(n));
    await store.close();
    expect(await store.get([key(1)], 10_000)).toEqual([undefined]);
    const next = await open();
    for (const n of [1, 3, 39]) expect(next.find(key(n))).toBe("disk");
    expect(await next.get([key(39)], 10_000)).toEqual([bytes(39)]);
    await until(() => next.stats.disk.pages === 38);
    await next.close();
  });

  test("are not taken while too many wait to be written, and again when they are", async () => {
    const store = await open();
    let put = 0;
    for (; store.takes; put++) store.put(key(put), bytes(put & 255, MiB));
    expect(put).toBeLessThan(200);
    await until(() => store.takes);
    await until(() => store.find(key(put - 1)) === "disk");
    expect(await store.get([key(7)], 60_000)).toEqual([bytes(7, MiB)]);
    await store.close();
  });

  test("that do not come in time are not waited for", async () => {
    const store = await open();
    store.put(key(1), bytes(1, MiB));
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const late = store.get([key(1)], 50);
    // Before any message can have come.
    vi.advanceTimersByTime(50);
    vi.useRealTimers();
    expect(await late).toEqual([undefined]);
    expect(await store.get([key(1)], 60_000)).toEqual([bytes(1, MiB)]);
    await store.close();
  });

  test("are kept in memory alone where the model cannot be read", async () => {
    const store = await open({ memoryBytes: MiB, files: [join(folder, "gone")] });
    store.put(key(1), bytes(1));
    expect(await store.get([key(1)], 10_000)).toEqual([bytes(1)]);
    await until(() => store.takes && store.find(key(1)) === "memory");
    await store.close();
  });
});
