// Many models in one server: when each is loaded, kept and unloaded, and what it is granted.
import { describe, expect, it, vi } from "vitest";
import { UserError } from "../../src/base/errors.js";
import { QueueLimit } from "../../src/server/limits.js";
import {
  type Loaded,
  type LoadGrant,
  type ModelSettings,
  type Servable,
  ServedModels,
} from "../../src/server/models.js";
import { shareThreads } from "../../src/server/share.js";
import { Session } from "../../src/session/session.js";
import { byteText, FakeEngine } from "../session/fakes.js";

/** Models whose name says their size: "a5" takes 5 bytes. */
class World {
  readonly log: string[] = [];
  readonly grants = new Map<string, LoadGrant>();
  readonly threads = new Map<string, number>();
  loading = 0;
  readonly models: ServedModels;

  constructor(names: readonly string[], settings: Partial<ModelSettings> = {}, pinned: readonly string[] = []) {
    const list = names.map((id) => ({ id, created: 1, pinned: pinned.includes(id) }));
    this.models = new ServedModels(
      {
        list: () => list,
        find: (name) => list.find(({ id }) => id === name) ?? null,
        load: (model, grant) => this.load(model, grant),
      },
      { memoryBytes: 10, threads: 4, maxLoaded: 9, maxQueued: 8, keepAliveMs: 60_000, ...settings },
    );
  }

  get names(): string[] {
    return this.models.loaded.map(({ model }) => model.id);
  }

  private async load({ id }: Servable, grant: LoadGrant): Promise<Loaded> {
    expect(++this.loading, "models loading at once").toBe(1);
    await new Promise((resolve) => setTimeout(resolve, 2));
    this.loading -= 1;
    const bytes = Number(id.slice(1));
    if (bytes > grant.memoryBytes) throw new UserError(`${id} does not fit`, { code: "out_of_memory" });
    this.log.push(`+${id}`);
    this.grants.set(id, grant);
    const engine = new FakeEngine(undefined, { contextLength: grant.contextLength ?? 64, trainedContextLength: 256 });
    return {
      served: {
        id,
        created: 1,
        session: new Session(engine, byteText),
        queue: new QueueLimit(4, 4),
        fingerprint: id,
      },
      hostBytes: bytes,
      grantThreads: (count) => this.threads.set(id, count),
      close: async () => void this.log.push(`-${id}`),
    };
  }

  /** Acquires and lets go at once. */
  async touch(name: string, keepAliveMs?: number): Promise<void> {
    (await this.models.acquire(name, { keepAliveMs })).release();
    await settled();
  }
}

const settled = () => new Promise((resolve) => setTimeout(resolve, 1));

describe("loading", () => {
  it("happens on first use, once, whoever asks meanwhile", async () => {
    const world = new World(["a1"]);
    expect(world.names).toEqual([]);
    const leases = await Promise.all([1, 2, 3].map(() => world.models.acquire("a1")));
    expect(world.log).toEqual(["+a1"]);
    expect(leases[0].loadMs).toBeGreaterThan(0);
    expect(world.models.loaded[0].leases).toBe(3);
    for (const lease of leases) lease.release();
    leases[0].release();
    expect(world.models.loaded[0].leases).toBe(0);
  });

  it("of two models at once goes one after the other, each with what is left", async () => {
    const world = new World(["a4", "b3"]);
    await Promise.all(["a4", "b3"].map((name) => world.touch(name)));
    expect(world.log).toEqual(["+a4", "+b3"]);
    expect(world.grants.get("a4")!.memoryBytes).toBe(10);
    expect(world.grants.get("b3")!.memoryBytes).toBe(6);
  });

  it("that fails is told to all who wait, and is tried anew", async () => {
    const world = new World(["a11"]);
    for (let round = 0; round < 2; round++) {
      const both = await Promise.allSettled([world.models.acquire("a11"), world.models.acquire("a11")]);
      for (const outcome of both) expect(outcome).toMatchObject({ reason: { message: "a11 does not fit" } });
    }
    expect(world.names).toEqual([]);
  });

  it("is refused beyond the queue, and left alone by a waiter that goes away", async () => {
    const world = new World(["a1"], { maxQueued: 2 });
    const gone = new AbortController();
    const first = world.models.acquire("a1", { signal: gone.signal });
    const second = world.models.acquire("a1");
    await expect(world.models.acquire("a1")).rejects.toMatchObject({ status: 503, code: "queue_full" });
    gone.abort(new Error("gone"));
    await expect(first).rejects.toThrow("gone");
    (await second).release();
    expect(world.models.loaded[0].leases).toBe(0);
  });

  it("is done again for a longer context, after the answers of the shorter one", async () => {
    const world = new World(["a1"]);
    const lease = await world.models.acquire("a1", { contextLength: 64 });
    const longer = world.models.acquire("a1", { contextLength: 128 });
    await settled();
    expect(world.log).toEqual(["+a1"]);
    lease.release();
    expect((await longer).model.session.limits.contextLength).toBe(128);
    expect(world.log).toEqual(["+a1", "-a1", "+a1"]);
    // Less than it has is enough; more than the model was made for is as much as that, once.
    (await world.models.acquire("a1", { contextLength: 10 })).release();
    expect(world.log.length).toBe(3);
    (await longer).release();
    const longest = await world.models.acquire("a1", { contextLength: 1000 });
    expect(longest.model.session.limits.contextLength).toBe(256);
    (await world.models.acquire("a1", { contextLength: 1000 })).release();
    expect(world.log.length).toBe(5);
  });
});

