// A GPU that fails under an engine, and an engine that is killed: every request ends with an error, the GPU's memory is free
// again, and the next request starts a process that answers as the first one did.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { whyNoCuda } from "../../src/device/cuda/native.js";
import type * as ClientModule from "../../src/engine/client.js";
import type { TokenEvent } from "../../src/engine/types.js";
import type * as ProcessModule from "../../src/host/process.js";
import { request } from "../e2e/world.js";
import { tinyFolder } from "../support/golden.js";

const absent = whyNoCuda();
if (absent) console.warn(`SKIPPED: faults of a GPU: ${absent}`);

const dist = (path: string) => import(new URL(`../../dist/${path}`, import.meta.url).href);
const strikes = fileURLToPath(new URL("./strike.cjs", import.meta.url));

/** Mebibytes of the GPU that are taken. */
function taken(): number {
  return Number(execFileSync("nvidia-smi", ["--query-gpu=memory.used", "--format=csv,noheader,nounits"]));
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let i = 0; i < 150; i++) {
    if (holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`15 s later, still not: ${what}`);
}

const kinds = {
  access: "illegal memory access",
  hang: "within its time",
  missing: "without a result",
  kill: "SIGKILL",
};
for (const [kind, says] of Object.entries(kinds)) {
  test.skipIf(absent !== undefined)(`a fault's requests end with an error, the next is answered: ${kind}`, () =>
    afterFault(kind, says),
  );
}

async function afterFault(kind: string, says: string): Promise<void> {
  const { EngineClient } = (await dist("engine/client.js")) as typeof ClientModule;
  const { processCarrier } = (await dist("host/process.js")) as typeof ProcessModule;
  const before = taken();
  const pids: number[] = [];
  process.env.MILLRACE_TEST_STRIKE = kind;
  process.env.NODE_OPTIONS = `--require ${strikes}`;
  const client = await EngineClient.open({
    carrier: () => processCarrier((pid) => pids.push(pid)),
    spec: { path: tinyFolder("llama-mha"), device: "cuda", contextLength: 512 },
  });
  const ask = async (id: string, maxTokens: number) => {
    const events: TokenEvent[] = [];
    const prompt = Array.from({ length: 20 }, (_, i) => 5 + i);
    for await (const event of client.generate(request(id, prompt, { maxTokens }))) events.push(event);
    return events;
  };
  const tokens = (events: readonly TokenEvent[]) => events.flatMap((e) => (e.type === "token" ? [e.id] : []));
  const truth = tokens(await ask("first", 40));
  expect(truth).toHaveLength(40);
  const loaded = taken();
  expect(loaded).toBeGreaterThan(before);
  process.kill(pids[0], "SIGUSR2");
  await new Promise((resolve) => setTimeout(resolve, 200));
  for (const events of await Promise.all(["second", "third"].map((id) => ask(id, 400)))) {
    const ends = events.filter((event) => event.type === "finish");
    expect(ends).toHaveLength(1);
    const [end] = ends;
    expect(end.type === "finish" ? end.reason : "").toBe("error");
    expect(end.type === "finish" ? `${end.error?.message}`.includes(says) : false, JSON.stringify(end)).toBe(true);
  }
  await until("the memory is free", () => !client.alive && taken() - before < (loaded - before) / 4);
  expect(tokens(await ask("fourth", 40))).toEqual(truth);
  expect(pids).toHaveLength(2);
  await client.close();
  delete process.env.NODE_OPTIONS;
  await until("the memory is free again", () => taken() - before < (loaded - before) / 4);
}
