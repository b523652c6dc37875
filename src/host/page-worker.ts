// Owns: the page worker's thread, one a model: asking goes before writing, one page at a time.
import { setImmediate as turn } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import type { PageMessage, PageReply, PageWorkerData } from "./page-protocol.js";
import { PageTiers } from "./page-tiers.js";

/** Milliseconds between two notes of how often pages were fetched. */
const noteMs = 10_000;

const port = parentPort!;
const tiers = new PageTiers(workerData as PageWorkerData, (keys, where) => reply({ type: "moved", keys, where }));
let closing = false;
let writing = false;
let fetched = 0;
let noting: NodeJS.Timeout | undefined;

function reply(message: PageReply, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer);
}

function note(): void {
  clearTimeout(noting);
  noting = undefined;
  if (fetched > 0) tiers.used(fetched);
  fetched = 0;
}

function get(ticket: number, keys: readonly string[]): void {
  const pages = keys.map((key) => tiers.get(key) as Uint8Array<ArrayBuffer> | undefined);
  const found = pages.filter((bytes) => bytes !== undefined);
  reply(
    { type: "got", ticket, pages },
    found.map(({ buffer }) => buffer),
  );
  fetched += found.length;
  noting ??= setTimeout(note, noteMs);
}

async function write(): Promise<void> {
  if (writing) return;
  writing = true;
  while (tiers.busy) {
    await tiers.writeNext();
    await turn(); // who asks goes first
  }
  writing = false;
  tell();
  if (closing) end();
}

function tell(): void {
  const { memoryPages, memoryBytes, diskPages, diskBytes, damaged } = tiers;
  const memory = { pages: memoryPages, bytes: memoryBytes };
  reply({ type: "held", memory, disk: { pages: diskPages, bytes: diskBytes }, damaged });
}

function end(): void {
  note();
  port.close();
}

port.on("message", (message: PageMessage) => {
  switch (message.type) {
    case "put":
      tiers.put(message.key, message.bytes);
      break;
    case "get":
      get(message.ticket, message.keys);
      tell();
      return;
    case "close":
      closing = true;
      break;
  }
  void write();
});

await tiers.open();
reply({ type: "opened" });
void write();