describe("unloading", () => {
  it("to make room takes the least recently used", async () => {
    const world = new World(["a4", "b4", "c4"]);
    await world.touch("a4");
    await world.touch("b4");
    await world.touch("a4");
    await world.touch("c4");
    expect(world.log).toEqual(["+a4", "+b4", "-b4", "+c4"]);
  });

  it("never takes one while it answers: the newcomer waits", async () => {
    const world = new World(["a6", "b6"]);
    const answering = await world.models.acquire("a6");
    const waiting = world.models.acquire("b6");
    await vi.waitFor(() => expect(world.names).toEqual([]));
    expect(world.log).toEqual(["+a6"]);
    // Requests for the first one queue behind the newcomer, so that it gets its turn.
    const again = world.models.acquire("a6");
    answering.release();
    (await waiting).release();
    (await again).release();
    expect(world.log).toEqual(["+a6", "-a6", "+b6", "-b6", "+a6"]);
  });

  it("never takes a pinned one", async () => {
    const world = new World(["a6", "b6"], {}, ["a6"]);
    await world.touch("a6", 0);
    await expect(world.models.acquire("b6")).rejects.toMatchObject({ message: "b6 does not fit", status: 500 });
    expect(world.names).toEqual(["a6"]);
  });

  it("keeps to a number of models", async () => {
    const world = new World(["a1", "b1", "c1"], { maxLoaded: 2 });
    for (const name of ["a1", "b1", "c1"]) await world.touch(name);
    expect(world.names).toEqual(["b1", "c1"]);
  });

  it("comes after the keep-alive of the last request, counted from its end", async () => {
    const world = new World(["a1"], { keepAliveMs: 30 });
    const lease = await world.models.acquire("a1");
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect(world.names).toEqual(["a1"]);
    lease.release();
    const { expiresAt } = world.models.loaded[0];
    expect(expiresAt - Date.now()).toBeGreaterThan(10);
    await vi.waitFor(() => expect(world.log).toEqual(["+a1", "-a1"]));
    await world.touch("a1", Number.POSITIVE_INFINITY);
    expect(world.models.loaded[0].expiresAt).toBe(Number.POSITIVE_INFINITY);
    // A request that does not say leaves it as it is.
    await world.touch("a1");
    expect(world.models.loaded[0].expiresAt).toBe(Number.POSITIVE_INFINITY);
    await world.touch("a1", 0);
    expect(world.names).toEqual([]);
  });

  it("on request ends with the open answers", async () => {
    const world = new World(["a1"]);
    expect(await world.models.unload("a1")).toBe(false);
    const lease = await world.models.acquire("a1");
    const gone = world.models.unload("a1");
    expect(world.names).toEqual([]);
    await settled();
    expect(world.log).toEqual(["+a1"]);
    lease.release();
    expect(await gone).toBe(true);
    expect(world.log).toEqual(["+a1", "-a1"]);
  });

  it("of all models ends waiting, too", async () => {
    const world = new World(["a6", "b6"]);
    await world.models.acquire("a6");
    const waiting = world.models.acquire("b6");
    await settled();
    await Promise.all([world.models.close(), expect(waiting).rejects.toMatchObject({ status: 503 })]);
    expect(world.log).toEqual(["+a6", "-a6"]);
    await expect(world.models.acquire("a6")).rejects.toMatchObject({ status: 503 });
  });
});

describe("threads", () => {
  it("are shared by the models that answer, and all one's when it is alone", async () => {
    const world = new World(["a1", "b1", "c1"]);
    const a = await world.models.acquire("a1");
    expect(world.threads.get("a1")).toBe(4);
    const b = await world.models.acquire("b1");
    const c = await world.models.acquire("c1");
    expect([...world.threads.values()]).toEqual([2, 1, 1]);
    a.release();
    c.release();
    expect(world.threads.get("b1")).toBe(4);
    b.release();
  });

  it("are at least one each", () => {
    expect(shareThreads(2, 3)).toEqual([1, 1, 1]);
    expect(shareThreads(7, 2)).toEqual([4, 3]);
    expect(shareThreads(4, 1)).toEqual([4]);
  });
});

it("an unknown name is a 404 that says what there is", async () => {
  const world = new World(["a1"]);
  await expect(world.models.acquire("z")).rejects.toMatchObject({ status: 404, code: "model_not_found" });
  await expect(world.models.acquire("z")).rejects.toThrow('this server has "a1"');
  await expect(new World([]).models.acquire("z")).rejects.toThrow("millrace pull z");
});
