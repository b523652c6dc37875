// Owns: the time to the first token of a prompt that is computed, found in the device's cache, fetched from memory and, after a
// restart, from disk (the system may still have the files in memory); and what keeping pages costs those who run: eight
// different requests of 256 + 64 tokens at once, with and without. In turns; medians and every run.
//
//   node bench/kept.mjs --model FILE.gguf [--prompt 1500] [--rounds 5] [--threads 2]
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { EngineClient } from "../dist/engine/client.js";
import { workerCarrier } from "../dist/host/worker.js";
import { plainSampling } from "../dist/session/sampling.js";

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    prompt: { type: "string", default: "1500" },
    rounds: { type: "string", default: "5" },
    threads: { type: "string", default: "2" },
  },
});
const [length, rounds, threads] = [values.prompt, values.rounds, values.threads].map(Number);
const folder = mkdtempSync(join(tmpdir(), "millrace-kept-"));
let requests = 0;

const ids = (seed) => Int32Array.from({ length }, (_, i) => ((i * 7919 + seed * 104729) % 30000) + 100);

/** Milliseconds to the first token, and how many of the prompt's were cached. */
async function first(client, promptIds) {
  const from = performance.now();
  const sampling = { ...plainSampling, temperature: 0, seed: 0n };
  const rest = { n: 1, sampling, maxTokens: 1, minTokens: 0, stopIds: [], priority: 0 };
  let cached = 0;
  let ms = 0;
  for await (const event of client.generate({ id: `r${++requests}`, promptIds, ...rest })) {
    if (event.type === "start") cached = event.cachedTokens;
    if (event.type === "token") ms = performance.now() - from;
  }
  return { ms, cached };
}

/** Pages for little more than one prompt: another one puts it out of the device's cache. */
async function open(pageCache) {
  const spec = { path: values.model, device: "cpu", threads, contextLength: length + 64, maxSequences: 1, pageCache };
  const client = await EngineClient.open({ carrier: workerCarrier, spec });
  await first(client, ids(1e6 + requests).subarray(0, 40));
  return client;
}

const runs = { computed: [], device: [], memory: [], disk: [], "disk, all measured": [] };
for (let round = 0; round < rounds; round++) {
  const [prompt, other] = [ids(2 * round), ids(2 * round + 1)];
  const kept = { folder, memoryBytes: 2 ** 30 };
  let client = await open({ ...kept, diskBytes: 0 });
  runs.computed.push(await first(client, prompt));
  runs.device.push(await first(client, prompt));
  await first(client, other);
  runs.memory.push(await first(client, prompt));
  await client.close();
  client = await open({ folder, memoryBytes: 0 });
  await first(client, prompt);
  await client.close();
  client = await open({ folder, memoryBytes: 0 });
  runs.disk.push(await first(client, prompt));
  await first(client, other);
  runs["disk, all measured"].push(await first(client, prompt));
  await client.close();
}

const load = { plain: [], kept: [] };
const clients = {};
for (const name of Object.keys(load)) {
  const pageCache = name === "kept" ? { folder } : undefined;
  const spec = { path: values.model, device: "cpu", threads, contextLength: 1024, maxSequences: 8, pageCache };
  clients[name] = await EngineClient.open({ carrier: workerCarrier, spec });
}
for (let round = 0; round <= 2 * rounds; round++) {
  for (const [name, client] of Object.entries(clients)) {
    const from = performance.now();
    await Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const promptIds = ids(5000 + 8 * round + i).subarray(0, 256);
        const sampling = { ...plainSampling, temperature: 0, seed: 0n };
        const rest = { n: 1, sampling, maxTokens: 64, minTokens: 0, stopIds: [], priority: 0 };
        for await (const _event of client.generate({ id: `r${++requests}`, promptIds, ...rest }));
      }),
    );
    if (round > 0) load[name].push(performance.now() - from);
  }
}
for (const client of Object.values(clients)) await client.close();
rmSync(folder, { recursive: true });

const median = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];
const report = Object.fromEntries(
  Object.entries(runs).map(([name, all]) => [
    name,
    {
      medianMs: +median(all.map(({ ms }) => ms)).toFixed(1),
      cached: all.map(({ cached }) => cached),
      ms: all.map(({ ms }) => +ms.toFixed(1)),
    },
  ]),
);
for (const one of Object.values(report)) one.ofComputed = +(report.computed.medianMs / one.medianMs).toFixed(1);
const loads = Object.fromEntries(
  Object.entries(load).map(([name, all]) => [name, { ms: all.map(Math.round), medianMs: Math.round(median(all)) }]),
);
loads.ratio = +(loads.kept.medianMs / loads.plain.medianMs).toFixed(3);
console.log(JSON.stringify({ model: values.model, prompt: length, threads, report, loads }));
