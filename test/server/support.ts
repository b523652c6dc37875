// A server on a free port around a scripted engine, with the vendors' own client.
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { type ListenOptions, listen, type RunningServer } from "../../src/server/app.js";
import { QueueLimit } from "../../src/server/limits.js";
import { fingerprint, type Loaded, ServedModels } from "../../src/server/models.js";
import type { LocalModel } from "../../src/server/source.js";
import type { Generator, TextModel } from "../../src/session/needs.js";
import { Session } from "../../src/session/session.js";
import { byteText, FakeEngine, type Script } from "../session/fakes.js";

export interface Rig {
  readonly engine: FakeEngine;
  readonly server: RunningServer;
  readonly client: OpenAI;
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
}

export interface RigOptions extends ListenOptions {
  readonly script?: Script;
  readonly text?: TextModel | null;
  readonly maxWaiting?: number;
  readonly maxSequences?: number;
  readonly contextLength?: number;
  /** In place of the scripted one. */
  readonly generator?: Generator;
}

export async function rig(options: RigOptions = {}): Promise<Rig> {
  const { maxSequences = 4, contextLength = 256 } = options;
  const engine = new FakeEngine(options.script, { maxSequences, contextLength });
  const session = new Session(
    options.generator ?? engine,
    options.text === null ? undefined : (options.text ?? byteText),
  );
  const queue = new QueueLimit(maxSequences, options.maxWaiting ?? 64);
  const model = { id: "tiny", created: 1, session, queue, fingerprint: fingerprint("tiny") };
  const server = await listen(
    fixed({ served: model, hostBytes: 0, grantThreads: () => {}, close: async () => {} }),
    null,
    {
      // Never the user's own; made only where something is stored.
      recordsFolder: join(tmpdir(), `millrace-rig-${process.pid}`),
      ...options,
      port: 0,
    },
  );
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: typeof body === "string" ? body : JSON.stringify(body),
    });
  return { engine, server, client, post };
}

const tiny = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));

/** Models that need no loading. */
export function fixed(...all: Loaded[]): ServedModels<LocalModel> {
  const list = all.map(({ served }) => ({ id: served.id, created: served.created, pinned: true, path: tiny }));
  const find = (name: string) => list.find(({ id }) => id === name) ?? null;
  const load = async ({ id }: { id: string }) => all.find(({ served }) => served.id === id)!;
  return new ServedModels<LocalModel>(
    { find, list: () => list, load },
    {
      memoryBytes: 1,
      threads: undefined,
      maxLoaded: Number.POSITIVE_INFINITY,
      maxQueued: 16,
      keepAliveMs: 1000,
    },
  );
}

export async function until(condition: () => boolean, ms = 5000): Promise<void> {
  for (const start = Date.now(); !condition(); ) {
    if (Date.now() - start > ms) throw new Error("waited in vain");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
