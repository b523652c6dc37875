// Planning before a download: headers come by byte ranges, weights do not; and the command tells what they say.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { openCheckpoint } from "../../src/formats/open.js";
import { createPackage } from "../../src/store/create.js";
import { parseModelfile } from "../../src/store/modelfile.js";
import { pushPackage } from "../../src/store/push.js";
import { Store } from "../../src/store/store.js";
import { millrace } from "../support/millrace.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { type HubServer, startHub } from "./hub-server.js";
import { dockerRegistry, startDockerRegistry } from "./registry-server.js";

const tiny = fileURLToPath(new URL("../golden/tiny/llama-mha/", import.meta.url));
const home = mkdtempSync(join(tmpdir(), "millrace-outline-test-"));
const gguf = join(home, "tiny.gguf");
// Several megabytes of weights behind a small header.
writeTinyLlamaGguf(gguf, { hidden: 512, feedForward: 1024, layers: 2 });
const bytes = readFileSync(gguf);

let hub: HubServer;
beforeAll(async () => {
  hub = await startHub({ "tiny-F32.gguf": bytes });
  process.env.HF_ENDPOINT = hub.address;
});
afterEach(() => {
  hub.intercept = null;
});
afterAll(async () => {
  delete process.env.HF_ENDPOINT;
  await hub.close();
  rmSync(home, { recursive: true });
});

const store = new Store(join(home, "store"));

/** Bytes of content that were asked for since `from` in the log. */
function asked(from: number): number {
  const ranges = hub.log.slice(from).flatMap((line) => {
    const match = /^GET \/cdn\/\S+ bytes=(\d+)-(\d+)$/.exec(line);
    return match === null ? [] : [Number(match[2]) - Number(match[1]) + 1];
  });
  return ranges.reduce((sum, count) => sum + count, 0);
}

async function openedLike(outlinePath: string, wholePath: string): Promise<void> {
  const [drawn, whole] = await Promise.all([openCheckpoint(outlinePath), openCheckpoint(wholePath)]);
  try {
    expect([...drawn.tensors.values()]).toEqual([...whole.tensors.values()]);
    expect(drawn.fileBytes).toBe(whole.fileBytes);
  } finally {
    drawn.close();
    whole.close();
  }
}

test("a GGUF on the hub: its header alone is fetched, and says what the whole file does", async () => {
  const from = hub.log.length;
  const outline = await store.outline("hf:owner/repo/tiny-F32.gguf");
  await openedLike(outline.path, gguf);
  expect(outline.fetchedBytes).toBe(asked(from));
  expect(outline.fetchedBytes).toBeLessThan(bytes.length / 4);
  outline.remove();
  expect(() => readFileSync(outline.path)).toThrow(/ENOENT/);
});

test("a folder on the hub: configuration whole, of safetensors the header", async () => {
  hub.files.delete("tiny-F32.gguf");
  for (const name of readdirSync(tiny)) hub.files.set(name, readFileSync(join(tiny, name)));
  const from = hub.log.length;
  const outline = await store.outline("hf:owner/repo");
  await openedLike(outline.path, tiny);
  expect(hub.log.slice(from).some((line) => line.includes("tokenizer.json"))).toBe(false);
  outline.remove();
  for (const name of readdirSync(tiny)) hub.files.delete(name);
  hub.files.set("tiny-F32.gguf", bytes);
});

describe("what cannot be planned leaves nothing behind and says why", () => {
  const outlines = () => readdirSync(tmpdir()).filter((name) => name.startsWith("millrace-outline-") && name !== home);
  test("a server without ranges", async () => {
    hub.intercept = (request, response) => {
      if (!request.url!.startsWith("/cdn/")) return false;
      response.writeHead(200, { "content-length": String(bytes.length) }).end(bytes);
      return true;
    };
    const before = outlines();
    await expect(store.outline("hf:owner/repo/tiny-F32.gguf")).rejects.toThrow(/gives files as a whole only: pull/);
    expect(outlines()).toEqual(before);
  });
  test("a file that is no model", async () => {
    hub.files.set("page.gguf", Buffer.from(`<!doctype html>${" ".repeat(5000)}`));
    const before = outlines();
    await expect(store.outline("hf:owner/repo/page.gguf")).rejects.toMatchObject({ code: "bad_model_file" });
    expect(outlines()).toEqual(before);
  });
  test("a name that is not there", async () => {
    await expect(store.outline("hf:owner/repo/none.gguf")).rejects.toThrow(/there is no none.gguf/);
  });
});

const docker = dockerRegistry();
test.skipIf(docker === undefined)("a package in a registry", async () => {
  const registry = await startDockerRegistry(docker!);
  try {
    const name = `${registry.host}/team/model:v1`;
    const other = new Store(join(home, "other"));
    const { warnings: _, ...recipe } = parseModelfile("FROM tiny.gguf");
    await createPackage(other, name, { ...recipe, folder: home });
    await pushPackage(other, name, {});
    const outline = await store.outline(name);
    await openedLike(outline.path, gguf);
    expect(outline.fetchedBytes).toBeLessThan(bytes.length / 4);
    outline.remove();
  } finally {
    await registry.close();
  }
});

test("the command: fits, context, users, speeds, and bench beside what was foretold", async () => {
  const env = { MILLRACE_HOME: join(home, "store"), HF_ENDPOINT: hub.address };
  const model = "hf:owner/repo/tiny-F32.gguf";
  const from = hub.log.length;
  const { stdout, stderr, code } = await millrace(["pull", model, "--plan", "--json"], { env });
  expect(code, stderr).toBe(0);
  const told = JSON.parse(stdout) as Record<string, never> & { speeds?: object };
  expect(told).toMatchObject({ fits: true, fileBytes: bytes.length, contextLength: told.trainedContextLength });
  expect(asked(from)).toBeLessThan(bytes.length / 4);
  const small = await millrace(["plan", model, "--ctx", "64"], { env });
  expect(small.stdout).toMatch(/context +64 tokens/);
  const large = await millrace(["plan", model, "--ctx", "99999999"], { env });
  expect(large.code).not.toBe(0);
  expect(large.stderr).toMatch(/a context of 99999999 tokens was asked for/);
  // Each plan measures the machine, and what is foretold last stands beside what is measured.
  const again = await millrace(["plan", model, "--json"], { env });
  const { speeds } = JSON.parse(again.stdout) as { speeds?: { predicted: object } };
  if (speeds === undefined) return console.warn("SKIPPED: no native kernels, no speeds foretold");
  await millrace(["pull", model], { env });
  const bench = ["bench", "latency", "--model", model, "--prompt", "8", "--generate", "4", "--repeat", "1", "--json"];
  const measured = await millrace(bench, { env });
  expect(JSON.parse(measured.stdout), measured.stderr).toMatchObject({ predicted: speeds.predicted });
  expect((await millrace(["plan", model], { env })).stdout).toMatch(/bench measured [\d.]+ tokens\/s/);
}, 60_000);
