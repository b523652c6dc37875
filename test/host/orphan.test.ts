// An engine process does not outlive the process that started it, however that one ended and whatever it was doing.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const dist = fileURLToPath(new URL("../../dist/", import.meta.url));

const parent = (path: string) => `
  const { EngineClient } = await import(${JSON.stringify(`${dist}engine/client.js`)});
  const { processCarrier } = await import(${JSON.stringify(`${dist}host/process.js`)});
  let pid;
  const spec = { path: ${JSON.stringify(path)}, device: "reference", threads: 1 };
  const client = await EngineClient.open({ carrier: () => processCarrier((id) => (pid = id)), spec });
  const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, frequencyPenalty: 0,
    presencePenalty: 0, seed: 0n, logitBias: [] };
  const request = { id: "a", promptIds: Int32Array.of(1, 2), n: 1, sampling, maxTokens: 4000, minTokens: 0, stopIds: [],
    priority: 0 };
  for await (const event of client.generate(request)) if (event.type === "token" && pid) { console.log(pid); pid = 0; }
`;

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test("a child that generates ends when its parent is killed", async () => {
  const folder = mkdtempSync(join(tmpdir(), "millrace-orphan-"));
  const path = join(folder, "tiny.gguf");
  writeTinyLlamaGguf(path, { contextLength: 4096 });
  const started = spawn(process.execPath, ["--input-type=module", "-e", parent(path)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  try {
    const pid = await new Promise<number>((resolve, reject) => {
      started.stdout.once("data", (text) => resolve(Number(String(text))));
      started.once("exit", (code) => reject(new Error(`the parent ended with ${code}`)));
    });
    expect(alive(pid)).toBe(true);
    started.kill("SIGKILL");
    const until = Date.now() + 20_000;
    while (alive(pid) && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(alive(pid)).toBe(false);
  } finally {
    started.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  }
});
